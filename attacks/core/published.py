"""Arithmetic of the published AutoAttack where ours is another: the same maths in its order of operations.

Used with ``random="original"`` alone, so that results can be compared bit by bit. These projections walk along the
sorted breakpoints of a piecewise linear function; ours (in `attacks.core`) reach the same points
without the rounding of long sums, or without sorting. Images are rows, (n, D), with pixels in [0, 1].
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor


def plain_length(norm: str, delta: Tensor) -> Tensor:
    """The length (n,) of perturbations (n, ...), summed as the original sums it, which is not ``vector_norm``'s way."""
    flat = delta.flatten(1)
    if norm == "Linf":
        return flat.abs().amax(1)
    return flat.abs().sum(1) if norm == "L1" else flat.square().sum(1).sqrt()


def l1_correction(x: Tensor, delta: Tensor, eps: Tensor) -> Tensor:
    """What to add to ``delta`` (n, ...) so that x + delta is inside the L1 ball and the box (Croce and Hein 2021).

    Args:
        x: images (n, ...) in [0, 1].
        delta: perturbations like ``x``.
        eps: radii, n values.
    """
    flat, images = delta.flatten(1), x.flatten(1)
    size = flat.abs()
    # How much of each pixel's perturbation the box takes away at least; its whole size at most.
    least = -torch.minimum(1 - images - flat, images + flat).clamp_max(0)
    marks, order = torch.sort(torch.cat([least, size], 1), dim=1)
    following = torch.cat([marks[:, 1:], torch.zeros_like(marks[:, :1])], 1)
    slope = (2 * (order < size.shape[1]).float() - 1).cumsum(1)
    excess = (eps.flatten() - size.sum(1))[:, None]
    taken = least.sum(1, keepdim=True) + ((following - marks) * slope).cumsum(1)
    k = ((taken[:, :-1] + excess < 0).sum(1, keepdim=True) - 1).clamp_min(0)
    threshold = (-taken.gather(1, k) - excess) / slope.gather(1, k + 1) + following.gather(1, k)
    take = torch.minimum(torch.maximum(least, threshold), size)
    outside = least.sum(1, keepdim=True) + excess < 0
    return (-flat.sign() * torch.where(outside, take, least)).view_as(x)


def to_hyperplane(norm: str, points: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """As `attacks.core.projections.to_hyperplane`: shortest moves (n, D) onto w . z = b within the box."""
    excess = (w * points).sum(1) - b
    side = torch.where(excess >= 0, 1.0, -1.0)
    w = w * side[:, None]
    move = _PROJECTIONS[norm](points, w, b * side, excess * side)
    return move * (w != 0 if norm == "Linf" else w.abs() > 1e-8).float()


def _linf(points: Tensor, w: Tensor, b: Tensor, excess: Tensor) -> Tensor:
    up = (w < 0).float()
    corner = (up - points) * (w != 0).float()
    room = up - points * (2 * up - 1)
    order = room.argsort(dim=1)
    b = b - (w * points).sum(1)
    lowest = (w * corner).sum(1)
    widest_first = order.flip(1)
    weights = w.gather(1, widest_first)
    weight = weights.abs().cumsum(1)
    change = (-weights * corner.gather(1, widest_first)).cumsum(1) + lowest[:, None]
    rooms = room.gather(1, widest_first)

    all_free = b - (change[:, -1] - weight[:, -1] * rooms[:, -1]) > 0
    k = _last(
        lambda at: b[:, None] - (change.gather(1, at) - weight.gather(1, at) * rooms.gather(1, at)) > 0,
        len(points),
        points.shape[1] - 1,
        points.shape[1],
        points.device,
    )
    k = torch.where(all_free[:, None], points.shape[1] - 1, k)
    level = ((b[:, None] - change.gather(1, k)) / -weight.gather(1, k)).clamp_min(0)
    bounded = torch.minimum(level, corner) * up + torch.maximum(-level, corner) * (1 - up)
    move = torch.where(all_free[:, None], (2 * up - 1) * level, bounded)
    return torch.where((all_free | (b - lowest > 0))[:, None], move, corner)


def _l2(points: Tensor, w: Tensor, b: Tensor, excess: Tensor) -> Tensor:
    far = 1e12
    reach = torch.maximum(points / w, (points - 1) / w).clamp(-far, far).masked_fill(w.abs() < 1e-8, far)
    reach = torch.where(reach == -far, far, reach)
    corner = -(reach * w) * (w.abs() > 1e-8).float()
    marks, order = reach.sort(dim=1)
    following = torch.nn.functional.pad(marks[:, 1:], (0, 1))
    marks = marks.masked_fill(marks == far, 0)
    following = following.masked_fill(following == far, 0)
    squares = w.square().gather(1, order)
    total = squares.sum(1, keepdim=True)
    free = total - squares.cumsum(1)
    start = -total * marks[:, :1]
    change = torch.cat([start, ((-following + marks) * free).cumsum(1) + start], 1)

    excess = excess[:, None]
    all_free = change[:, :1] + excess < 0
    beyond = (corner * w).sum(1, keepdim=True) + excess > 0
    k = _last(
        lambda at: change.gather(1, at) + excess > 0,
        len(points),
        points.shape[1] - 1,
        points.shape[1],
        points.device,
    )
    level = (change.gather(1, k) + excess) / free.gather(1, k) + marks.gather(1, k)
    level = torch.where(free.gather(1, k) == 0, 0, level)
    bound = (level > reach).float()
    move = torch.where(all_free, -(excess / total) * w, corner * bound - level * w * (1 - bound))
    return torch.where(beyond & ~all_free, corner, move)


def _l1(points: Tensor, w: Tensor, b: Tensor, excess: Tensor) -> Tensor:
    order = (1 / w).abs().clamp_max(1e12).argsort(dim=1)
    corner = (-points + (w < 0).float()) * (w != 0).float()
    gains = torch.minimum(-w * points, w * (1 - points)).gather(1, order)
    left = torch.cat([excess[:, None], gains], 1).cumsum(1)
    enough = left[:, -1:] < 0
    k = _last(
        lambda at: left.gather(1, at) > 0, len(points), left.shape[1], points.shape[1], points.device
    ).clamp_max(points.shape[1] - 1)
    partial = order.gather(1, k)
    kept = corner * (order.argsort(dim=1) < k).float()
    kept = kept.scatter(1, partial, -left.gather(1, k) / w.gather(1, partial))
    return torch.where(enough, kept, corner)


_PROJECTIONS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "Linf": _linf,
    "L2": _l2,
    "L1": _l1,
}


def _last(
    holds: Callable[[Tensor], Tensor], rows: int, upper: int, size: int, device: torch.device
) -> Tensor:
    """By bisection, the last place (rows, 1) where ``holds`` (it holds first, then no more); ``size`` sets the steps.

    Counting the places where it holds would differ where rounding makes it hold again further on.
    """
    low = torch.zeros((rows, 1), dtype=torch.int64, device=device)
    high = torch.full_like(low, upper)
    for _ in range(math.ceil(math.log2(size))):
        middle = (low + high) // 2
        fits = holds(middle)
        low, high = torch.where(fits, middle, low), torch.where(fits, high, middle)
    return low
