"""Loss landscapes: the loss on a plane through an image, spanned by an adversarial and a random direction."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from agents.common.plain_numbers import takes_numbers
from attacks.core.losses import get_loss
from attacks.core.model_state import fast_layout, in_eval_mode
from attacks.core.norms import get_norm, per_sample
from attacks.core.rng import draws_for

_EXTENT = 3.0  # of the axes to either side, in radii
_CPU_BATCH, _GPU_BATCH = 64, 2048  # measured: on a CPU activations then stay in its caches
_PLANE_STREAM = 0x706C616E65  # "plane": the random direction is no other draw of the same seed


@dataclass(frozen=True)
class Landscape:
    """Losses on a grid, rows along the random direction, columns along the adversarial one.

    Images without a finite answer at a point are left out of the averages there; NaN where no image has one.
    """

    #: (R,), positions along either axis, lengths in the threat model's norm, 0 at the image
    coordinates: Tensor
    cross_entropy: Tensor  #: (R, R), natural logarithm, averaged over the images
    #: (R, R), largest wrong logit minus the true one, averaged over the images; above 0 is an error
    margin: Tensor
    correct: Tensor  #: (R, R), share of the images that are classified correctly
    #: (R, R) int64, predicted class for a single image, -1 for an answer of NaN; None for an average
    predicted: Tensor | None
    norm: str  #: of the axes
    eps: float  #: radius of the threat model; the axes reach from -3 to 3 of it
    images: int  #: how many were averaged
    label: int | None  #: true class for a single image, else None
    #: where on the adversarial axis the attacked image of a single image lies, else None
    reach: float | None = None

    @property
    def answered(self) -> float:
        """Share of the points at which the loss is finite."""
        return float(self.cross_entropy.isfinite().float().mean())

    def figures(self) -> dict[str, Any]:
        """Return extremes, what happens inside the radius eps of the plane, and the share of points with an answer."""
        squares = self.coordinates.square()
        inside = (squares[:, None] + squares).sqrt() <= self.eps
        return {
            "images": self.images,
            "resolution": len(self.coordinates),
            "cross_entropy": _extremes(self.cross_entropy),
            "margin": _extremes(self.margin),
            "correct_within_eps": float(self.correct[inside].mean()) if inside.any() else None,
            "answered": self.answered,
        }


def _extremes(values: Tensor) -> dict[str, float | None]:
    known = values[values.isfinite()]
    low, high = (float(known.min()), float(known.max())) if len(known) else (None, None)
    return {"min": low, "max": high}


def plane(x: Tensor, adversarial: Tensor, norm: str, seed: int, sample_ids: Tensor | None = None) -> Tensor:
    """Return the two directions of each image's plane, (N, 2, C, H, W), of length 1 in ``norm``.

    The first leads from ``x`` to ``adversarial`` (both (N, C, H, W)); the second is normally distributed,
    made orthogonal to the first. "Filter-free": the plane lies in pixel space, so no weights need rescaling. An attack
    that did not move has no direction; there the first is random too.
    """
    ids = torch.arange(len(x), device=x.device) if sample_ids is None else sample_ids
    draws = draws_for(seed, ids).fork(_PLANE_STREAM)
    first = adversarial - x
    still = per_sample(first.flatten(1).abs().amax(1) == 0, x)
    first = torch.where(still, draws.fork(0).normal(x.shape[1:]), first)
    first = first / per_sample(first.flatten(1).norm(dim=1), first)
    second = draws.fork(1).normal(x.shape[1:])
    overlap = (first * second).flatten(1).sum(1)
    second = second - per_sample(overlap, second) * first
    unit = get_norm(norm)
    pair = [direction / per_sample(unit.length(direction), direction) for direction in (first, second)]
    return torch.stack(pair, dim=1)


@takes_numbers
@torch.no_grad()
def landscape(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    adversarial: Tensor,
    *,
    norm: str = "L2",
    eps: float,
    resolution: int = 300,
    clip: bool = False,
    batch_size: int | None = None,
    seed: int = 0,
    sample_ids: Tensor | None = None,
) -> Landscape:
    """Evaluate the losses on each image's plane and average them over the images.

    Args:
        model: images (N, C, H, W) to logits (N, K).
        x, y: images in [0, 1], (N, C, H, W), and labels (N,).
        adversarial: attacked images, (N, C, H, W): they give the first direction.
        norm, eps: in which the axes are measured, and radius: they reach from -3 eps to 3 eps.
        resolution: points per axis, R; the model sees N * R * R images.
        clip: clip the points to [0, 1], where images lie. This bends the plane, and is for models that answer NaN
            outside, such as those that take logarithms or powers of pixels.
        batch_size: images at once; by default 64 on a CPU, 2048 on a GPU.
        seed: of the random direction; sample_ids: (N,), what each image's depends on.
    """
    directions, grid = plane(x, adversarial, norm, seed, sample_ids), (resolution, resolution)
    line = torch.linspace(-_EXTENT * eps, _EXTENT * eps, resolution, device=x.device)
    sums = torch.zeros(4, resolution * resolution, dtype=torch.float64, device=x.device)
    size = batch_size or (_GPU_BATCH if x.is_cuda else _CPU_BATCH)
    with in_eval_mode(model), fast_layout(model, x):
        for i in range(len(x)):
            losses, predicted = _one_plane(model, x[i], y[i], directions[i], line, size, clip)
            known = losses.isfinite().all(0)
            sums[:2] += losses.where(known, 0)
            sums[2:] += torch.stack([known, predicted == y[i]])
    means = torch.stack([*sums[:2] / sums[2], sums[3] / len(x)]).view(3, *grid).float().cpu()
    ce, margin, correct = means
    if len(x) > 1:
        return Landscape(line.cpu(), ce, margin, correct, None, norm, eps, len(x), None)
    reach, classes = float(get_norm(norm).length(adversarial - x)[0]), predicted.view(grid).cpu()
    return Landscape(line.cpu(), ce, margin, correct, classes, norm, eps, 1, int(y[0]), reach)


def _one_plane(
    model: nn.Module, x: Tensor, y: Tensor, directions: Tensor, line: Tensor, batch_size: int, clip: bool
) -> tuple[Tensor, Tensor]:
    """Return cross-entropy and margin (2, R * R) and predicted classes (R * R,) on one image's plane."""
    total = len(line) ** 2
    losses, predicted = [], []
    for start in range(0, total, batch_size):
        points = torch.arange(start, min(start + batch_size, total), device=x.device)
        along, across = line[points % len(line)], line[points // len(line)]
        images = torch.addcmul(x, along.view(-1, 1, 1, 1), directions[0])
        images.addcmul_(across.view(-1, 1, 1, 1), directions[1])
        logits = model(images.clamp_(0, 1) if clip else images).float()
        label = y.expand(len(points))
        losses.append(torch.stack([get_loss(name)(logits, label, None) for name in ("ce", "margin")]))
        predicted.append(logits.argmax(1).masked_fill(logits.isnan().any(1), -1))
    return torch.cat(losses, dim=1), torch.cat(predicted)
