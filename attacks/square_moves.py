"""What Square proposes in each norm: first images, windows and what they are filled with, for n images at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from attacks.original import l1_correction, plain_length
from attacks.problem import Problem
from attacks.runs import Rows
from attacks.sources import Source
from attacks.threat import get_norm, per_sample

_TINY = 1e-12
_TILES = 5


class Moves(Rows, ABC):
    """Proposals around the images ``x`` (n, C, H, W) with radii ``eps`` (n, 1, 1, 1).

    Attributes:
        shared_draws, own_draws: uniform numbers that `propose` needs per sample; the original draws the first for the
            whole batch at once.
    """

    shared_draws: int
    own_draws: int

    def __init__(self, problem: Problem, original: bool) -> None:
        self.x = problem.x
        self.eps = per_sample(problem.eps, problem.x)
        self.original = original
        self.channels = problem.x.shape[1]

    @abstractmethod
    def first(self, source: Source, rows: Tensor, restart: int) -> Tensor:
        """Images (n, C, H, W) to start from."""

    @abstractmethod
    def side(self, wanted: float, most: int) -> int:
        """The side of a window near ``wanted`` pixels, at most ``most``."""

    @abstractmethod
    def propose(self, best: Tensor, side: int, numbers: Tensor) -> Tensor:
        """New images (n, C, H, W), made of ``best`` with the uniform ``numbers`` (n, k)."""

    def propose_each(self, best: Tensor, side: int, numbers: Tensor) -> Tensor:
        """New images (n, K, C, H, W): K of each of ``best`` (n, C, H, W), with the uniform ``numbers`` (n, K, k)."""
        count = numbers.shape[1]
        if count == 1:
            return self.propose(best, side, numbers[:, 0])[:, None]
        each = torch.arange(len(best), device=best.device).repeat_interleave(count)
        return self.taken(each).propose(best[each], side, numbers.flatten(0, 1)).unflatten(0, (-1, count))


class LinfMoves(Moves):
    """Windows of one colour: every channel at its upper or lower bound."""

    own_draws = 0

    def __init__(self, problem: Problem, original: bool) -> None:
        super().__init__(problem, original)
        self.shared_draws = 2 + self.channels
        self.lower = (self.x - self.eps).clamp_(min=0)
        self.upper = (self.x + self.eps).clamp_(max=1)

    def first(self, source: Source, rows: Tensor, restart: int) -> Tensor:
        """Vertical stripes, one pixel wide."""
        stripes = _signs(source.uniform(rows, (self.channels, 1, self.x.shape[3]), restart, 0))
        return (self.x + self.eps * stripes).clamp_(0, 1)

    def side(self, wanted: float, most: int) -> int:
        """See `Moves`."""
        return min(max(round(wanted), 1), most)

    def propose(self, best: Tensor, side: int, numbers: Tensor) -> Tensor:
        """See `Moves`."""
        if not self.original:
            return self.propose_each(best, side, numbers[:, None])[:, 0]
        inside = _inside(best, *_corner(best, side, numbers), side)
        change = 2 * self.eps * _signs(numbers[:, 2:, None, None]) * inside
        return torch.clamp(best + change, self.lower, self.upper)

    def propose_each(self, best: Tensor, side: int, numbers: Tensor) -> Tensor:
        """See `Moves`."""
        corners = _corner(best, side, numbers.flatten(0, 1))
        inside = _inside(best, *corners, side).unflatten(0, numbers.shape[:2])
        up = numbers[..., 2:, None, None] > 0.5
        return torch.where(inside, torch.where(up, self.upper[:, None], self.lower[:, None]), best[:, None])


class MassMoves(Moves):
    """Windows of a smooth pattern that take over the mass of another window (L2 and L1)."""

    shared_draws = 5
    name: ClassVar[str]
    power: ClassVar[int]

    def __init__(self, problem: Problem, original: bool) -> None:
        super().__init__(problem, original)
        self.own_draws = self.channels

    def first(self, source: Source, rows: Tensor, restart: int) -> Tensor:
        """Five by five tiles, each with a pattern of random sign and orientation."""
        height, width = self.x.shape[2:]
        side = max(height // _TILES, 1)
        offset = max((height - side * _TILES) // 2, 0)
        delta = torch.zeros_like(self.x)
        for down in range(height // side):
            for right in range(width // side):
                path = (restart, 0, down, right)
                turned = source.shared(rows, (1,), *path, 0)
                signs = _signs(source.uniform(rows, (self.channels,), *path, 1))
                tile = self._patterns(side, turned, signs).unflatten(2, (side, side))
                top, left = offset + down * side, offset + right * side
                room = delta[:, :, top : top + side, left : left + side]
                room += tile[:, :, : room.shape[2], : room.shape[3]]
        return self._inside(delta)

    def side(self, wanted: float, most: int) -> int:
        """See `Moves`: odd, 3 at least."""
        return min(max(round(wanted), 3) | 1, most)

    def propose(self, best: Tensor, side: int, numbers: Tensor) -> Tensor:
        """See `Moves`."""
        delta = best - self.x
        target = _window(best, *_corner(best, side, numbers), side)
        source = _window(best, *_corner(best, side, numbers[:, 2:4]), side)
        planes = delta.flatten(2)
        both = torch.zeros_like(planes[:, :1]).scatter_(2, target, 1).scatter_(2, source, 1)
        mass = self._mass(planes * both)
        spare = plain_length(self.name, delta)[:, None, None]

        target, source = (place.expand(-1, self.channels, -1) for place in (target, source))
        old = planes.gather(2, target)
        pattern = self._patterns(side, numbers[:, 4:5], _signs(numbers[:, 5:]))
        new = pattern + old / (_TINY + self._mass(old))
        new = new / (_TINY + self._mass(new)) * self._budget(spare, mass)
        moved = planes.scatter(2, source, 0).scatter_(2, target, new)
        return self._inside(moved.view_as(delta))

    def _patterns(self, side: int, turned: Tensor, signs: Tensor) -> Tensor:
        """Patterns (n, C, side * side) of unit mass; transposed where ``turned`` (n, 1) > .5, with ``signs`` (n, C)."""
        pattern = _pattern(side, self.power).to(self.x)
        turned = (turned > 0.5)[:, :, None]
        upright, across = pattern.flatten(), pattern.T.flatten()
        return torch.where(turned, across, upright) * signs[:, :, None]

    @abstractmethod
    def _mass(self, planes: Tensor) -> Tensor:
        """The length (n, C, 1) of each channel of ``planes`` (n, C, P)."""

    @abstractmethod
    def _budget(self, spent: Tensor, mass: Tensor) -> Tensor:
        """The length (n, C, 1) a channel's window may have, given the image's (n, 1, 1) and both windows' ``mass``."""

    @abstractmethod
    def _inside(self, delta: Tensor) -> Tensor:
        """Images (n, C, H, W) of ``delta``, inside ball and box."""


