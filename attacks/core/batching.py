"""Splitting work into batches that fit in memory."""

import gc
import warnings
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from attacks.core.errors import AttackError

T = TypeVar("T")


class Batches:
    """Runs work on consecutive batches of rows; where memory runs out it halves the batch, for good, and goes
    on.

    Attributes:
        size: the most images at once.
    """

    def __init__(self, x: Tensor, batch_size: int | None = None) -> None:
        """Batches of ``batch_size`` images like ``x`` (N, ...); None chooses by the image and the device.

        Raises:
            AttackError: ``batch_size`` is not positive.
        """
        if batch_size is not None and batch_size < 1:
            raise AttackError(f"batch_size must be at least 1, got {batch_size}; None chooses one")
        self.size = batch_size or default_batch_size(x)

    def map(self, work: Callable[[Tensor], T], rows: Tensor) -> list[T]:
        """``work(part)`` for consecutive parts of ``rows`` (n,), in order; a part that ran out of memory is
        redone.

        Raises:
            AttackError: a single image does not fit in memory.
        """
        results = []
        start = 0
        while start < len(rows):
            part = rows[start : start + self.size]
            try:
                results.append(work(part))
                start += len(part)
                continue
            except RuntimeError as error:
                if not _out_of_memory(error):
                    raise
            # Outside the handler, so that the failed attempt's tensors are no longer held by its traceback.
            self._halve(len(part), rows.device)
        return results

    def _halve(self, tried: int, device: torch.device) -> None:
        if tried == 1:
            raise AttackError(
                "a single image does not fit in memory; use a smaller network or another device"
            )
        self.size = tried // 2
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        warnings.warn(f"out of memory: going on with batches of {self.size} images", stacklevel=2)


def default_batch_size(x: Tensor) -> int:
    """Images at once: on a GPU enough to fill it, on a CPU few enough that activations stay in its caches."""
    pixels, most = (3 * 2**19, 4096) if x.is_cuda else (2**18, 128)
    return min(most, max(16, pixels // x[0].numel()))


def patient_batch_size(x: Tensor) -> int:
    """Samples at once of an attack that they leave one by one, and that passes `default_batch_size` of them on.

    More than pass at once, so that the few that stay long share their passes; on a CPU, where passes are small.
    """
    return default_batch_size(x) if x.is_cuda else min(512, max(16, 2**18 // x[0].numel()))


def _out_of_memory(error: RuntimeError) -> bool:
    """Whether memory ran out; the CPU allocator and cuDNN say so by their message alone."""
    signs = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, torch.OutOfMemoryError) or any(sign in str(error) for sign in signs)
