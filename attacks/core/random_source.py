"""Where an attack's random numbers come from: streams of each sample's own, or the original's single generator."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from attacks.core.errors import unknown_name
from attacks.core.inputs import Problem
from attacks.core.rng import Draws

RANDOM = ("sample", "original")


class Source(Protocol):
    """Random numbers for some rows of a problem.

    Attributes:
        original: reproduce the published implementation, arithmetic included.
    """

    original: bool

    def uniform(self, rows: Tensor, shape: tuple[int, ...], *path: int | Tensor) -> Tensor:
        """float32 (n, *shape), uniform in [0, 1), for these ``rows`` (n,); ``path`` names the purpose."""

    def normal(self, rows: Tensor, shape: tuple[int, ...], *path: int | Tensor) -> Tensor:
        """float32 (n, *shape), standard normal."""

    def shared(self, rows: Tensor, shape: tuple[int, ...], *path: int | Tensor) -> Tensor:
        """Uniform (n, *shape); the original draws one (1, *shape) for the whole batch where this is called."""


class SampleSource:
    """Each sample draws from its own stream, so neither batch size nor neighbours matter."""

    original = False

    def __init__(self, draws: Draws) -> None:
        self.draws = draws

    def uniform(self, rows: Tensor, shape: tuple[int, ...], *path: int | Tensor) -> Tensor:
        """See `Source`."""
        return self.draws[rows].fork(*path).uniform(shape)

    def normal(self, rows: Tensor, shape: tuple[int, ...], *path: int | Tensor) -> Tensor:
        """See `Source`."""
        return self.draws[rows].fork(*path).normal(shape)

    shared = uniform


class OriginalSource:
    """The draws of the published implementation: PyTorch's CPU generator, seeded anew for every batch.

    The generator is our own, so the caller's global random state is neither read nor changed.
    """

    original = True

    def __init__(self, seed: int, device: torch.device) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.device = device

    def uniform(self, rows: Tensor, shape: tuple[int, ...], *path: int | Tensor) -> Tensor:
        """See `Source`; ``path`` has no meaning here, the order of calls decides."""
        return torch.rand((len(rows), *shape), generator=self.generator).to(self.device)

    def normal(self, rows: Tensor, shape: tuple[int, ...], *path: int | Tensor) -> Tensor:
        """See `Source`."""
        return torch.randn((len(rows), *shape), generator=self.generator).to(self.device)

    def shared(self, rows: Tensor, shape: tuple[int, ...], *path: int | Tensor) -> Tensor:
        """See `Source`."""
        return torch.rand((1, *shape), generator=self.generator).to(self.device)


def check_random(random: str) -> None:
    """Raise an AttackError unless ``random`` is one of `RANDOM`."""
    if random not in RANDOM:
        raise unknown_name("random", random, RANDOM)


def source_for(random: str, seed: int, problem: Problem, stream: int) -> Source:
    """The source called ``random`` for ``problem``; ``stream`` keeps different attacks' draws apart.

    Raises:
        AttackError: ``random`` is not one of `RANDOM`.
    """
    check_random(random)
    if random == "original":
        return OriginalSource(seed, problem.x.device)
    return SampleSource(problem.draws(seed).fork(stream))
