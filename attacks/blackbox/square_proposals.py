"""What Square proposes in each norm: first images, windows and what they are filled with, for n images at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from attacks.blackbox.square_windows import corners, overlap, pattern, places, values_at
from attacks.core.batching import Rows
from attacks.core.inputs import Problem
from attacks.core.norms import get_norm, per_sample, plain_length
from attacks.core.random_source import RandomSource

_TINY = 1e-12
_MARGIN = 1e-6
_TILES = 5
_MOST_IDS = 2**20


@dataclass(frozen=True)
class Proposals(ABC):
    """K windows for each of n images, of which new images are made when asked for.

    Attributes:
        changes: bool (n, K), whether the window changes anything.
        ids: int64 (n, K), equal for equal windows of an image; None where hardly any two are.
    """

    changes: Tensor
    ids: Tensor | None

    @abstractmethod
    def images(self, search: Tensor, which: Tensor) -> Tensor:
        """The images (m, C, H, W) that the ``which``-th (m,) windows of the images ``search`` (m,) make."""


@dataclass(frozen=True)
class Given(Proposals):
    """One finished image for each."""

    made: Tensor

    @classmethod
    def of(cls, made: Tensor) -> Given:
        """The images ``made`` (n, C, H, W)."""
        return cls(torch.ones(len(made), 1, dtype=torch.bool, device=made.device), None, made)

    def images(self, search: Tensor, which: Tensor) -> Tensor:
        """See `Proposals`."""
        return self.made[search]


class Moves(Rows, ABC):
    """Proposals around the images ``x`` (n, C, H, W) with radii ``eps`` (n, 1, 1, 1).

    Attributes:
        draws: uniform numbers that a window needs per sample.
    """

    draws: int

    def __init__(self, problem: Problem) -> None:
        self.x = problem.x
        self.eps = per_sample(problem.eps, problem.x)
        self.channels = problem.x.shape[1]

    @abstractmethod
    def first(self, source: RandomSource, ids: Tensor, restart: int) -> Tensor:
        """Images (n, C, H, W) to start from, by the numbers that ``source`` has for ``ids`` (n,)."""

    @abstractmethod
    def side(self, wanted: float, most: int) -> int:
        """The side of a window near ``wanted`` pixels, at most ``most``."""

    @abstractmethod
    def propose(self, best: Tensor, side: int, numbers: Tensor) -> Proposals:
        """K windows for each of ``best`` (n, C, H, W), with the uniform ``numbers`` (n, K, k)."""

    def distinct(self) -> int:
        """How many different windows of one side there are for an image; 0 where they are not told apart."""
        return 0


@dataclass(frozen=True)
class _Coloured(Proposals):
    """Windows at ``place`` (n, K, P) of the planes of ``best`` (n, C, H, W), with the values ``new`` (n, C, K, P)."""

    best: Tensor
    place: Tensor
    new: Tensor

    def images(self, search: Tensor, which: Tensor) -> Tensor:
        planes = self.best.flatten(2).index_select(0, search)
        place = self.place[search, which][:, None].expand(-1, planes.shape[1], -1)
        return planes.scatter_(2, place, self.new[search, :, which]).view(-1, *self.best.shape[1:])


class _LinfMoves(Moves):
    """Windows of one colour: every channel at its upper or lower bound."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.draws = 2 + self.channels
        self.lower = (self.x - self.eps).clamp_(min=0)
        self.upper = (self.x + self.eps).clamp_(max=1)

    def first(self, source: RandomSource, ids: Tensor, restart: int) -> Tensor:
        """Vertical stripes, one pixel wide."""
        stripes = _signs(source.uniform(ids, (self.channels, 1, self.x.shape[3]), restart, 0))
        return (self.x + self.eps * stripes).clamp_(0, 1)

    def side(self, wanted: float, most: int) -> int:
        return min(max(round(wanted), 1), most)

    def propose(self, best: Tensor, side: int, numbers: Tensor) -> Proposals:
        top, left = corners(best, side, numbers)
        place = places(best, top, left, side)
        old, lower, upper = (values_at(image, place) for image in (best, self.lower, self.upper))
        up = numbers[..., 2:] > 0.5
        new = torch.where(up.transpose(1, 2)[..., None], upper, lower)
        changes = (new != old).any(3).any(1)
        ids = None
        if self.distinct():
            colour = up.long() << torch.arange(self.channels, device=up.device)
            ids = ((top * best.shape[3] + left) << self.channels) + colour.sum(2)
        return _Coloured(changes, ids, best, place, new)

    def distinct(self) -> int:
        count = self.x.shape[2:].numel() << self.channels
        return 0 if count > _MOST_IDS else count


