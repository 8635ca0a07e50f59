"""Batches that fit in memory, and many runs per sample that share them."""

import gc
import warnings
from collections.abc import Callable, Iterator
from copy import copy
from typing import Self, TypeVar

import torch
from torch import Tensor

from attacks.core.errors import AttackError, is_out_of_memory
from attacks.core.inputs import Problem

T = TypeVar("T")
NEVER = 2**31
_WAVE = 10  # steps


class Batches:
    """Runs work on consecutive batches of rows; where memory runs out it halves the batch, for good, and goes on.

    Attributes:
        size: the most images at once.
        rows: all rows (N,).
    """

    def __init__(self, x: Tensor, batch_size: int | None = None) -> None:
        """Batches of ``batch_size`` images like ``x`` (N, ...); None chooses by the image and the device.

        Raises:
            AttackError: ``batch_size`` is not positive.
        """
        if batch_size is not None and batch_size < 1:
            raise AttackError(f"batch_size must be at least 1, got {batch_size}; None chooses one")
        self.size = batch_size or default_batch_size(x)
        self.rows = torch.arange(len(x), device=x.device)

    def map(self, work: Callable[[Tensor], T], rows: Tensor | None = None) -> list[T]:
        """``work(part)`` for consecutive parts of ``rows`` (n,) or all; a part that ran out of memory is redone.

        Raises:
            AttackError: a single image does not fit in memory.
        """
        rows = self.rows if rows is None else rows
        results, start = [], 0
        while start < len(rows):
            part = rows[start : start + self.size]
            try:
                results.append(work(part))
                start += len(part)
                continue
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
            # Outside the handler, so that the failed attempt's tensors are no longer held by its traceback.
            if len(part) == 1:
                raise AttackError(
                    "a single image does not fit in memory; use a smaller network or another device"
                )
            self.size = len(part) // 2
            gc.collect()
            if rows.is_cuda:
                torch.cuda.empty_cache()
            warnings.warn(f"out of memory: going on with batches of {self.size} images", stacklevel=1)
        return results


def default_batch_size(x: Tensor) -> int:
    """Images at once: on a GPU enough to fill it, on a CPU few enough that activations stay in its caches."""
    pixels, most = (3 * 2**19, 4096) if x.is_cuda else (2**18, 128)
    return min(most, max(16, pixels // x[0].numel()))


def patient_batch_size(x: Tensor) -> int:
    """Samples at once of an attack that they leave one by one, and that passes `default_batch_size` of them on.

    More than pass at once, so that the few that stay long share their passes; on a CPU, where passes are small.
    """
    return default_batch_size(x) if x.is_cuda else min(512, max(16, 2**18 // x[0].numel()))


class Rows:
    """State of n runs: every tensor attribute has n rows, which `keep` selects together."""

    def keep(self, rows: Tensor) -> None:
        """Go on with these ``rows`` (mask (n,) or indices) alone; nested states follow."""
        if rows.dtype == torch.bool:  # once, for each mask makes a GPU wait
            count, rows = len(rows), rows.nonzero().squeeze(1)
            if len(rows) == count:
                return
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, value[rows])
            elif isinstance(value, Rows):
                setattr(self, name, value.taken(rows))

    def taken(self, rows: Tensor) -> Self:
        """A copy with these ``rows`` (mask (n,) or indices, repeats allowed)."""
        other = copy(self)
        other.keep(rows.nonzero().squeeze(1) if rows.dtype == torch.bool else rows)
        return other


def leave_every(x: Tensor) -> int:
    """Steps after which samples that are done leave: every one on a CPU; ten on a GPU, which asking makes wait."""
    return _WAVE if x.is_cuda else 1


class Searches(Rows):
    """n runs, several of which may work on the same sample; all leave when one has broken it.

    Attributes:
        row: the sample, an index into the problem (n,).
        slot: the place of this run among all that started together (n,).
        broke_at: the step that broke the sample, or `NEVER` (n,).
    """

    def __init__(self, row: Tensor) -> None:
        self.row, self.slot = row, torch.arange(len(row), device=row.device)
        self.broke_at = torch.full_like(row, NEVER)

    def first_to_break(self, samples: int) -> tuple[Tensor, Tensor]:
        """Which runs' samples are broken, and which runs broke them first, bool (n,); of so many ``samples``.

        Runs that go on until all leave together must not count what they find meanwhile.
        """
        first = self.row.new_full((samples,), NEVER).scatter_reduce_(0, self.row, self.broke_at, "amin")
        first = first[self.row]
        return first < NEVER, (self.broke_at == first) & (first < NEVER)


def split_rows(problem: Problem, rows: Tensor, tries: int) -> Iterator[Tensor]:
    """Parts of the samples ``rows`` (n,) that take so many ``tries`` each in lock-step."""
    yield from rows.split(max(1, patient_batch_size(problem.x) // tries)) if len(rows) else ()


def runs_of(rows: Tensor, group: range) -> tuple[Tensor, Tensor]:
    """The runs of these samples ``rows`` (n,) for every try of ``group``: sample and try of each, sample by sample."""
    tries = torch.arange(group.start, group.stop, device=rows.device)
    return rows.repeat_interleave(len(tries)), tries.repeat(len(rows))


def runs_in_turn(
    problem: Problem, targets: Tensor | None, restarts: int, all_at_once: bool, left: Callable[[], Tensor]
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor | None]]:
    """Tries of each sample that is ``left()`` (N,) bool: ``restarts``, towards each of its ``targets`` (N, k) if given.

    Yields samples (n,) whose runs go in lock-step, and of each run sample, try and target. The first try breaks most
    samples, so unless ``all_at_once`` it goes alone; the others share batches, where the first success ends all tries
    of that sample. What goes together does not depend on the batch size, so neither does the result.
    """
    tries = restarts * (1 if targets is None else targets.shape[1])
    alone = 0 if all_at_once else min(1, tries)
    for group in (range(alone), range(alone, tries)):
        if group:
            for part in split_rows(problem, left().nonzero().squeeze(1), len(group)):
                row, attempt = runs_of(part, group)
                yield part, row, attempt, None if targets is None else targets[row, attempt // restarts]
