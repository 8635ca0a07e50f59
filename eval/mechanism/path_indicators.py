"""How gradients behave along the path of a PGD attack, step by step: their lengths and directions.

Directions are the true ones, and clamped ones as published indicators use them.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from agents.common.plain_numbers import takes_numbers
from agents.common.protocols import CLEVERHANS_BATCH
from attacks.core.losses import misclassified
from attacks.gradient.pgd import Step, pgd
from eval.mechanism.gradients import cosines, in_double, input_gradient, lengths, units

CLAMP = 1e-12  # by which the authors' indicators divide at least, in place of the gradient's length
_BANDS = ("cosine", "clamped_cosine", "same_sign")  # shown as bands over the images


@dataclass(frozen=True)
class Directions:
    """Directions over T steps and N images, on the CPU.

    The true direction of a gradient g is g / |g|. Zou et al. 2026 (arXiv 2606.12251) take g of the loss averaged over a
    batch and divide by max(1e-12, |g|): under that clamp "directions" are shorter than 1, so cosines of them tend to 0
    and dispersions to 1 whatever the angles are. ``clamped_...`` are the same indicators by that definition.
    """

    cosine: Tensor  #: (T - 1, N), cosine of the gradient to that of the step before; NaN where either is zero
    #: (T - 1, N), share of the pixels whose gradient has the sign of the step before, zeros included
    same_sign: Tensor
    #: (T,), 1 - mean cosine of the images' gradients to their common direction, the sum of the
    #: gradients scaled to length 1: 0 when all agree, 1 when they cancel
    dispersion: Tensor
    #: 1 - mean cosine over all pairs of steps of the common directions, which the authors call the
    #: diversity of the path
    drift: float
    clamped: Tensor  #: (T, N) bool, the gradient of the averaged loss is shorter than the clamp
    clamped_cosine: Tensor  #: (T - 1, N); 0 where a gradient is zero, as in the authors' code
    clamped_dispersion: Tensor  #: (T,)
    clamped_drift: float  #: of the means of the clamped directions

    def figures(self) -> dict[str, Any]:
        """Return, per step, mean and quartiles over the images, as plain JSON (None where undefined)."""
        bands: dict[str, Any] = {name: band(getattr(self, name)) for name in _BANDS}
        lists = {name: getattr(self, name).tolist() for name in ("dispersion", "clamped_dispersion")}
        lists["clamped"] = self.clamped.float().mean(1).tolist()
        return bands | lists | {"drift": self.drift, "clamped_drift": self.clamped_drift}


def band(values: Tensor) -> dict[str, list[float | None]]:
    """Return mean and quartiles over the images (last dimension), per step; undefined values are left out."""
    points = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
    low, median, high = torch.nanquantile(values.double(), points, dim=1)
    curves = {"mean": values.double().nanmean(dim=1), "q25": low, "median": median, "q75": high}
    return {name: [None if v != v else v for v in curve.tolist()] for name, curve in curves.items()}


def clamped_lengths(gradient_norm: Tensor, averaged_over: int) -> Tensor:
    """Return the lengths that the authors' "directions" have, below 1 where the clamp takes the place of the norm.

    ``gradient_norm``, of any shape: of each image's own loss; ``averaged_over``: images that their loss averages over.
    """
    return (gradient_norm.double() / averaged_over / CLAMP).clamp(max=1)


class DirectionRecorder:
    """Collects the directions of the batches over T ``steps``, one batch's path after the other's.

    ``x``: the images (N, C, H, W), for their number, size and device; ``averaged_over``: images over which the authors'
    loss is averaged; ``dtype``: of the gradients.
    """

    def __init__(self, steps: int, x: Tensor, averaged_over: int, dtype: torch.dtype) -> None:
        n, self.steps, self.averaged_over = len(x), steps, averaged_over
        self.norms = x.new_zeros(steps, n, dtype=dtype)
        self.cosine = x.new_zeros(steps - 1, n, dtype=dtype)
        self.signs = x.new_zeros(steps - 1, n, dtype=torch.float32)
        # Sums of true and of clamped directions.
        self.common = x.new_zeros(2, steps, x[0].numel(), dtype=dtype)
        self.path = torch.zeros_like(self.common)  # those of the batch under way
        self.before: Tensor | None = None

    def take(self, t: int, rows: Tensor, grad: Tensor) -> None:
        """Take the gradients (n, C, H, W) of the images' own losses at step ``t``."""
        norms, direction = lengths(grad), units(grad)
        self.norms[t, rows] = norms
        if t and self.before is not None:
            self.cosine[t - 1, rows] = cosines(self.before, grad)
            self.signs[t - 1, rows] = (self.before.sign() == grad.sign()).flatten(1).float().mean(1)
        self.before = grad
        short = clamped_lengths(norms, self.averaged_over).to(grad.dtype)
        self.path[0, t], self.path[1, t] = direction.sum(0), short @ direction
        if t == self.steps - 1:  # only whole paths count: one that ran out of memory is taken again
            self.common += self.path

    def columns(self) -> dict[str, Any]:
        """Return the attributes of `Directions`."""
        shown, (true, clamped) = clamped_lengths(self.norms, self.averaged_over), self.common
        return {
            "cosine": self.cosine.cpu(),
            "same_sign": self.signs.cpu(),
            "dispersion": dispersion(true, (self.norms > 0).sum(1)).cpu(),
            "drift": drift(true),
            "clamped": (shown < 1).cpu(),
            "clamped_cosine": (self.cosine.nan_to_num(0) * shown[1:] * shown[:-1]).cpu(),
            "clamped_dispersion": 1 - clamped.norm(dim=1).cpu() / self.norms.shape[1],
            "clamped_drift": drift(clamped / self.norms.shape[1], CLAMP),
        }


