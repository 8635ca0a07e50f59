"""Forward and backward passes per sample, and gradients that had to be repaired; a GPU is asked as rarely as can be."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class Repaired(NamedTuple):
    """A gradient (n, ...) without such entries, and the largest entry (n,) of each sample before and after."""

    grad: Tensor
    before: Tensor
    after: Tensor

    @property
    def odd(self) -> Tensor:
        """Which samples had such entries, bool (n,)."""
        return ~(self.before < torch.inf)  # also where it is NaN

    @property
    def blind(self) -> Tensor:
        """Which samples had nothing else, but zeros, bool (n,)."""
        return self.odd & (self.after == 0)


def repair(grad: Tensor) -> Repaired | None:
    """Count NaN as 0 and infinity as the largest finite entry of the sample, sign kept (a tiny one where that is 0).

    Returns None where nothing was to be done. A GPU is never waited for: there all gradients take the same way.

    Args:
        grad: (n, ...).
    """
    if not grad.is_cuda and bool(grad.sum().isfinite()):
        return None
    largest = partial(torch.linalg.vector_norm, ord=torch.inf, dim=tuple(range(1, grad.ndim)))
    tiny = torch.finfo(grad.dtype).tiny
    limit = largest(grad.nan_to_num(nan=0.0, posinf=tiny, neginf=tiny), keepdim=True)
    repaired = grad.nan_to_num(nan=0.0).clamp_(-limit, limit)
    return Repaired(repaired, largest(grad), limit.flatten())


class PassCounts:
    """Counts for N samples; passes of the same tensor of rows are summed up before the device hears of them."""

    def __init__(self, count: int, samples: int, device: torch.device) -> None:
        """Start at 0 for ``count`` samples, whose gradients are means over ``samples`` passes."""
        self.samples = samples
        # Forward and backward passes; gradients with entries that are not finite, and those with nothing else.
        self._counts = torch.zeros(4, count, dtype=torch.int64, device=device)
        # What is not yet in it: passes of each of these rows, and which of their gradients were repaired.
        self._rows: Tensor | None = None
        self._passes = [0, 0]
        self._repairs: list[Repaired] = []

    @property
    def queries(self) -> Tensor:
        """Forward passes so far (N,) int64."""
        return self._settled()[0]

    @property
    def backwards(self) -> Tensor:
        """Backward passes so far (N,) int64."""
        return self._settled()[1]

    def trace(self) -> dict[str, Tensor]:
        """What to know of the gradients so far, per sample.

        "nonfinite_gradient" (N,) is the share of them with infinite or NaN entries, "no_gradient" (N,) bool says that
        there was none with anything else: such a sample was not attacked by them.
        """
        _, backwards, odd, blind = self._settled()
        return {
            "nonfinite_gradient": odd / backwards.clamp_min(1),
            "no_gradient": (backwards > 0) & (blind == backwards),
        }

    def _count(self, rows: Tensor | None, queries: int, backwards: int = 0) -> None:
        """Count passes of the ``rows`` (n,), which may name a sample repeatedly; None for all."""
        if rows is not self._rows:
            self._settled()
            self._rows = rows
        self._passes = [self._passes[0] + queries, self._passes[1] + backwards]

    def repaired(self, grad: Tensor, rows: Tensor | None, each: int = 1) -> Tensor:
        """The gradients (n * each, ...), so many of each row, with finite entries alone; the others are noted."""
        found = repair(grad)
        if found is None:
            return grad
        self._count(rows, 0)
        largest = (values.view(-1, each).unbind(1) for values in found[1:])
        self._repairs += (Repaired(grad[:0], *pair) for pair in zip(*largest, strict=True))
        return found.grad

    def uncounted(self, step: Callable[[], T]) -> tuple[T, Callable[[], None]]:
        """What ``step()`` gives, its passes not counted, and what counts them, for what repeats the step."""
        kept = self._passes, self._repairs
        self._passes, self._repairs = [0, 0], []
        try:
            made = step()
        finally:
            passes, repairs = self._passes, self._repairs
            self._passes, self._repairs = kept

        def count() -> None:
            self._passes = [have + more for have, more in zip(self._passes, passes, strict=True)]
            self._repairs += (Repaired(*(one.clone() for one in found)) for found in repairs)

        return made, count

    def _settled(self) -> Tensor:
        """All counts (4, N), up to date."""
        for counts, times in zip(self._counts, self._passes, strict=False):
            if times:
                size = len(counts if self._rows is None else self._rows)
                one = torch.ones((), dtype=counts.dtype, device=counts.device)
                self._add(counts, times, one.expand(size))
        if self._repairs:
            _, *largest = (torch.stack(each) for each in zip(*self._repairs, strict=True))
            found = Repaired(self._repairs[0].grad, *largest)
            self._add(self._counts[2:], self.samples, torch.stack([found.odd, found.blind]).sum(1))
        self._passes, self._repairs = [0, 0], []
        return self._counts

    def _add(self, counts: Tensor, times: int, what: Tensor) -> None:
        if self._rows is None:
            counts.add_(what, alpha=times)
        else:
            counts.index_add_(-1, self._rows, what, alpha=times)
