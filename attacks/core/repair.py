"""Gradients with infinite or NaN entries, as of roots and logarithms at black pixels, made fit to step along."""

from typing import NamedTuple

import torch
from torch import Tensor


class Repaired(NamedTuple):
    """A gradient (n, ...) without such entries, which samples had some (n,), and which have nothing else (n,)."""

    grad: Tensor
    odd: Tensor
    blind: Tensor


def repair(grad: Tensor) -> Repaired | None:
    """Count NaN as 0 and infinity as the largest finite entry of the sample, sign kept (1 where that is 0).

    Returns None where nothing was to be done. A GPU is never waited for: there all gradients take the same way.

    Args:
        grad: (n, ...).
    """
    if not grad.is_cuda and bool(grad.sum().isfinite()):
        return None
    dims = tuple(range(1, grad.ndim))
    finite = grad.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    odd = (finite != grad).any(dim=dims, keepdim=True)
    limit = torch.linalg.vector_norm(finite, torch.inf, dim=dims, keepdim=True)
    limit = limit.masked_fill(limit == 0, 1)
    repaired = torch.maximum(torch.minimum(grad.nan_to_num(nan=0.0), limit), -limit)
    blind = odd & ~repaired.any(dim=dims, keepdim=True)
    return Repaired(repaired, odd.view(-1), blind.view(-1))