class L2Moves(MassMoves):
    """Mass is the sum of squares; proposals use up the whole radius."""

    name = "L2"
    power = 2

    def _mass(self, planes: Tensor) -> Tensor:
        return planes.square().sum(2, keepdim=True).sqrt()

    def _budget(self, spent: Tensor, mass: Tensor) -> Tensor:
        spare = (self.eps.flatten(1)[:, :, None].square() - spent.square()).clamp_min(0)
        return (spare / self.channels + mass.square()).sqrt()

    def _inside(self, delta: Tensor) -> Tensor:
        unit = delta / (per_sample(plain_length("L2", delta), delta) + _TINY)
        return (self.x + unit * self.eps).clamp_(0, 1)


class L1Moves(MassMoves):
    """Mass is the sum of absolute values."""

    name = "L1"
    power = 4

    def _mass(self, planes: Tensor) -> Tensor:
        return planes.abs().sum(2, keepdim=True)

    def _budget(self, spent: Tensor, mass: Tensor) -> Tensor:
        spare = (self.eps.flatten(1)[:, :, None] - spent).clamp_min(0)
        return (spare / self.channels + mass) * self.channels

    def _inside(self, delta: Tensor) -> Tensor:
        eps = self.eps * (1 - 1e-6)
        if self.original:
            return self.x + delta + l1_correction(self.x, delta, eps)
        return get_norm("L1").confine(self.x + delta, self.x, eps.flatten())


_MOVES: dict[str, type[Moves]] = {"Linf": LinfMoves, "L2": L2Moves, "L1": L1Moves}


def moves_for(problem: Problem, original: bool) -> Moves:
    """The proposals of the problem's norm."""
    return _MOVES[problem.norm.name](problem, original)


def _signs(uniform: Tensor) -> Tensor:
    """-1 or +1 with equal chance, of ``uniform`` in [0, 1)."""
    return torch.sign(2 * uniform - 1)


def _corner(images: Tensor, side: int, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Top rows and left columns (n,) of windows; as published, the last possible place is never taken."""
    height, width = images.shape[2:]
    return ((height - side) * uniform[:, 0]).long(), ((width - side) * uniform[:, 1]).long()


def _inside(images: Tensor, top: Tensor, left: Tensor, side: int) -> Tensor:
    """True inside the windows: (n, 1, H, W) for ``images`` (n, C, H, W)."""
    rows, columns = (_bands(size, side, images.device) for size in images.shape[2:])
    return rows[top][:, None, :, None] & columns[left][:, None, None, :]


@lru_cache(maxsize=64)
def _bands(size: int, side: int, device: torch.device) -> Tensor:
    """Row p is true at ``side`` of ``size`` places from p on; bool (size, size)."""
    ahead = torch.arange(size, device=device) - torch.arange(size, device=device)[:, None]
    return (ahead >= 0) & (ahead < side)


def _window(images: Tensor, top: Tensor, left: Tensor, side: int) -> Tensor:
    """Places (n, 1, side * side) of the windows' pixels in the flattened planes of ``images``."""
    steps = torch.arange(side, device=images.device)
    rows, columns = top[:, None] + steps, left[:, None] + steps
    return (rows[:, :, None] * images.shape[3] + columns[:, None, :]).flatten(1)[:, None]


@lru_cache(maxsize=64)
def _pattern(side: int, power: int) -> Tensor:
    """Two opposite bumps, one above the other, (side, side); L2 mass 1 for power 2, L1 mass 1 for power 4."""
    above, below = _bump(side // 2, side, power), _bump(side - side // 2, side, power)
    return _unit_mass(torch.cat([above, -below]), power)


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
