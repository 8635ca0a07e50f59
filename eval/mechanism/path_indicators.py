"""Dynamic indicators: how the gradients behave along the path of a PGD attack, step by step."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from agents.common.plain_numbers import takes_numbers
from agents.common.protocols import CLEVERHANS_BATCH
from attacks.core.losses import misclassified
from attacks.gradient.pgd import Step, pgd
from eval.mechanism.directions import DirectionRecorder, Directions, band
from eval.mechanism.gradients import in_double, input_gradient


@dataclass(frozen=True)
class DynamicIndicators(Directions):
    """Indicators of T steps over N images (Zou et al. 2026, arXiv 2606.12251), on the CPU.

    The attributes of `Directions` are those of the model's own arithmetic, as a rule float32.

    Attributes:
        gradient_norm: (T, N), L2 length of the input gradient of each image's cross-entropy.
        loss: (T, N), cross-entropy before each step.
        correct: (T,), share of the images classified correctly before each step.
        adversarial: (N, C, H, W) on the images' device, what the attack returned.
        double: the directions of float64 gradients at the same points, where they were asked for.
    """

    gradient_norm: Tensor
    loss: Tensor
    correct: Tensor
    adversarial: Tensor
    double: Directions | None = None

    def figures(self) -> dict[str, Any]:
        """Return, per step, mean and quartiles over the images, as plain JSON (None where undefined)."""
        more: dict[str, Any] = {"gradient_norm": band(self.gradient_norm), "loss": band(self.loss)}
        more["correct"] = self.correct.tolist()
        double = {} if self.double is None else {"float64": self.double.figures()}
        return super().figures() | more | double


@takes_numbers
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
    box: bool = True,
    double: bool = False,
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
        averaged_over: images over which the cleverhans protocol and the clamped directions average the loss.
        box: False leaves out the clipping to [0, 1]; with ``protocol="cleverhans"`` this is the published path.
        double: also take float64 gradients at every point of the path.
        random_start: start uniformly in the ball instead of at the image.
        batch_size: images at once; no indicator depends on it. seed: of the random start.
        sample_ids: (N,), what each image's start depends on.
    """
    recorder = _Recorder(model, x, y, steps, averaged_over, loss, double)
    recorder.scale = averaged_over if protocol == "cleverhans" else 1
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
        box=box,
        early_stop=False,
        batch_size=batch_size,
        seed=seed,
        sample_ids=sample_ids,
        on_step=recorder,
    )
    return recorder.indicators(result.adversarial)


class _Recorder:
    """Collects what PGD shows before each of its steps; ``scale``: of the loss that the protocol averages."""

    scale = 1

    def __init__(
        self, model: nn.Module, x: Tensor, y: Tensor, steps: int, averaged_over: int, loss: str, double: bool
    ) -> None:
        self.y, self.loss = y, loss
        self.single = DirectionRecorder(steps, x, averaged_over, x.dtype)
        self.double = DirectionRecorder(steps, x, averaged_over, torch.float64) if double else None
        self.model = in_double(model) if double else model
        self.losses = x.new_zeros(steps, len(x))
        self.right = torch.zeros(steps, len(x), dtype=torch.bool, device=x.device)

    def __call__(self, step: Step) -> None:
        t, rows = step.index, step.rows
        self.losses[t, rows] = step.loss
        self.right[t, rows] = ~misclassified(step.logits, self.y[rows])
        self.single.take(t, rows, step.grad * self.scale)
        if self.double is not None:
            grad = input_gradient(self.model, step.x_adv.double(), self.y[rows], self.loss).grad
            self.double.take(t, rows, grad.nan_to_num(0, 0, 0))

    def indicators(self, adversarial: Tensor) -> DynamicIndicators:
        """Return what was collected, with the images (N, C, H, W) that PGD ended at."""
        return DynamicIndicators(
            **self.single.columns(),
            gradient_norm=self.single.norms.cpu(),
            loss=self.losses.cpu(),
            correct=self.right.float().mean(1).cpu(),
            adversarial=adversarial,
            double=None if self.double is None else Directions(**self.double.columns()),
        )
