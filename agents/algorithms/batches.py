"""What an update of an algorithm with a single forward pass learns from."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Batch:
    """What one update learns from; N images.

    Attributes:
        pixels: float images in [0, 1], ``(N, C, H, W)``.
        logits: ``(N, K)``, with their graph.
        actions: int64 ``(N,)``, taken.
        returns: float32 ``(N,)``, discounted rewards from each action on.
        labels: int64 ``(N,)``, the labels that rewards use; None outside an image task.
        action_rewards: float32 ``(N, K)``, the reward of every action; None where no loss or attack needs it.
    """

    pixels: Tensor
    logits: Tensor
    actions: Tensor
    returns: Tensor
    labels: Tensor | None = None
    action_rewards: Tensor | None = None


def concatenate(steps: list[Batch]) -> Batch:
    """Return the images of all ``steps`` as one batch."""
    columns = zip(*(vars(step).values() for step in steps), strict=True)
    return Batch(*(None if column[0] is None else torch.cat(column) for column in columns))  # type: ignore[arg-type]
