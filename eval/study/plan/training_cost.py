"""What a training costs, counted in forward passes of one image."""

from agents.algorithms.registry import find_algorithm
from agents.config import TrainConfig
from agents.training.schedule import phase_ends

BACKWARD = 3.0  # forward and backward together, in forwards


def training_passes(config: TrainConfig, train_images: int, until: int | None = None) -> float:
    """Return the forward passes of a training: 3 an image, PPO 1 + 3 per epoch, and 3 per step of its attacks.

    Args:
        config: of the training.
        train_images: images in the training set.
        until: images trained on; None: to the end.
    """
    total, begin = 0.0, 0
    adversarial = config.adversarial
    for (name, _), end in zip(config.phases(), phase_ends(config, train_images), strict=True):
        last = end if until is None else min(end, until)
        images = max(0, last - begin)
        total += images * find_algorithm(name).forward_passes(config)
        if adversarial.method != "none":
            extra = adversarial.full_steps() + (0 if adversarial.rule == "replace" else 1)
            attacked = max(0.0, last - max(begin, (adversarial.start or 0.0) * train_images))
            total += attacked * extra * BACKWARD
        begin = end
    return total
