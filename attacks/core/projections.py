"""How far to shrink all pixels of a perturbation alike, so that its L1 length comes down to a radius.

Clipped to its room, a pixel keeps min(max(size - t, 0), room); their sum falls in t, linearly between the values of t
at which a pixel leaves its bound or reaches 0 (Croce and Hein 2021, arXiv 2103.01208).
"""

import torch
from torch import Tensor

_PASSES = 60
_ROUNDING = 16  # how many units in the last place of the radius a sum may be off


def threshold(size: Tensor, room: Tensor, eps: Tensor) -> Tensor:
    """The least t >= 0 (n,) for which sum(min(max(size - t, 0), room)) <= eps.

    Args:
        size: how far pixels want to go (n, D), at least 0.
        room: how far they may go (n, D), at least 0, infinity allowed.
        eps: (n,).
    """
    # PyTorch's sort is fast on a GPU, where asking whether an iteration is done would cost more, and slow on a CPU.
    return by_sorting(size, room, eps) if size.is_cuda else by_newton(size, room, eps)


def by_newton(size: Tensor, room: Tensor, eps: Tensor) -> Tensor:
    """`threshold` by Newton's method between bounds, which ends on the right piece, so exactly, in a few passes."""
    t = torch.zeros_like(eps)
    low, high = t, size.amax(1)
    kept, other = torch.empty_like(size), torch.empty_like(size)
    close = _ROUNDING * torch.finfo(size.dtype).eps * eps
    done = torch.zeros_like(eps, dtype=torch.bool)
    for _ in range(_PASSES):
        torch.sub(size, t[:, None], out=kept).clamp_min_(0)
        excess = torch.minimum(kept, room, out=other).sum(1) - eps
        # Pixels that shrink with t are neither 0 nor at their bound. Signs, for PyTorch is slow with masks.
        torch.minimum(torch.sub(room, kept, out=other), kept, out=other)
        shrinking = other.sign_().clamp_min_(0).sum(1)
        above = excess >= 0
        low, high = torch.where(above, t, low), torch.where(above, high, t)
        step = t + excess / shrinking.clamp_min(1)
        last = (excess.abs() <= close) | ((t == 0) & ~above)
        inside = (step > low) & (step < high) & (shrinking > 0)  # else halve: Newton stalls on flat pieces
        following = torch.where(inside | last, step, (low + high) / 2).clamp_min_(0)
        t = torch.where(done, t, following)  # so that a row does not depend on the others
        done |= last
        if done.all():
            return t
    return torch.where(done, t, by_sorting(size, room, eps))


def by_sorting(size: Tensor, room: Tensor, eps: Tensor) -> Tensor:
    """`threshold` by sorting the values of t where a pixel leaves its bound or reaches 0."""
    leave = (size - room).clamp_min(0)
    marks, order = torch.cat([leave, size], dim=1).sort(dim=1)
    # One more pixel shrinks after each "leave", one fewer after each "reaches 0".
    slope = torch.where(order < size.shape[1], 1, -1).cumsum(1)
    fall = (slope[:, :-1] * marks.diff(dim=1)).cumsum(1)
    excess = torch.minimum(size, room).sum(1) - eps
    k = (fall < excess[:, None]).sum(1, keepdim=True).clamp_max(marks.shape[1] - 1)
    mark = marks.gather(1, k)
    # Between marks k and k+1 the shrinking pixels are known: solve for t without the rounded sums.
    shrinking = (leave <= mark) & (size > mark)
    held = torch.where(leave > mark, room, 0).sum(1)
    total = torch.where(shrinking, size, 0).sum(1) + held - eps
    return torch.where(excess > 0, (total / shrinking.sum(1).clamp_min(1)).clamp_min(0), 0)
