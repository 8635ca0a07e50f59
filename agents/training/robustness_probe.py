"""Robustness during training, estimated by a short attack on part of the validation data."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import attacks
from agents.algorithms.adversarial import crafting
from agents.training.validation import to_pixels
from attacks.core.losses import margin, misclassified
from attacks.core.norms import get_norm
from envs import ImageDataset
from envs.errors import InputError
from envs.sampling import spread

_BATCH = 128


@dataclass(frozen=True)
class Robustness:
    """Robustness on the probe's images.

    Attributes:
        accuracy: share of the images still classified as labelled after PGD.
        fgsm_accuracy: the same after one step of length eps.
        gradient_norm: mean L2 norm of the gradient of the cross-entropy with respect to the clean image.
        margin: mean difference between the true label's logit and the best other one, on clean images.
    """

    accuracy: float
    fgsm_accuracy: float
    gradient_norm: float
    margin: float


class Probe:
    """PGD, FGSM, gradients and margins on a slice of ``dataset``, spread evenly over it.

    Its random starts depend on the images alone: it draws from no generator that training uses, so a probed run learns
    the very weights of one that is not.

    Args:
        dataset: validation data.
        images: how many of them, at most.
        norm: "Linf", "L2" or "L1".
        eps: radius in units of pixels in [0, 1].
        steps: of PGD.

    Raises:
        InputError: the radius is larger than the images allow.
    """

    def __init__(self, dataset: ImageDataset, images: int, norm: str, eps: float, steps: int = 10) -> None:
        chosen = dataset.take(spread(len(dataset), images))
        self.images, self.labels = chosen.images, chosen.labels
        self.norm, self.eps, self.steps = get_norm(norm), eps, steps
        diameter = self.norm.diameter(math.prod(dataset.shape))
        if eps > diameter:
            raise InputError(
                f"--adv-eps is {eps:g}; expected at most {diameter:g}, the {norm} diameter of these images in [0, 1]"
            )

    def __call__(self, classifier: nn.Module) -> Robustness:
        """Attack ``classifier`` (float images in [0, 1] to logits) in eval mode; its modes are restored."""
        pixels = to_pixels(self.images)
        with crafting(classifier):
            looks = [
                self._look(classifier, *part)
                for part in zip(pixels.split(_BATCH), self.labels.split(_BATCH), strict=True)
            ]
            result = attacks.pgd(
                classifier, pixels, self.labels, norm=self.norm.name, eps=self.eps, steps=self.steps
            )
        fgsm, gradient, gap = (torch.stack(looks).sum(0) / len(pixels)).tolist()
        return Robustness(result.robust_accuracy, fgsm, gradient, gap)

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
    running it is under a quarter of the FGSM accuracy, which is above a half.

    Args:
        history: (FGSM accuracy, PGD accuracy) of every validation since attacks began, the latest last.
    """
    if len(history) < 2:
        return False
    fgsm, robust = history[-1]
    best_fgsm, best = max(history, key=lambda point: point[1])
    collapsed = robust < min(best, fgsm) / 2 and fgsm >= best_fgsm - 0.05
    return collapsed or all(first > 0.5 and full < first / 4 for first, full in history[-2:])
