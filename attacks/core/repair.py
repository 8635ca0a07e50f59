"""Gradients with infinite or NaN entries, as of roots and logarithms at black pixels, made fit to step along."""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor


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
