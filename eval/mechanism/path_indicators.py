"""Dynamic indicators: how the gradients behave along the path of a PGD attack, step by step."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from attacks.gradient.pgd import Step, pgd
from eval.core.threats import CLEVERHANS_BATCH
from eval.mechanism.gradients import cosines, lengths, units


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
        adversarial: (N, C, H, W) on the images' device, what the attack returned.
    """

    gradient_norm: Tensor
    cosine: Tensor
    same_sign: Tensor
    dispersion: Tensor
    drift: float
    loss: Tensor
    correct: Tensor
    adversarial: Tensor

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
    protocol: Literal["normalized", "cleverhans"] = "normalized",
    averaged_over: int = CLEVERHANS_BATCH,
    random_start: bool = True,
    batch_size: int | None = None,
    seed: int = 0,
    sample_ids: Tensor | None = None,
) -> DynamicIndicators:
    """Run PGD to its last step on every image and record its gradients.

    Args:
        model: in eval mode, images (N, C, H, W) to logits (N, K).
        x: images in [0, 1], (N, C, H, W).
        y: labels, (N,).
        norm: of the ball.
        eps: its radius.
        steps: T, gradients taken.
        step_size: length of a step in ``norm``; eps / 10 by default.
        loss: a name of `attacks.core.losses`.
        protocol: of the steps, see `attacks.gradient.pgd`; the gradients recorded are each image's own under both.
        averaged_over: batch that the cleverhans protocol averages its loss over.
        random_start: start uniformly in the ball instead of at the image.
        batch_size: images at once; no indicator depends on it.
        seed: of the random start.
        sample_ids: (N,), what each image's start hangs on.
    """
    recorder = _Recorder(x, y, steps, averaged_over if protocol == "cleverhans" else 1)
    result = pgd(
        model,
        x,
        y,
        norm=norm,
        eps=eps,
        steps=steps,
        step_size=eps / 10 if step_size is None else step_size,
        loss=loss,
        random_start=random_start,
        protocol=protocol,
        averaged_over=averaged_over,
        early_stop=False,
        batch_size=batch_size,
        seed=seed,
        sample_ids=sample_ids,
        on_step=recorder,
    )
    return recorder.indicators(result.adversarial)


class _Recorder:
    """Collects the steps of the batches, one batch's path after the other's."""

    def __init__(self, x: Tensor, y: Tensor, steps: int, scale: int) -> None:
        n = len(x)
        self.y, self.steps, self.scale = y, steps, scale
        self.norms = x.new_zeros(steps, n)
        self.losses = x.new_zeros(steps, n)
        self.right = torch.zeros(steps, n, dtype=torch.bool, device=x.device)
        self.cosine = x.new_zeros(steps - 1, n)
        self.signs = x.new_zeros(steps - 1, n)
        self.common = x.new_zeros(steps, x[0].numel())
        self.path = torch.zeros_like(self.common)  # sums of the batch under way
        self.before: Tensor | None = None

    def __call__(self, step: Step) -> None:
        t, rows = step.index, step.rows
        grad = step.grad * self.scale
        self.norms[t, rows] = lengths(grad)
        self.losses[t, rows] = step.loss
        self.right[t, rows] = step.logits.argmax(1) == self.y[rows]
        if t and self.before is not None:
            self.cosine[t - 1, rows] = cosines(self.before, grad)
            self.signs[t - 1, rows] = (self.before.sign() == grad.sign()).flatten(1).float().mean(1)
        self.before = grad
        self.path[t] = units(grad).sum(0)
        if t == self.steps - 1:  # only whole paths count: one that ran out of memory is walked again
            self.common += self.path

    def indicators(self, adversarial: Tensor) -> DynamicIndicators:
        """Return what was recorded."""
        return DynamicIndicators(
            gradient_norm=self.norms.cpu(),
            cosine=self.cosine.cpu(),
            same_sign=self.signs.cpu(),
            dispersion=dispersion(self.common, (self.norms > 0).sum(1)).cpu(),
            drift=drift(self.common),
            loss=self.losses.cpu(),
            correct=self.right.float().mean(1).cpu(),
            adversarial=adversarial,
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
