"""Random numbers that belong to a sample: the draws for image i depend on (seed, sample id, path) alone.

An attack's `RandomSource` gives them; by default `SampleSource`, whose streams are each sample's own.

Every number is a hash (the splitmix64 finaliser of Steele et al. 2014) of a per-sample key and a counter, so there is
no state, no global seed, and no dependence on the batch size, the neighbours, the device or the order of calls.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


def _signed(word: int) -> int:
    """The 64-bit ``word`` as the signed integer of the same bits, for int64 tensors."""
    word &= 2**64 - 1
    return word - 2**64 if word >= 2**63 else word


_GOLDEN = 0x9E3779B97F4A7C15
_STEP = _signed(_GOLDEN)
_FIRST = _signed(0xBF58476D1CE4E5B9)
_SECOND = _signed(0x94D049BB133111EB)


def _mix_(bits: Tensor) -> Tensor:
    """Hash int64 ``bits`` in place; the masks make the arithmetic shifts logical."""
    bits ^= (bits >> 30) & (2**34 - 1)
    bits *= _FIRST
    bits ^= (bits >> 27) & (2**37 - 1)
    bits *= _SECOND
    bits ^= (bits >> 31) & (2**33 - 1)
    return bits


@dataclass(frozen=True)
class Draws:
    """The random streams of N samples, one int64 key each; build with `draws_for`, branch with `fork`.

    Drawing twice from the same object gives the same numbers: take a new branch for new numbers, for instance
    ``draws.fork(restart, step).uniform((3, 32, 32))``.
    """

    keys: Tensor

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, rows: Tensor | slice) -> Draws:
        """The streams of these rows (indices, mask or slice)."""
        return Draws(self.keys[rows])

    def fork(self, *path: int | Tensor) -> Draws:
        """Independent streams for this ``path`` of integers, each an int or an int64 tensor (N,)."""
        keys = _mix_(self.keys.clone())
        for word in path:
            # A splitmix64 state moves on by word + 1 steps.
            keys = _mix_(
                keys + ((word + 1) * _STEP if isinstance(word, Tensor) else _signed((word + 1) * _GOLDEN))
            )
        return Draws(keys)

    def bits(self, count: int) -> Tensor:
        """Uniform 64-bit words as int64 (N, count)."""
        counter = torch.arange(1, count + 1, device=self.keys.device) * _STEP
        return _mix_(self.keys[:, None] + counter)

    def uniform(self, shape: tuple[int, ...] = ()) -> Tensor:
        """float32 (N, *shape), uniform in [0, 1) on multiples of 2^-24."""
        return self._reshape(_fraction(self.bits(math.prod(shape)), 40), shape)

    def normal(self, shape: tuple[int, ...] = ()) -> Tensor:
        """float32 (N, *shape), standard normal by Box and Muller (1958): one 64-bit word gives one pair."""
        count = math.prod(shape)
        words = self.bits((count + 1) // 2)
        # In float64, so that vectorised and scalar kernels, which differ by an ulp, round to the same float32.
        radius = torch.sqrt(-2 * torch.log1p(-_fraction(words, 40, torch.float64)))
        angle = (2 * math.pi) * _fraction(words, 8, torch.float64)
        pair = torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)], dim=1)
        return self._reshape(pair[:, :count].float(), shape)

    def signs(self, shape: tuple[int, ...] = ()) -> Tensor:
        """float32 (N, *shape), -1 or +1 with equal chance; one word gives 64 of them."""
        count = math.prod(shape)
        shifts = torch.arange(64, device=self.keys.device)
        bits = (self.bits((count + 63) // 64)[:, :, None] >> shifts) & 1
        return self._reshape(bits.flatten(1)[:, :count].float() * 2 - 1, shape)

    def integers(self, high: int | Tensor, shape: tuple[int, ...] = ()) -> Tensor:
        """int64 (N, *shape), uniform in [0, high); ``high`` an int or int64 broadcastable to the result."""
        words = self._reshape((self.bits(math.prod(shape)) >> 1) & (2**63 - 1), shape)
        return words % high

    def permutation(self, count: int) -> Tensor:
        """int64 (N, count): every row a random order of 0..count-1."""
        return self.bits(count).argsort(dim=1)

    def _reshape(self, flat: Tensor, shape: tuple[int, ...]) -> Tensor:
        return flat.reshape(len(self.keys), *shape)


def draws_for(seed: int, sample_ids: Tensor) -> Draws:
    """The streams of the samples with these ids (int64 (N,)) under ``seed``."""
    keys = torch.full_like(sample_ids, _signed(seed * _GOLDEN))
    return Draws(_mix_(keys)).fork(sample_ids)


def _fraction(words: Tensor, shift: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """24 bits of each word, from bit ``shift`` up, as a fraction in [0, 1)."""
    return ((words >> shift) & (2**24 - 1)).to(dtype).mul_(2.0**-24)


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
