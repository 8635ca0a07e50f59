"""What Square proposes in each norm: first images, windows and what they are filled with, for n images at a time."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from attacks.core.batching import Rows
from attacks.core.inputs import Problem
from attacks.core.norms import get_norm, per_sample, plain_length
from attacks.core.rng import RandomSource

_TINY = 1e-12
_MARGIN = 1e-6
_TILES = 5
_MOST_IDS = 2**20


@dataclass(frozen=True)
class Proposals:
    """K windows for each of n images, of which new images are made when asked for; or one finished image for each."""

    changes: Tensor  #: bool (n, K), whether the window changes anything
    base: Tensor  #: what windows are set into (n, C, H, W): images, or perturbations
    place: Tensor | None = None  #: where in its planes (n, K, P); None if ``base`` is finished
    new: Tensor | None = None  #: the windows' values (n, C, K, P)
    emptied: Tensor | None = None  #: places (n, K, P) that become 0 before
    confined: Callable[[Tensor, Tensor], Tensor] | None = (
        None  #: makes images of perturbations; see `_MassMoves`
    )
    ids: Tensor | None = (
        None  #: int64 (n, K), equal for equal windows of an image; None where hardly any two are
    )

    def images(self, search: Tensor, which: Tensor) -> Tensor:
        """The images (m, C, H, W) that the ``which``-th (m,) windows of the images ``search`` (m,) make."""
        if self.place is None or self.new is None:
            return self.base[search]
        planes = self.base.flatten(2).index_select(0, search)

        def everywhere(place: Tensor) -> Tensor:
            return place[search, which][:, None].expand(-1, planes.shape[1], -1)

        if self.emptied is not None:
            planes.scatter_(2, everywhere(self.emptied), 0)
        planes.scatter_(2, everywhere(self.place), self.new[search, :, which])
        made = planes.view(-1, *self.base.shape[1:])
        return made if self.confined is None else self.confined(made, search)


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
        top, left = _corners(best, side, numbers)
        place = _places(best, top, left, side)
        old, lower, upper = (_values_at(image, place) for image in (best, self.lower, self.upper))
        up = numbers[..., 2:] > 0.5
        new = torch.where(up.transpose(1, 2)[..., None], upper, lower)
        changes = (new != old).any(3).any(1)
        ids = None
        if self.distinct():
            colour = up.long() << torch.arange(self.channels, device=up.device)
            ids = ((top * best.shape[3] + left) << self.channels) + colour.sum(2)
        return Proposals(changes, best, place, new, ids=ids)

    def distinct(self) -> int:
        count = self.x.shape[2:].numel() << self.channels
        return 0 if count > _MOST_IDS else count


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
        to, out_of = _corners(best, side, numbers), _corners(best, side, numbers[..., 2:4])
        target, source = _places(best, *to, side), _places(best, *out_of, side)
        old, gone = _values_at(delta, target), _values_at(delta, source)
        shared = _overlap(to[0] - out_of[0], to[1] - out_of[1], side)
        mass = self._mass(torch.cat([old, gone.masked_fill(shared[:, None], 0)], 3))
        spent = plain_length(self.name, delta)[:, None, None, None]
        turned, signs = numbers[..., 4:5], _signs(numbers[..., 5:])
        patterns = self._patterns(side, turned[:, None], signs.transpose(1, 2)[..., None])
        new = patterns + old / (_TINY + self._mass(old))
        new = new / (_TINY + self._mass(new)) * self._budget(spent, mass)
        changes = torch.ones(target.shape[:2], dtype=torch.bool, device=best.device)
        return Proposals(changes, delta, target, new, source, self.confined)

    def _patterns(self, side: int, turned: Tensor, signs: Tensor) -> Tensor:
        """Patterns (..., P) of unit mass, transposed where ``turned`` (..., 1) > .5, times ``signs`` (..., 1)."""
        upright = _pattern(side, self.power, self.x.dtype, self.x.device)
        return torch.where(turned > 0.5, upright.T.flatten(), upright.flatten()) * signs

    @abstractmethod
    def _mass(self, planes: Tensor) -> Tensor:
        """The length (..., 1) of each channel of ``planes`` (..., P)."""

    @abstractmethod
    def _budget(self, spent: Tensor, mass: Tensor) -> Tensor:
        """The length (n, ..., 1) a window may have, given the image's (n, 1, ...) and both windows' ``mass``."""

    @abstractmethod
    def confined(self, delta: Tensor, rows: Tensor) -> Tensor:
        """Images (m, C, H, W) of ``delta`` (m, C, H, W) around the images ``rows`` (m,), inside ball and box."""

    def _inside(self, delta: Tensor) -> Tensor:
        """The same for ``delta`` (n, C, H, W) around all images, to start from."""
        return self.confined(delta, torch.arange(len(delta), device=delta.device))


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


def _corners(images: Tensor, side: int, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Top rows and left columns (...) of windows, of ``uniform`` (..., 2 or more); as published, the last possible
    place is never taken.
    """
    height, width = images.shape[2:]
    return ((height - side) * uniform[..., 0]).long(), ((width - side) * uniform[..., 1]).long()


def _places(images: Tensor, top: Tensor, left: Tensor, side: int) -> Tensor:
    """Places (..., side * side) of the windows' pixels in the flattened planes of ``images``; corners (...)."""
    width = images.shape[3]
    steps = torch.arange(side, device=images.device)
    return (top * width + left)[..., None] + (steps[:, None] * width + steps).flatten()


def _values_at(images: Tensor, place: Tensor) -> Tensor:
    """What ``images`` (n, C, H, W) hold at the places (n, K, P) of their planes: (n, C, K, P)."""
    planes = images.flatten(2)
    everywhere = place.flatten(1)[:, None].expand(-1, planes.shape[1], -1)
    return planes.gather(2, everywhere).unflatten(2, place.shape[1:])


def _overlap(down: Tensor, right: Tensor, side: int) -> Tensor:
    """Which pixels of windows also belong to others whose corners lie so far ``down`` and ``right`` (...) of theirs:
    bool (..., side * side).
    """
    steps = torch.arange(side, device=down.device)
    rows, columns = steps - down[..., None], steps - right[..., None]
    down_in, right_in = ((place >= 0) & (place < side) for place in (rows, columns))
    return (down_in[..., :, None] & right_in[..., None, :]).flatten(-2)


@lru_cache(maxsize=64)
def _pattern(
    side: int, power: int, dtype: torch.dtype = torch.float32, device: torch.device | None = None
) -> Tensor:
    """Two opposite bumps, one above the other, (side, side); L2 mass 1 for power 2, L1 mass 1 for power 4."""
    above, below = _bump(side // 2, side, power), _bump(side - side // 2, side, power)
    return _unit_mass(torch.cat([above, -below]), power).to(device, dtype)


def _bump(height: int, width: int, power: int) -> Tensor:
    """A bump of nested rectangles around the middle, the k-th adding 1 / k^power."""
    rows, columns = torch.arange(height) - height // 2, torch.arange(width) - width // 2
    ring = torch.maximum(rows.abs()[:, None], columns.abs()[None, :])
    bump = torch.zeros(height, width)
    for k in range(max(height // 2, width // 2) + 1):
        bump += (ring <= k) * (1 / torch.tensor([k + 1.0]) ** power)
    return _unit_mass(bump, power)


def _unit_mass(pattern: Tensor, power: int) -> Tensor:
    return pattern / (pattern.square().sum().sqrt() if power == 2 else pattern.abs().sum())
