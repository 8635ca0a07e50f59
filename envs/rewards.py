"""The reward matrix, and label noise that is fixed per image."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from envs.errors import InputError, unknown_name
from envs.rng import hash_tensor

REWARDS = ("accuracy", "signed")
_NOISE_STREAM = 0x6E6F697365  # "noise": label noise depends on the image alone, not on the seed


def reward_matrix(reward: Any, num_classes: int) -> Tensor:
    """Return the reward of each [label, action], float32 (K, K), for a name in ``REWARDS`` or such an array.

    Raises:
        InputError: an unknown name, another shape, or values that are not finite numbers.
    """
    correct = torch.eye(num_classes)
    if isinstance(reward, str):
        if reward not in REWARDS:
            raise unknown_name("reward", reward, (*REWARDS, "a (K, K) array"))
        return correct if reward == "accuracy" else 2 * correct - 1
    try:
        matrix = torch.from_numpy(np.array(reward, dtype=np.float32))
    except (TypeError, ValueError):
        raise InputError(f"reward is {reward!r}; expected {REWARDS} or a (K, K) array of numbers") from None
    if matrix.shape != correct.shape:
        expected = f"{tuple(correct.shape)}, [label, action]"
        raise InputError(f"the reward matrix is {tuple(matrix.shape)}; expected {expected}")
    if not torch.isfinite(matrix).all():
        raise InputError("the reward matrix holds NaN or infinity; expected finite numbers")
    return matrix


def noisy_labels(labels: Tensor, num_classes: int, noise: float) -> Tensor:
    """Return ``labels``, int64 (N,), each replaced, with probability ``noise`` in [0, 1), by a uniform wrong one.

    The draw is a hash of the image's index: the same in every run and environment.

    Raises:
        InputError: ``noise`` is out of range, or there is only one class to choose from.
    """
    if not isinstance(noise, int | float) or not 0 <= noise < 1:
        raise InputError(f"label_noise is {noise}; expected a probability in [0, 1), such as 0.2")
    if noise == 0:
        return labels
    if num_classes < 2:
        raise InputError(f"label_noise is {noise} with a single class; wrong labels need another class")
    image = torch.arange(len(labels), device=labels.device)
    flipped = hash_tensor(_NOISE_STREAM, 0, image) < int(noise * 2**63)
    offset = 1 + hash_tensor(_NOISE_STREAM, 1, image) % (num_classes - 1)
    return torch.where(flipped, (labels + offset) % num_classes, labels)
