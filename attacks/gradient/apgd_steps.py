"""How APGD starts, steps and adapts its step size in each norm: the state of n runs at a time.

Linf and L2 follow Croce and Hein 2020 (arXiv 2003.01690, Algorithm 1), L1 Croce and Hein 2021 (arXiv 2103.01208).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from attacks.core.batching import Rows
from attacks.core.inputs import Problem
from attacks.core.norms import Norm, get_norm, per_sample, plain_length
from attacks.core.rng import RandomSource

_TINY = 1e-12
_MOMENTUM = 0.25


class Steps(Rows, ABC):
    """The step rule of n runs around the images ``x`` (n, ...) with radii ``eps`` (n, 1, ...).

    Attributes:
        largest: the step sizes to begin with (n, 1, ...).
        step: the present ones.
        window: iterations until they are judged next.
    """

    norm: ClassVar[Norm]
    first: ClassVar[float]
    step: Tensor
    window: int

    def __init__(self, x: Tensor, eps: Tensor, shrink: float) -> None:
        self.x = x
        self.eps = per_sample(eps, x)
        self.largest = shrink * self.first * self.eps

    @abstractmethod
    def start(self, source: RandomSource, ids: Tensor, attempt: Tensor) -> Tensor:
        """Random points (n, ...) to start from, in the ball; ``attempt`` (n,) counts the tries of a sample."""

    def enter(self, point: Tensor) -> Tensor:
        """``point`` (n, ...) of `start`, or of a stage with larger radii, brought into this ball and box."""
        return point.clamp(0, 1)

    @abstractmethod
    def nearest(self, point: Tensor) -> Tensor:
        """A point (n, ...) inside ball and box near ``point``."""

    @abstractmethod
    def begin(self, point: Tensor, loss: Tensor, iterations: int) -> None:
        """Get ready for ``iterations`` steps from ``point`` (n, ...), where the losses are ``loss`` (n,)."""

    @abstractmethod
    def inputs(self, point: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
        """What `advance` needs for the step from ``point`` (n, ...), where the gradient is ``grad`` (n, ...)."""

    @abstractmethod
    def advance(self, *inputs: Tensor) -> Tensor:
        """The next points (n, ...), inside ball and box; changes no state, for it may be replayed."""

    @abstractmethod
    def observe(self, losses: list[Tensor]) -> None:
        """Note the losses (n,) at each of the new points."""

    @abstractmethod
    def judge(self, best: Tensor, best_loss: Tensor) -> Tensor:
        """Adapt step sizes; bool (n,), the runs that go back to their ``best`` point (n, ...)."""


class _MomentumSteps(Steps):
    """Steps with momentum whose size is halved when the loss rises too rarely (Linf and L2).

    The windows are 22 % of the iterations, then shrink by 3 % down to 6 %. A size is halved when the loss rose in at
    most ``rho`` of the window's steps, or when neither size nor best loss changed since the last window.
    """

    rho = 0.75
    first = 2.0

    def begin(self, point: Tensor, loss: Tensor, iterations: int) -> None:
        self.window = max(int(0.22 * iterations), 1)
        self.shorter = max(int(0.03 * iterations), 1)
        self.shortest = max(int(0.06 * iterations), 1)
        self.step = self.largest
        self.previous: Tensor | None = None
        self.rises = torch.zeros_like(loss)
        # The published code compares the first loss with a zero of its still empty history.
        self.last_loss = torch.zeros_like(loss)
        self.last_best = loss
        self.halved = torch.ones_like(loss, dtype=torch.bool)

    def inputs(self, point: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
        previous, self.previous = self.previous, point
        return (point, grad, self.step) if previous is None else (point, grad, self.step, previous)

    def advance(self, *inputs: Tensor) -> Tensor:
        point, grad, step, *previous = inputs
        moved = self.nearest(torch.addcmul(point, step, self.norm.step(grad)))
        if previous:
            # point + 3/4 (moved - point) + 1/4 (point - previous)
            ahead = torch.lerp(previous[0], point, 2.0)
            moved = self.nearest(torch.lerp(ahead, moved, 1 - _MOMENTUM))
        return moved

    def observe(self, losses: list[Tensor]) -> None:
        if len(losses) == 1:
            self.rises += losses[0] > self.last_loss
        else:
            history = torch.stack([self.last_loss, *losses])
            self.rises += (history[1:] > history[:-1]).sum(0)
        self.last_loss = losses[-1]

    def judge(self, best: Tensor, best_loss: Tensor) -> Tensor:
        stuck = ~self.halved & (self.last_best >= best_loss)
        self.halved = (self.rises <= self.rho * self.window) | stuck
        self.step = torch.where(per_sample(self.halved, self.step), self.step / 2, self.step)
        self.last_best = best_loss
        self.rises = torch.zeros_like(self.rises)
        self.window = max(self.window - self.shorter, self.shortest)
        return self.halved


class _LinfSteps(_MomentumSteps):
    """Sign steps inside a box."""

    norm = get_norm("Linf")

    def __init__(self, x: Tensor, eps: Tensor, shrink: float) -> None:
        super().__init__(x, eps, shrink)
        self.lower = (x - self.eps).clamp_(min=0)
        self.upper = (x + self.eps).clamp_(max=1)

    def start(self, source: RandomSource, ids: Tensor, attempt: Tensor) -> Tensor:
        """Uniform noise, scaled so that its largest entry reaches the ball's edge."""
        noise = 2 * source.uniform(ids, tuple(self.x.shape[1:]), attempt) - 1
        largest = noise.abs().flatten(1).amax(1)
        return self.x + self.eps * (noise / (per_sample(largest, noise) + _TINY))

    def nearest(self, point: Tensor) -> Tensor:
        return torch.clamp(point, self.lower, self.upper)


