"""Where Square's windows lie, what they hold, and the pattern that fills them."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor


def corners(images: Tensor, side: int, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Top rows and left columns (...) of windows, of ``uniform`` (..., 2 or more); as published, the last possible
    place is never taken.
    """
    height, width = images.shape[2:]
    return ((height - side) * uniform[..., 0]).long(), ((width - side) * uniform[..., 1]).long()


def places(images: Tensor, top: Tensor, left: Tensor, side: int) -> Tensor:
    """Places (..., side * side) of the windows' pixels in the flattened planes of ``images``; corners (...)."""
    width = images.shape[3]
    steps = torch.arange(side, device=images.device)
    return (top * width + left)[..., None] + (steps[:, None] * width + steps).flatten()


def values_at(images: Tensor, place: Tensor) -> Tensor:
    """What ``images`` (n, C, H, W) hold at the places (n, K, P) of their planes: (n, C, K, P)."""
    planes = images.flatten(2)
    everywhere = place.flatten(1)[:, None].expand(-1, planes.shape[1], -1)
    return planes.gather(2, everywhere).unflatten(2, place.shape[1:])


def overlap(down: Tensor, right: Tensor, side: int) -> Tensor:
    """Which pixels of windows also belong to others whose corners lie so far ``down`` and ``right`` (...) of theirs:
    bool (..., side * side).
    """
    steps = torch.arange(side, device=down.device)
    rows, columns = steps - down[..., None], steps - right[..., None]
    down_in, right_in = ((place >= 0) & (place < side) for place in (rows, columns))
    return (down_in[..., :, None] & right_in[..., None, :]).flatten(-2)


@lru_cache(maxsize=64)
def pattern(
    side: int, power: int, dtype: torch.dtype = torch.float32, device: torch.device | None = None
) -> Tensor:
    """Two opposite bumps, one above the other, (side, side); L2 mass 1 for power 2, L1 mass 1 for power 4."""
    above, below = _bump(side // 2, side, power), _bump(side - side // 2, side, power)
    return _unit_mass(torch.cat([above, -below]), power).to(device, dtype)


def _bump(height: int, width: int, power: int) -> Tensor:
    """A bump of nested rectangles around the middle, the k-th adding 1 / k^power."""
    rows, columns = torch.arange(height) - height // 2, torch.arange(width) - width // 2
    ring = torch.maximum(rows.abs()[:, None], columns.abs()[None, :])
    bump = torch.zeros(height, width)
    for k in range(max(height // 2, width // 2) + 1):
        bump += (ring <= k) * (1 / torch.tensor([k + 1.0]) ** power)
    return _unit_mass(bump, power)


def _unit_mass(pattern: Tensor, power: int) -> Tensor:
    return pattern / (pattern.square().sum().sqrt() if power == 2 else pattern.abs().sum())
