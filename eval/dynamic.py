"""Dynamic indicators: how the gradients behave along the path of a PGD attack, step by step."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from attacks.rng import draws_for
from attacks.threat import ball_then_box, get_norm
from eval.gradients import cosines, input_gradient, lengths, units


@dataclass(frozen=True)
class DynamicIndicators:
    """Indicators of T steps over N images (Zou et al. 2026, arXiv 2606.12251), on the CPU.

    Attributes:
        gradient_norm: (T, N), L2 length of the input gradient of each image's cross-entropy.
        cosine: (T - 1, N), cosine of the gradient to that of the step before; NaN where either is zero.
        same_sign: (T - 1, N), share of the pixels whose gradient has the sign it had at the step before.
        dispersion: (T,), 1 - mean cosine of the images' gradients to their common direction, the sum of the
            gradients scaled to length 1: 0 when all agree, 1 when they cancel.
        drift: 1 - mean cosine over all pairs of steps of the common directions.
        loss: (T, N), cross-entropy before each step.
        correct: (T,), share of the images classified correctly before each step.
    """

    gradient_norm: Tensor
    cosine: Tensor
    same_sign: Tensor
    dispersion: Tensor
    drift: float
    loss: Tensor
    correct: Tensor

    def figures(self) -> dict[str, Any]:
        """Return, per step, mean and quartiles over the images, as plain JSON (None where undefined)."""
        bands = {name: band(getattr(self, name)) for name in ("gradient_norm", "cosine", "same_sign", "loss")}
        steps = {"dispersion": self.dispersion.tolist(), "correct": self.correct.tolist()}
        return bands | steps | {"drift": self.drift}


def band(values: Tensor) -> dict[str, list[float | None]]:
    """Return mean and quartiles over the images (last dimension), per step; undefined values are left out."""
    points = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
    low, median, high = torch.nanquantile(values.double(), points, dim=1)
    curves = {"mean": values.double().nanmean(dim=1), "q25": low, "median": median, "q75": high}
    return {name: [None if v != v else v for v in curve.tolist()] for name, curve in curves.items()}


def dynamic_indicators(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    norm: str = "L2",
    eps: float,
    steps: int = 50,
    step_size: float | None = None,
    loss: str = "ce",
    random_start: bool = True,
    batch_size: int = 256,
    seed: int = 0,
    sample_ids: Tensor | None = None,
) -> DynamicIndicators:
    """Follow PGD (unit-length steps, projected on ball and box) and record its gradients.

    Args:
        model: in eval mode, images (N, C, H, W) to logits (N, K).
        x: images in [0, 1], (N, C, H, W).
        y: labels, (N,).
        norm: of the ball.
        eps: its radius.
        steps: T, gradients taken.
        step_size: length of a step in ``norm``; eps / 10 by default.
        loss: a name of `attacks.losses`.
        random_start: start uniformly in the ball instead of at the image.
        batch_size: images at once; no indicator depends on it.
        seed: of the random start.
        sample_ids: (N,), what each image's start hangs on.
    """
    ids = torch.arange(len(x), device=x.device) if sample_ids is None else sample_ids
    length = eps / 10 if step_size is None else step_size
    measure = get_norm(norm)
    common = torch.zeros(steps, x[0].numel(), device=x.device)
    moving = torch.zeros(steps, device=x.device)
    correct = torch.zeros(steps, device=x.device)
    traces: list[tuple[Tensor, ...]] = []
    for start in range(0, len(x), batch_size):
        part = slice(start, start + batch_size)
        images, labels = x[part], y[part]
        radius = x.new_full((len(images),), eps)
        point = images
        if random_start:
            noise = measure.random(draws_for(seed, ids[part]), x.shape[1:], radius)
            point = ball_then_box(images + noise, images, radius, measure)
        norms, turns, signs, losses = [], [], [], []
        before: Tensor | None = None
        for step in range(steps):
            grad, value, logits = input_gradient(model, point, labels, loss)
            norms.append(lengths(grad))
            losses.append(value)
            correct[step] += (logits.argmax(1) == labels).sum()
            directions = units(grad)
            common[step] += directions.sum(0)
            moving[step] += directions.norm(dim=1).sum()
            if before is not None:
                turns.append(cosines(before, grad))
                signs.append((before.sign() == grad.sign()).flatten(1).float().mean(1))
            before = grad
            point = ball_then_box(point + length * measure.step(grad), images, radius, measure)
        traces.append(tuple(torch.stack(rows).cpu() for rows in (norms, turns, signs, losses)))
    norms_all, turns_all, signs_all, losses_all = (
        torch.cat(rows, dim=1) for rows in zip(*traces, strict=True)
    )
    return DynamicIndicators(
        gradient_norm=norms_all,
        cosine=turns_all,
        same_sign=signs_all,
        dispersion=dispersion(common, moving).cpu(),
        drift=drift(common),
        loss=losses_all,
        correct=(correct / len(x)).cpu(),
    )


def dispersion(common: Tensor, count: Tensor) -> Tensor:
    """Return 1 - mean cosine to the common direction, (T,).

    For unit vectors u_i with sum s, the cosines u_i.s / |s| add up to |s|: their mean is |s| / N, the mean
    resultant length of directional statistics, so one pass over the images is enough.

    Args:
        common: (T, D), sums of the unit gradients.
        count: (T,), how many are not zero; where none is, the dispersion is 1.
    """
    return 1 - common.norm(dim=1) / count.clamp_min(1)


def drift(common: Tensor) -> float:
    """Return 1 - mean cosine over all pairs of the T common directions (T, D); 0 for a single step."""
    if len(common) < 2:
        return 0.0
    directions = units(common)
    cosine = directions @ directions.T
    pairs = torch.triu_indices(len(common), len(common), offset=1)
    return float(1 - cosine[pairs[0], pairs[1]].mean())
