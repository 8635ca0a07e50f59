"""Forward passes over any number of images, in batches that fit in memory."""

import torch
from torch import Tensor, nn

from attacks.core.batching import default_batch_size
from attacks.core.model import forward


def logits_of(model: nn.Module, x: Tensor) -> Tensor:
    """Return the logits (N, K), at least float32, without gradient.

    Raises:
        AttackError: the model's output is not one row of logits per image.
    """
    return torch.cat([forward(model, part) for part in x.split(default_batch_size(x))])
