"""Validation while training: accuracy, robustness under a short attack, and the best weights so far."""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import attacks
from agents.algorithms.adversarial import crafting
from agents.common.precision import tf32
from agents.models.extraction import extract_classifier
from attacks.core.losses import margin, misclassified
from attacks.core.norms import get_norm
from envs import ImageDataset
from envs.errors import InputError
from envs.sampling import spread

_BATCH = 128


@dataclass(frozen=True)
class Evaluation:
    """What a classifier achieves on a data set."""

    accuracy: float  #: share of images classified as labelled
    loss: float  #: mean cross-entropy in nats
    margin: float  #: mean difference between the true label's logit and the best other one


def to_pixels(images: Tensor) -> Tensor:
    """Return uint8 images as float images in [0, 1]."""
    return images.float().div_(255)


@torch.no_grad()
def evaluate(classifier: nn.Module, dataset: ImageDataset, batch_size: int = 1024) -> Evaluation:
    """Evaluate ``classifier`` (float images in [0, 1] to logits) in eval mode on every image; its mode is restored."""
    training = classifier.training
    classifier.eval()
    device = next(classifier.parameters()).device
    totals = torch.zeros(3, device=device, dtype=torch.float64)
    parts = (tensor.split(batch_size) for tensor in (dataset.images, dataset.labels))
    for images, labels in zip(*parts, strict=True):
        labels = labels.to(device)
        logits = classifier(to_pixels(images.to(device))).float()
        true = logits.gather(1, labels[:, None])[:, 0]
        others = logits.scatter(1, labels[:, None], -torch.inf).amax(1)
        correct = (logits.argmax(1) == labels).double().sum()
        loss = F.cross_entropy(logits, labels, reduction="sum").double()
        totals += torch.stack([correct, loss, (true - others).double().sum()])
    classifier.train(training)
    return Evaluation(*(totals / len(dataset)).tolist())


@dataclass(frozen=True)
class Robustness:
    """Robustness on the probe's images."""

    accuracy: float  #: share of the images still classified as labelled after PGD
    fgsm_accuracy: float  #: the same after one step of length eps
    gradient_norm: float  #: mean L2 norm of the gradient of the cross-entropy with respect to the clean image
    margin: float  #: mean difference between the true label's logit and the best other one, on clean images


class Probe:
    """PGD, FGSM, gradients and margins on a slice of ``dataset``, spread evenly over it.

    Its random starts depend on the images alone: it draws from no generator that training uses, so a probed run learns
    the very weights of one that is not. At most ``images`` of the data are attacked, by ``steps`` steps of PGD within
    ``eps``, in units of pixels in [0, 1].

    Raises:
        InputError: the radius is larger than the images allow.
    """

    def __init__(self, dataset: ImageDataset, images: int, norm: str, eps: float, steps: int = 10) -> None:
        chosen = dataset.take(spread(len(dataset), images))
        self.images, self.labels = chosen.images, chosen.labels
        self.norm, self.eps, self.steps = get_norm(norm), eps, steps
        diameter = self.norm.diameter(math.prod(dataset.shape))
        if eps > diameter:
            expected = f"expected at most {diameter:g}, the {norm} diameter of these images in [0, 1]"
            raise InputError(f"--adv-eps is {eps:g}; {expected}")

    def __call__(self, classifier: nn.Module) -> Robustness:
        """Attack ``classifier`` (float images in [0, 1] to logits) in eval mode; its modes are restored."""
        pixels, ball = to_pixels(self.images), {"norm": self.norm.name, "eps": self.eps}
        parts = zip(pixels.split(_BATCH), self.labels.split(_BATCH), strict=True)
        with crafting(classifier):
            looks = torch.stack([self._look(classifier, *part) for part in parts])
            result = attacks.pgd(classifier, pixels, self.labels, **ball, steps=self.steps)  # type: ignore[arg-type]
        return Robustness(result.robust_accuracy, *(looks.sum(0) / len(pixels)).tolist())

    def _look(self, classifier: nn.Module, pixels: Tensor, labels: Tensor) -> Tensor:
        """Return the sums over a batch of FGSM accuracy, gradient norm and margin, from one gradient: ``(3,)``."""
        leaf = pixels.detach().requires_grad_()
        logits = classifier(leaf)
        (gradient,) = torch.autograd.grad(F.cross_entropy(logits, labels, reduction="sum"), leaf)
        eps = pixels.new_full((len(pixels),), self.eps)
        moved = self.norm.confine(self.norm.ascend(pixels, gradient, eps), pixels, eps)
        with torch.no_grad():
            correct = ~misclassified(classifier(moved), labels)
        lengths = torch.linalg.vector_norm(gradient.flatten(1), dim=1)
        return torch.stack([correct.sum(), lengths.sum(), -margin(logits.detach(), labels).sum()])