class _L2Steps(_MomentumSteps):
    """Steps along the gradient inside a sphere."""

    norm = get_norm("L2")

    def __init__(self, x: Tensor, eps: Tensor, shrink: float) -> None:
        super().__init__(x, eps, shrink)
        self.least = self.eps.clamp_min(torch.finfo(x.dtype).tiny)

    def start(self, source: RandomSource, ids: Tensor, attempt: Tensor) -> Tensor:
        """A uniform direction, on the sphere."""
        noise = source.normal(ids, tuple(self.x.shape[1:]), attempt)
        return self.x + self.eps * (noise / (_length(noise) + _TINY))

    def nearest(self, point: Tensor) -> Tensor:
        delta = point - self.x
        share = self.eps / torch.maximum(_length(delta), self.least)
        return torch.addcmul(self.x, delta, share).clamp_(0, 1)


class _L1Steps(Steps):
    """Steps on the pixels of largest gradient only; how many follows the sparsity of the best point."""

    norm = get_norm("L1")
    first = 1.0

    def start(self, source: RandomSource, ids: Tensor, attempt: Tensor) -> Tensor:
        """Normal noise, projected."""
        return self.nearest(self.x + source.normal(ids, tuple(self.x.shape[1:]), attempt))

    def enter(self, point: Tensor) -> Tensor:
        return self.nearest(point).clamp(0, 1)

    def nearest(self, point: Tensor) -> Tensor:
        return self.norm.confine(point, self.x, self.eps.flatten())

    def begin(self, point: Tensor, loss: Tensor, iterations: int) -> None:
        self.window = max(int(0.04 * iterations), 1)
        self.step, self.least = self.largest, self.largest / 10
        self.changed = _changed(point, self.x)
        self.share = self.changed / self.x[0].numel() / 1.5

    def inputs(self, point: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
        return point, grad, self.step, self.share

    def advance(self, *inputs: Tensor) -> Tensor:
        point, grad, step, share = inputs
        pixels = self.x[0].numel()
        size = grad.abs().flatten(1)
        kth = ((1 - share) * pixels).clamp(0, pixels - 1).long()
        least = size.sort(dim=1).values.gather(1, kth[:, None])
        direction = torch.where(size >= least, grad.flatten(1).sign(), 0).view_as(grad)
        count = per_sample(self.norm.length(direction), grad)
        return self.nearest(torch.addcmul(point, step / (count + 1e-10), direction))

    def observe(self, losses: list[Tensor]) -> None:
        """See `Steps`; losses do not matter here."""

    def judge(self, best: Tensor, best_loss: Tensor) -> Tensor:
        changed = _changed(best, self.x)
        sparser = changed / self.changed < 0.95
        self.share = changed / self.x[0].numel() / 1.5
        shorter = torch.maximum(self.step / 1.5, self.least)
        self.step = torch.where(per_sample(sparser, self.step), self.largest, shorter)
        self.changed = changed
        return sparser


_STEPS: dict[str, type[Steps]] = {"Linf": _LinfSteps, "L2": _L2Steps, "L1": _L1Steps}


def steps_for(problem: Problem, rows: Tensor, factor: float = 1.0, *, shrink: float = 1.0) -> Steps:
    """The step rule of the problem's norm for the samples ``rows`` (n,), which may repeat.

    ``factor`` multiplies their radii, ``shrink`` the first step size, for runs that go on from a good point.
    """
    return _STEPS[problem.norm.name](problem.x[rows], factor * problem.eps[rows], shrink)


def radii_schedule(norm: str, iterations: int) -> list[tuple[float, int]]:
    """(factor of eps, iterations) of each stage: one at Linf and L2; at L1 3 eps, 2 eps and eps (30, 30, 40 %)."""
    if norm != "L1":
        return [(1.0, iterations)]
    third = math.ceil(0.3 * iterations)
    return [(3.0, third), (2.0, third), (1.0, iterations - 2 * third)]


def _length(delta: Tensor) -> Tensor:
    return per_sample(plain_length("L2", delta), delta)


def _changed(point: Tensor, x: Tensor) -> Tensor:
    """How many pixels differ, (n,)."""
    return (point != x).flatten(1).sum(1)
