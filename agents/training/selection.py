"""Validation while training: the best weights so far, and a warning where robustness collapses."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from agents.common.precision import tf32
from agents.models.extraction import extract_classifier
from agents.training.robustness_probe import Probe, overfits_catastrophically
from agents.training.validation import Evaluation, evaluate
from envs import ImageDataset


@dataclass
class Selection:
    """The best weights so far.

    Attributes:
        weights: the policy's state dict, copied; None before the first validation.
        score: of these weights: (accuracy, -loss), or (robust accuracy, accuracy) where robustness selects.
        step: images trained on when they were taken.
        accuracy: their validation accuracy.
        robust_accuracy: their accuracy under the probe's PGD, where there is a probe.
    """

    weights: dict[str, Any] | None = None
    score: tuple[float, float] = (-1.0, 0.0)
    step: int = 0
    accuracy: float = 0.0
    robust_accuracy: float | None = None

    def offer(
        self,
        evaluation: Evaluation,
        step: int,
        weights: dict[str, Any],
        robust_accuracy: float | None = None,
        by: Literal["clean", "robust"] = "clean",
    ) -> bool:
        """Take copies of ``weights`` if they are better; return whether they were."""
        score = (evaluation.accuracy, -evaluation.loss)
        if by == "robust" and robust_accuracy is not None:
            score = (robust_accuracy, evaluation.accuracy)
        if score <= self.score:
            return False
        self.weights = copied(weights)
        self.score, self.step = score, step
        self.accuracy, self.robust_accuracy = evaluation.accuracy, robust_accuracy
        return True


def copied(state: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of a state dict that shares no memory with it; extra state of modules need not be tensors."""
    return {
        name: value.detach().clone() if isinstance(value, Tensor) else copy.deepcopy(value)
        for name, value in state.items()
    }


class Validator:
    """Validates a policy, offers its weights to the selection and follows its robustness.

    Args:
        data: the validation data.
        probe: attacks a slice of it; None: nothing does.
        select: by which accuracy weights are kept, clean or the probe's.
        attacks_begin: images after which training is adversarial; selection begins again there. None: it never is.
        warn: what prints a warning.
    """

    def __init__(
        self,
        data: ImageDataset,
        probe: Probe | None,
        select: Literal["clean", "robust"],
        attacks_begin: int | None,
        warn: Callable[[str], None],
    ) -> None:
        self.data = data
        self.probe = probe
        self.select = select
        self.attacks_begin = attacks_begin
        self.warn = warn
        self.selection = Selection()
        self.history: list[dict[str, float]] = []

    @tf32(False)
    def __call__(self, policy: Any, step: int) -> dict[str, float]:
        """Validate ``policy`` after ``step`` images and return what to log; it is not selected if its loss is NaN."""
        classifier = extract_classifier(policy)
        evaluation = evaluate(classifier, self.data)
        record = {f"val/{name}": value for name, value in vars(evaluation).items()}
        if not math.isfinite(evaluation.loss):
            return record
        robustness = self.probe(classifier) if self.probe else None
        if self.attacks_begin is not None and self.selection.step <= self.attacks_begin < step:
            self.selection = Selection()  # weights from before the attacks are another regime's
        robust_accuracy = robustness.accuracy if robustness else None
        self.selection.offer(evaluation, step, policy.state_dict(), robust_accuracy, self.select)
        point = {"images": float(step), "accuracy": evaluation.accuracy}
        if robustness:
            point |= {"robust_accuracy": robustness.accuracy, "fgsm_accuracy": robustness.fgsm_accuracy}
        self.history.append(point)
        record["val/best_accuracy"] = self.selection.accuracy
        if robustness:
            record |= {f"probe/{name}": value for name, value in vars(robustness).items()}
            record["probe/catastrophic_overfitting"] = float(self._overfits(step))
        return record

    def _overfits(self, step: int) -> bool:
        """Return whether the history shows catastrophic overfitting; warn when it does for the first time."""
        begin = self.attacks_begin
        since = [point for point in self.history if begin is not None and point["images"] > begin]
        pairs = [
            (point["fgsm_accuracy"], point["robust_accuracy"]) for point in since if "fgsm_accuracy" in point
        ]
        overfits = overfits_catastrophically(pairs)
        if overfits and not any(overfits_catastrophically(pairs[:end]) for end in range(len(pairs))):
            fgsm, robust = pairs[-1]
            self.warn(
                f"warning: catastrophic overfitting at {step:,} images: accuracy {fgsm:.1%} under FGSM but "
                f"{robust:.1%} under PGD; use --adversarial pgd or a smaller --adv-eps, or keep the weights from "
                "before by --select robust"
            )
        return overfits