def overfits_catastrophically(history: Sequence[tuple[float, float]]) -> bool:
    """Return whether PGD accuracy has been lost while FGSM accuracy has not (Wong et al. 2020).

    That is: PGD accuracy is under half of its best and of the FGSM accuracy, which is no lower than then; or twice
    running it is under a quarter of the FGSM accuracy, which is above a half. ``history``: (FGSM accuracy, PGD
    accuracy) of every validation since attacks began, the latest last.
    """
    if len(history) < 2:
        return False
    fgsm, robust = history[-1]
    best_fgsm, best = max(history, key=lambda point: point[1])
    collapsed = robust < min(best, fgsm) / 2 and fgsm >= best_fgsm - 0.05
    return collapsed or all(first > 0.5 and full < first / 4 for first, full in history[-2:])


@dataclass
class Selection:
    """The best weights so far."""

    #: the policy's state dict, copied; None before the first validation
    weights: dict[str, Any] | None = None
    #: of these weights: (accuracy, -loss), or (robust accuracy, accuracy) where robustness selects
    score: tuple[float, float] = (-1.0, 0.0)
    step: int = 0  #: images trained on when they were taken
    accuracy: float = 0.0  #: their validation accuracy
    robust_accuracy: float | None = None  #: their accuracy under the probe's PGD, where there is a probe

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
        self.weights, self.score, self.step = copied(weights), score, step
        self.accuracy, self.robust_accuracy = evaluation.accuracy, robust_accuracy
        return True


def copied(state: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of a state dict that shares no memory with it; extra state of modules need not be tensors."""
    return {
        name: value.detach().clone() if isinstance(value, Tensor) else copy.deepcopy(value)
        for name, value in state.items()
    }


@dataclass
class Validator:
    """Validates a policy, offers its weights to the selection and follows its robustness."""

    data: ImageDataset
    probe: Probe | None  #: attacks a slice of the data; None: nothing does
    select: Literal["clean", "robust"]  #: by which accuracy weights are kept, clean or the probe's
    #: images after which training is adversarial; selection begins again there. None: it never is
    attacks_begin: int | None
    warn: Callable[[str], None]  #: prints a warning
    selection: Selection = field(default_factory=Selection)
    history: list[dict[str, float]] = field(default_factory=list)

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
        record["val/best_accuracy"] = self.selection.accuracy
        self.history.append({"images": float(step), "accuracy": evaluation.accuracy})
        if robustness:
            self.history[-1]["robust_accuracy"] = robustness.accuracy
            self.history[-1]["fgsm_accuracy"] = robustness.fgsm_accuracy
            record |= {f"probe/{name}": value for name, value in vars(robustness).items()}
            record["probe/catastrophic_overfitting"] = float(self._overfits(step))
        return record

    def _overfits(self, step: int) -> bool:
        """Return whether the history shows catastrophic overfitting; warn when it does for the first time."""
        begin = math.inf if self.attacks_begin is None else self.attacks_begin
        probed = [point for point in self.history if point["images"] > begin and "fgsm_accuracy" in point]
        pairs = [(point["fgsm_accuracy"], point["robust_accuracy"]) for point in probed]
        overfits = overfits_catastrophically(pairs)
        if overfits and not any(overfits_catastrophically(pairs[:end]) for end in range(len(pairs))):
            fgsm, robust = pairs[-1]
            self.warn(
                f"warning: catastrophic overfitting at {step:,} images: accuracy {fgsm:.1%} under FGSM but "
                f"{robust:.1%} under PGD; use --adversarial pgd or a smaller --adv-eps, or keep the weights from "
                "before by --select robust"
            )
        return overfits
