"""Projections that have no closed form: onto the L1 ball within a box, and onto a hyperplane within [0, 1]."""

import torch
from torch import Tensor

_PASSES = 60
_LEVEL_PASSES = 30
_ROUNDING = 16  # how many units in the last place of the radius a sum may be off
_CLOSE = 1e-6
_FAR = 1e30


def threshold(size: Tensor, room: Tensor, eps: Tensor) -> Tensor:
    """The least t >= 0 (n,) for which sum(min(max(size - t, 0), room)) <= eps: what the L1 projection subtracts.

    The sum falls in t, linearly between the values of t at which a pixel leaves its bound or reaches 0 (Croce and Hein
    2021, arXiv 2103.01208).

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
    marks = torch.cat([size, (size - room).clamp_min_(0)], dim=1)
    marks, order = marks.sort(dim=1, descending=True)
    # The sum is that of max(size - t, 0) less that of max(size - room - t, 0): where t lies between two marks, that of
    # all marks above it, signed, less t for each. In float64, for the sums are long.
    sign = torch.where(order < size.shape[1], 1, -1)
    slope, level = sign.cumsum(1), (sign * marks).cumsum(1, dtype=torch.float64)
    spent = torch.addcmul(level[:, :-1], slope[:, :-1], marks[:, 1:], value=-1)
    k = (spent < eps[:, None]).sum(1, keepdim=True)
    slope, level = slope.gather(1, k).squeeze(1), level.gather(1, k).squeeze(1)
    return ((level - eps) / slope.clamp_min_(1)).clamp_min_(0).to(size.dtype)


def to_hyperplane(norm: str, points: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """Shortest moves d (n, D) with w . (points + d) = b and points + d in [0, 1]; to the nearest corner where none is.

    FAB's step (Croce and Hein 2020, arXiv 1907.02044). All pixels move against the sign of ``w``, each at most to its
    bound. At Linf and L2 pixel i moves by min(level * speed_i, room_i), with speed 1 or |w_i|; the level solves a
    concave, piecewise linear equation, which Newton's method from 0 does exactly in a few passes, without sorting. At
    L1 pixels are used up in the order of falling |w_i|.

    Args:
        norm: in which ``d`` is short: "Linf", "L2" or "L1".
        points: (n, D), in [0, 1].
        w: normals (n, D); pixels with w = 0 stay.
        b: offsets (n,).
    """
    excess = (w * points).sum(1) - b
    downhill = w * torch.where(excess >= 0, -1.0, 1.0)[:, None]
    slope = w.abs()
    room = ((downhill > 0).to(w.dtype) - points).abs_()  # to 1, or to 0; torch.where takes twice as long
    if norm == "L1":
        sizes = _by_steepness(excess.abs(), slope, room)
    else:
        sizes = _by_level(excess.abs(), slope, room, slope if norm == "L2" else None)
    return downhill.sign_().mul_(sizes)


def _by_level(excess: Tensor, slope: Tensor, room: Tensor, speed: Tensor | None) -> Tensor:
    """Sizes min(level * speed, room) (n, D) with sum(slope * size) = excess, or all the room; speed 1 if None."""
    rate = slope if speed is None else slope * speed
    if slope.is_cuda:
        return _by_level_sorted(excess, slope, room, rate, speed)
    tiny = torch.finfo(rate.dtype).tiny
    # At level 0 every pixel with room moves. Newton's steps never overshoot a concave function from below.
    level = (excess / (rate * (room > 0)).sum(1).clamp_min(tiny)).clamp_max(_FAR)
    for _ in range(_LEVEL_PASSES):
        reached = level[:, None] if speed is None else level[:, None] * speed
        sizes = torch.minimum(room, reached)
        missing = excess - (slope * sizes).sum(1)
        free = (rate * (reached < room)).sum(1)
        short = (missing > _CLOSE * excess) & (free > 0)
        if not short.any():
            break
        level = torch.where(short, level + missing / free, level).clamp_max(_FAR)
    return sizes


def _by_level_sorted(
    excess: Tensor, slope: Tensor, room: Tensor, rate: Tensor, speed: Tensor | None
) -> Tensor:
    """`_by_level` by sorting the levels at which pixels reach their bounds, where asking for the end would wait."""
    reach, order = (room if speed is None else room / speed).sort(dim=1)
    gain, rate = (slope * room).gather(1, order), rate.gather(1, order)
    before = gain.cumsum(1) - gain
    moving = rate.flip(1).cumsum(1).flip(1)  # of the pixels that have not reached their bounds before
    k = (torch.addcmul(before, reach, moving) < excess[:, None]).sum(1, keepdim=True)
    last = k.clamp_max(room.shape[1] - 1)
    missing, moving = excess[:, None] - before.gather(1, last), moving.gather(1, last)
    level = missing / moving.clamp_min(torch.finfo(rate.dtype).tiny)
    level = torch.where(k > last, _FAR, level.clamp(0, _FAR))
    return torch.minimum(room, level if speed is None else level * speed)


def _by_steepness(excess: Tensor, slope: Tensor, room: Tensor) -> Tensor:
    """Sizes (n, D): the room of the steepest pixels, until sum(slope * size) = excess."""
    slope, order = slope.sort(dim=1, descending=True)
    gain = slope * room.gather(1, order)
    before = gain.cumsum(1) - gain
    share = ((excess[:, None] - before) / gain).nan_to_num(0).clamp(0, 1)
    return torch.zeros_like(room).scatter_(1, order, share * room.gather(1, order))
