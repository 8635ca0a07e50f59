"""The shortest way onto a hyperplane within the box [0, 1], in each norm: what FAB steps along (Croce and Hein 2020).

All pixels move against the sign of ``w``, each at most to its bound. At Linf and L2 pixel i moves by
min(level * speed_i, room_i), with speed 1 or |w_i|; the level solves a concave, piecewise linear equation, which
Newton's method from 0 does exactly in a few passes, without sorting. At L1 pixels are used up by falling |w_i|.
"""

import torch
from torch import Tensor

_PASSES = 30
_CLOSE = 1e-6
_FAR = 1e30


def to_hyperplane(norm: str, points: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """Shortest moves d (n, D) with w . (points + d) = b and points + d in [0, 1]; to the nearest corner where none is.

    Args:
        norm: in which ``d`` is short: "Linf", "L2" or "L1".
        points: (n, D), in [0, 1].
        w: normals (n, D); pixels with w = 0 stay.
        b: offsets (n,).
    """
    excess = (w * points).sum(1) - b
    downhill = w * (1 - 2 * (excess >= 0).to(w.dtype))[:, None]
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
    tiny = torch.finfo(rate.dtype).tiny
    # At level 0 every pixel with room moves. Newton's steps never overshoot a concave function from below.
    level = (excess / (rate * (room > 0)).sum(1).clamp_min(tiny)).clamp_max(_FAR)
    for _ in range(_PASSES):
        reached = level[:, None] if speed is None else level[:, None] * speed
        sizes = torch.minimum(room, reached)
        missing = excess - (slope * sizes).sum(1)
        free = (rate * (reached < room)).sum(1)
        short = (missing > _CLOSE * excess) & (free > 0)
        if not short.any():
            break
        level = torch.where(short, level + missing / free, level).clamp_max(_FAR)
    return sizes


def _by_steepness(excess: Tensor, slope: Tensor, room: Tensor) -> Tensor:
    """Sizes (n, D): the room of the steepest pixels, until sum(slope * size) = excess."""
    slope, order = slope.sort(dim=1, descending=True)
    gain = slope * room.gather(1, order)
    before = gain.cumsum(1) - gain
    share = ((excess[:, None] - before) / gain).nan_to_num(0).clamp(0, 1)
    return torch.zeros_like(room).scatter_(1, order, share * room.gather(1, order))
