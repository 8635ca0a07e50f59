"""The shortest way onto a hyperplane within the box [0, 1], in each norm: what FAB steps along (Croce and Hein 2020).

All pixels move against the sign of ``w``, each at most to its bound. At Linf and L2 pixel i moves by
min(level * speed_i, room_i), with speed 1 or |w_i|; the level solves a concave, piecewise linear equation, which
Newton's method from 0 does exactly in a few passes, without sorting. At L1 pixels are used up by falling |w_i|.
"""

import torch
from torch import Tensor

_PASSES = 30
_CLOSE = 1e-6


def to_hyperplane(norm: str, points: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """Shortest moves d (n, D) with w . (points + d) = b and points + d in [0, 1]; to the nearest corner where none is.

    Args:
        norm: in which ``d`` is short: "Linf", "L2" or "L1".
        points: (n, D), in [0, 1].
        w: normals (n, D); pixels with w = 0 stay.
        b: offsets (n,).
    """
    excess = (w * points).sum(1) - b
    w = w * torch.where(excess >= 0, 1, -1)[:, None]
    slope = w.abs()
    room = torch.where(w > 0, points, 1 - points).masked_fill_(w == 0, 0)
    if norm == "L1":
        return -w.sign() * _by_steepness(excess.abs(), slope, room)
    return -w.sign() * _by_level(excess.abs(), slope, room, slope if norm == "L2" else None)


def _by_level(excess: Tensor, slope: Tensor, room: Tensor, speed: Tensor | None) -> Tensor:
    """Sizes min(level * speed, room) (n, D) with sum(slope * size) = excess, or all the room."""
    level = torch.zeros_like(excess)
    rate = slope if speed is None else slope * speed
    for _ in range(_PASSES):
        reached = level[:, None].expand_as(room) if speed is None else level[:, None] * speed
        gained = (slope * torch.minimum(reached, room)).sum(1)
        missing = excess - gained
        still = torch.where(reached < room, rate, 0).sum(1)
        if ((missing <= _CLOSE * excess) | (still == 0)).all():
            break
        level = level + torch.where(still > 0, missing.clamp_min(0) / still, 0)
    return torch.minimum(reached, room)


def _by_steepness(excess: Tensor, slope: Tensor, room: Tensor) -> Tensor:
    """Sizes (n, D): the room of the steepest pixels, until sum(slope * size) = excess."""
    slope, order = slope.sort(dim=1, descending=True)
    gain = slope * room.gather(1, order)
    before = gain.cumsum(1) - gain
    share = ((excess[:, None] - before) / gain).nan_to_num(0).clamp(0, 1)
    return torch.zeros_like(room).scatter_(1, order, share * room.gather(1, order))