def dispersion(common: Tensor, count: Tensor) -> Tensor:
    """Return 1 - mean cosine to the common direction, (T,).

    For unit vectors u_i with sum s, the cosines u_i.s / |s| add up to |s|: their mean is |s| / N, the mean
    resultant length of directional statistics, so one pass over the images is enough. ``common``: (T, D), sums of the
    unit gradients; ``count``: (T,), how many are not zero; where none is, the dispersion is 1.
    """
    return 1 - common.norm(dim=1) / count.clamp_min(1)


def drift(common: Tensor, clamp: float = 0.0) -> float:
    """Return 1 - mean cosine over all pairs of the T common directions (T, D); 0 for a single step.

    ``clamp``: divide by this where a direction is shorter, as the authors' indicator does.
    """
    if len(common) < 2:
        return 0.0
    directions = units(common)
    if clamp:
        directions = directions * (lengths(common) / clamp).clamp(max=1)[:, None]
    cosine = directions @ directions.T
    pairs = torch.triu_indices(len(common), len(common), offset=1)
    return float(1 - cosine[pairs[0], pairs[1]].mean())


@dataclass(frozen=True)
class DynamicIndicators(Directions):
    """Indicators of T steps over N images (Zou et al. 2026, arXiv 2606.12251), on the CPU.

    The attributes of `Directions` are those of the model's own arithmetic, as a rule float32.
    """

    gradient_norm: Tensor  #: (T, N), L2 length of the input gradient of each image's cross-entropy
    loss: Tensor  #: (T, N), cross-entropy before each step
    correct: Tensor  #: (T,), share of the images classified correctly before each step
    adversarial: Tensor  #: (N, C, H, W) on the images' device, what the attack returned
    #: the directions of float64 gradients at the same points, where they were asked for
    double: Directions | None = None

    def figures(self) -> dict[str, Any]:
        """Return, per step, mean and quartiles over the images, as plain JSON (None where undefined)."""
        more: dict[str, Any] = {name: band(getattr(self, name)) for name in ("gradient_norm", "loss")}
        more["correct"] = self.correct.tolist()
        return super().figures() | more | ({"float64": self.double.figures()} if self.double else {})


@takes_numbers
def dynamic_indicators(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    norm: str = "L2",
    eps: float,
    steps: int = 50,
    loss: str = "ce",
    averaged_over: int = CLEVERHANS_BATCH,
    double: bool = False,
    **options: Any,
) -> DynamicIndicators:
    """Run PGD to its last step on every image and record its gradients.

    Args:
        model: in eval mode, images (N, C, H, W) to logits (N, K).
        x, y: images in [0, 1], (N, C, H, W), and labels, (N,).
        norm, eps: the ball.
        steps: T, gradients taken.
        loss: a name of `attacks.core.losses`.
        averaged_over: images over which the cleverhans protocol and the clamped directions average the loss.
        double: also take float64 gradients at every point of the path.
        options: others of `attacks.pgd`. A step is eps / 10 long by default; the gradients recorded are each image's
            own under both protocols; ``box=False`` with ``protocol="cleverhans"`` is the published path.
    """
    single = DirectionRecorder(steps, x, averaged_over, x.dtype)
    exact = DirectionRecorder(steps, x, averaged_over, torch.float64) if double else None
    exact_model = in_double(model) if double else model
    losses = x.new_zeros(steps, len(x))
    right = torch.zeros(steps, len(x), dtype=torch.bool, device=x.device)
    # Of the loss that the protocol averages.
    scale = averaged_over if options.get("protocol") == "cleverhans" else 1

    def record(step: Step) -> None:
        t, rows = step.index, step.rows
        losses[t, rows] = step.loss
        right[t, rows] = ~misclassified(step.logits, y[rows])
        single.take(t, rows, step.grad * scale)
        if exact is not None:
            grad = input_gradient(exact_model, step.x_adv.double(), y[rows], loss).grad
            exact.take(t, rows, grad.nan_to_num(0, 0, 0))

    how = {"step_size": eps / 10, "averaged_over": averaged_over, "early_stop": False, **options}
    result = pgd(model, x, y, norm=norm, eps=eps, steps=steps, loss=loss, on_step=record, **how)
    return DynamicIndicators(
        **single.columns(),
        gradient_norm=single.norms.cpu(),
        loss=losses.cpu(),
        correct=right.float().mean(1).cpu(),
        adversarial=result.adversarial,
        double=None if exact is None else Directions(**exact.columns()),
    )
