"""Where an attack's random numbers come from: by default, streams of each sample's own."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from attacks.core.rng import draws_for


class RandomSource(Protocol):
    """Random numbers for some samples; give an attack one of your own to repeat the draws of another program.

    Both methods take the samples' ``ids`` (n,) int64 (an attack's ``sample_ids``), the ``shape`` of the numbers for
    each, and a ``path``: whole numbers, or int64 tensors (n,), which name what the numbers are for. The same ids and
    path must give the same numbers, whatever else is asked for, in whichever order. Paths are

    - APGD and FAB: (try,), counted over the restarts towards each target in turn;
    - Square: (restart, 0) for the stripes to start from at Linf; (restart, 0, row, column, 0) and (..., 1) for
      orientation and signs of a tile to start from at L2 and L1; (restart, 1, iteration) for a window: its corner
      (row, column), at L2 and L1 also the corner of the window whose mass it takes and its orientation, and a sign per
      channel.
    """

    def uniform(self, ids: Tensor, shape: tuple[int, ...], *path: int | Tensor) -> Tensor:
        """Floats (n, *shape), uniform in [0, 1)."""

    def normal(self, ids: Tensor, shape: tuple[int, ...], *path: int | Tensor) -> Tensor:
        """Floats (n, *shape), standard normal."""


@dataclass(frozen=True)
class SampleSource:
    """Each sample draws float32 from its own stream, so neither batch size nor neighbours matter.

    Attributes:
        seed: seeds all streams.
        stream: keeps the draws of different attacks apart.
    """

    seed: int
    stream: int

    def uniform(self, ids: Tensor, shape: tuple[int, ...], *path: int | Tensor) -> Tensor:
        """See `RandomSource`."""
        return draws_for(self.seed, ids).fork(self.stream).fork(*path).uniform(shape)

    def normal(self, ids: Tensor, shape: tuple[int, ...], *path: int | Tensor) -> Tensor:
        """See `RandomSource`."""
        return draws_for(self.seed, ids).fork(self.stream).fork(*path).normal(shape)