@dataclass(frozen=True)
class _Moved(Proposals):
    """Windows of ``delta`` (n, C, H, W): at ``target`` (n, K, P) take ``new`` (n, C, K, P), at ``source`` become 0."""

    moves: _MassMoves
    delta: Tensor
    target: Tensor
    source: Tensor
    new: Tensor

    def images(self, search: Tensor, which: Tensor) -> Tensor:
        delta = self.delta.flatten(2).index_select(0, search)
        target, source = (
            place[search, which][:, None].expand(-1, delta.shape[1], -1)
            for place in (self.target, self.source)
        )
        delta.scatter_(2, source, 0).scatter_(2, target, self.new[search, :, which])
        return self.moves.confined(delta.view(-1, *self.delta.shape[1:]), search)


class _MassMoves(Moves):
    """Windows of a smooth pattern that take over the mass of another window (L2 and L1)."""

    name: ClassVar[str]
    power: ClassVar[int]

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.draws = 5 + self.channels

    def first(self, source: RandomSource, ids: Tensor, restart: int) -> Tensor:
        """Five by five tiles, each with a pattern of random sign and orientation."""
        height, width = self.x.shape[2:]
        side = max(height // _TILES, 1)
        offset = max((height - side * _TILES) // 2, 0)
        delta = torch.zeros_like(self.x)
        for down in range(height // side):
            for right in range(width // side):
                path = (restart, 0, down, right)
                turned = source.uniform(ids, (1,), *path, 0)[..., None]
                signs = _signs(source.uniform(ids, (self.channels,), *path, 1))[..., None]
                tile = self._patterns(side, turned, signs).unflatten(2, (side, side))
                top, left = offset + down * side, offset + right * side
                room = delta[:, :, top : top + side, left : left + side]
                room += tile[:, :, : room.shape[2], : room.shape[3]]
        return self._inside(delta)

    def side(self, wanted: float, most: int) -> int:
        """See `Moves`: odd, 3 at least."""
        return min(max(round(wanted), 3) | 1, most)

    def propose(self, best: Tensor, side: int, numbers: Tensor) -> Proposals:
        delta = best - self.x
        to, out_of = corners(best, side, numbers), corners(best, side, numbers[..., 2:4])
        target, source = places(best, *to, side), places(best, *out_of, side)
        old, gone = values_at(delta, target), values_at(delta, source)
        shared = overlap(to[0] - out_of[0], to[1] - out_of[1], side)
        mass = self._mass(torch.cat([old, gone.masked_fill(shared[:, None], 0)], 3))
        spare = plain_length(self.name, delta)[:, None, None, None]
        turned, signs = numbers[..., 4:5], _signs(numbers[..., 5:])
        new = self._window_values(old, mass, spare, side, turned[:, None], signs.transpose(1, 2)[..., None])
        changes = torch.ones(target.shape[:2], dtype=torch.bool, device=best.device)
        return _Moved(changes, None, self, delta, target, source, new)

    def _window_values(
        self, old: Tensor, mass: Tensor, spent: Tensor, side: int, turned: Tensor, signs: Tensor
    ) -> Tensor:
        """What windows (..., P) get that held ``old``; both held the ``mass``, the images have ``spent`` so much."""
        new = self._patterns(side, turned, signs) + old / (_TINY + self._mass(old))
        return new / (_TINY + self._mass(new)) * self._budget(spent, mass)

    def _patterns(self, side: int, turned: Tensor, signs: Tensor) -> Tensor:
        """Patterns (..., P) of unit mass, transposed where ``turned`` (..., 1) > .5, times ``signs`` (..., 1)."""
        upright = pattern(side, self.power, self.x.dtype, self.x.device)
        return torch.where(turned > 0.5, upright.T.flatten(), upright.flatten()) * signs

    @abstractmethod
    def _mass(self, planes: Tensor) -> Tensor:
        """The length (..., 1) of each channel of ``planes`` (..., P)."""

    @abstractmethod
    def _budget(self, spent: Tensor, mass: Tensor) -> Tensor:
        """The length (n, ..., 1) a window may have, given the image's (n, 1, ...) and both windows' ``mass``."""

    @abstractmethod
    def _inside(self, delta: Tensor) -> Tensor:
        """Images (n, C, H, W) of ``delta``, inside ball and box."""

    @abstractmethod
    def confined(self, delta: Tensor, rows: Tensor) -> Tensor:
        """The same for ``delta`` (m, C, H, W) around the images ``rows`` (m,)."""


class _L2Moves(_MassMoves):
    """Mass is the sum of squares; proposals use up the whole radius."""

    name = "L2"
    power = 2

    def _mass(self, planes: Tensor) -> Tensor:
        return planes.square().sum(-1, keepdim=True).sqrt()

    def _budget(self, spent: Tensor, mass: Tensor) -> Tensor:
        spare = (per_sample(self.eps.flatten(), spent).square() - spent.square()).clamp_min(0)
        return (spare / self.channels + mass.square()).sqrt()

    def _inside(self, delta: Tensor) -> Tensor:
        unit = delta / (per_sample(plain_length("L2", delta), delta) + _TINY)
        return (self.x + unit * self.eps).clamp_(0, 1)

    def confined(self, delta: Tensor, rows: Tensor) -> Tensor:
        length = per_sample(get_norm("L2").length(delta), delta)
        scale = self.eps.index_select(0, rows) / (length + _TINY)
        return torch.addcmul(self.x.index_select(0, rows), delta, scale).clamp_(0, 1)


class _L1Moves(_MassMoves):
    """Mass is the sum of absolute values."""

    name = "L1"
    power = 4

    def _mass(self, planes: Tensor) -> Tensor:
        return planes.abs().sum(-1, keepdim=True)

    def _budget(self, spent: Tensor, mass: Tensor) -> Tensor:
        # A little less than there is, so that rounding leaves nothing to project.
        radius = self.eps * (1 - 2 * _MARGIN)
        spare = (per_sample(radius.flatten(), spent) - spent).clamp_min(0)
        return (spare / self.channels + mass) * self.channels

    def _inside(self, delta: Tensor) -> Tensor:
        return get_norm("L1").confine(self.x + delta, self.x, (self.eps * (1 - _MARGIN)).flatten())

    def confined(self, delta: Tensor, rows: Tensor) -> Tensor:
        x, eps = self.x.index_select(0, rows), self.eps.flatten().index_select(0, rows)
        return get_norm("L1").confine(x + delta, x, eps * (1 - _MARGIN))


_MOVES: dict[str, type[Moves]] = {"Linf": _LinfMoves, "L2": _L2Moves, "L1": _L1Moves}


def moves_for(problem: Problem) -> Moves:
    """The proposals of the problem's norm."""
    return _MOVES[problem.norm.name](problem)


def _signs(uniform: Tensor) -> Tensor:
    """-1 or +1 with equal chance, of ``uniform`` in [0, 1)."""
    return torch.sign(2 * uniform - 1)
