"""Accuracy of a classifier on a data set, in batches on its own device."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from envs import ImageDataset


@dataclass(frozen=True)
class Evaluation:
    """What a classifier achieves on a data set.

    Attributes:
        accuracy: share of images classified as labelled.
        loss: mean cross-entropy in nats.
        margin: mean difference between the true label's logit and the best other one.
    """

    accuracy: float
    loss: float
    margin: float


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
    for images, labels in zip(
        dataset.images.split(batch_size), dataset.labels.split(batch_size), strict=True
    ):
        labels = labels.to(device)
        logits = classifier(to_pixels(images.to(device))).float()
        true = logits.gather(1, labels[:, None])[:, 0]
        others = logits.scatter(1, labels[:, None], -torch.inf).amax(1)
        correct = (logits.argmax(1) == labels).double().sum()
        loss = F.cross_entropy(logits, labels, reduction="sum").double()
        totals += torch.stack([correct, loss, (true - others).double().sum()])
    classifier.train(training)
    accuracy, loss, margin = (totals / len(dataset)).tolist()
    return Evaluation(accuracy, loss, margin)
