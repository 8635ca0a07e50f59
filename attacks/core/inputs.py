"""What an attack is asked: images, labels and the ball around each image, validated once."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from attacks.core.errors import AttackError
from attacks.core.norms import Norm, get_norm
from attacks.core.rng import Draws, draws_for

_ROUNDING = 1e-6  # how far pixels may lie outside [0, 1]; they are put back


@dataclass(frozen=True)
class Problem:
    """N images to attack, built by `validate_inputs`; indexing with a slice, mask or indices gives those samples."""

    x: Tensor  #: images (N, C, H, W), floats in [0, 1], without gradient
    y: Tensor  #: labels (N,) int64
    norm: Norm  #: of the ball
    eps: Tensor  #: its radius per sample (N,), of the type of ``x``
    ids: Tensor  #: what each sample's random numbers hang on (N,) int64
    targets: Tensor | None = None  #: the class to reach (N,) int64, or None for an untargeted attack
    box: bool = True  #: points must lie in [0, 1]; False holds them to the ball alone
    #: the type of the caller's images where that is narrower than float32: the model sees its points alone
    grid: torch.dtype | None = None

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, rows: slice | Tensor) -> Problem:
        targets = None if self.targets is None else self.targets[rows]
        return replace(
            self, x=self.x[rows], y=self.y[rows], eps=self.eps[rows], ids=self.ids[rows], targets=targets
        )

    def draws(self, seed: int) -> Draws:
        """The samples' random streams under ``seed``."""
        return draws_for(seed, self.ids)


def validate_inputs(
    x: Tensor,
    y: Tensor,
    *,
    norm: str,
    eps: float | Tensor,
    targets: Tensor | None = None,
    sample_ids: Tensor | None = None,
) -> Problem:
    """Validate an attack's inputs.

    Args:
        x: images (N, C, H, W), floating point, in [0, 1].
        y: labels (N,), integers >= 0, on the device of ``x``.
        norm: "Linf", "L2" or "L1".
        eps: radius, one for all or per sample (N,), in units of pixels in [0, 1].
        targets: classes to reach (N,), none equal to its label.
        sample_ids: integers (N,) that a sample's random numbers depend on; default 0..N-1.

    Raises:
        AttackError: a type, shape, device or range is wrong; the message names value, expectation and remedy.
    """
    with torch.inference_mode(False):
        measure = get_norm(norm)
        x, grid = _images(x)
        y = _integers("y (labels)", y, x)
        if (y < 0).any():
            raise AttackError(
                f"labels must be 0..K-1, found {int(y.min())}; check the data set's label encoding"
            )
        if targets is not None:
            targets = _integers("targets", targets, x)
            if (targets < 0).any():
                raise AttackError(f"targets must be classes 0..K-1, found {int(targets.min())}")
            if (targets == y).any():
                raise AttackError("some targets equal the label; a target must be another class")
        default = torch.arange(len(x), device=x.device)
        ids = default if sample_ids is None else _integers("sample_ids", sample_ids, x)
        return Problem(x, y, measure, _radius(eps, measure, x), ids, targets, grid=grid)


def towards(x: Tensor, points: Tensor, dtype: torch.dtype) -> Tensor:
    """``points`` (n, ...) rounded to ``dtype`` so that none moves away from ``x``, whose values have that type."""
    near = points.to(dtype)
    beyond = (near.to(x.dtype) - x).abs() > (points - x).abs()
    return torch.where(beyond, torch.nextafter(near, x.to(dtype)), near).to(x.dtype)


def _images(x: Tensor) -> tuple[Tensor, torch.dtype | None]:
    """A copy of the images, for models may write into what they are given, and the type of `Problem.grid`."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise AttackError(
            f"images must be a float tensor in [0, 1], got {kind}; convert, e.g. x.float() / 255"
        )
    if x.ndim < 2 or not x.numel():
        raise AttackError(f"images must have shape (N, C, H, W) with N >= 1, got {tuple(x.shape)}")
    grid = x.dtype if x.element_size() < 4 else None
    x = x.detach().float() if grid else x.detach().clone()
    low, high = (float(bound) for bound in x.aminmax())
    if not (low >= -_ROUNDING and high <= 1 + _ROUNDING):
        raise AttackError(
            f"images must lie in [0, 1], found {low:g}..{high:g}; scale them (x / 255) or move the "
            "normalisation into the model"
        )
    return (x.clamp_(0, 1) if low < 0 or high > 1 else x), grid


def _integers(name: str, values: Tensor, x: Tensor) -> Tensor:
    if not isinstance(values, Tensor) or values.is_floating_point() or values.dtype == torch.bool:
        kind = values.dtype if isinstance(values, Tensor) else type(values).__name__
        raise AttackError(
            f"{name} must be an integer tensor, got {kind}; convert, e.g. {name.split()[0]}.long()"
        )
    if values.shape != (len(x),):
        raise AttackError(f"{name} must have shape ({len(x)},), one per image, got {tuple(values.shape)}")
    if values.device != x.device:
        raise AttackError(f"{name} is on {values.device}, the images on {x.device}; move them to one device")
    values = values.long()
    return values.clone() if values.is_inference() else values  # no backward pass may use the latter


def _radius(eps: float | Tensor, norm: Norm, x: Tensor) -> Tensor:
    try:
        kind = torch.as_tensor(eps).dtype
    except (TypeError, ValueError, RuntimeError):
        kind = torch.bool
    if kind == torch.bool or kind.is_complex:
        raise AttackError(f"eps must be one number or of shape ({len(x)},), got {eps!r}")
    radius = torch.as_tensor(eps, dtype=x.dtype, device=x.device)
    if radius.ndim > 1 or radius.numel() not in (1, len(x)):
        raise AttackError(f"eps must be one number or of shape ({len(x)},), got {tuple(radius.shape)}")
    low, high = (float(bound) for bound in radius.aminmax())
    if not (low >= 0 and math.isfinite(high)):
        raise AttackError(f"eps must be a finite number >= 0, got {low:g}..{high:g}")
    diameter = norm.diameter(math.prod(x.shape[1:]))
    if high > diameter * (1 + 1e-6):
        raise AttackError(
            f"eps {high:g} exceeds {diameter:g}, the {norm.name} diameter of images in [0, 1]; it looks like "
            "the 0..255 scale: divide by 255"
        )
    return radius.expand(len(x)).contiguous()
