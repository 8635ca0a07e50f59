"""The length of a run, its validation interval and its learning-rate schedule."""

from dataclasses import dataclass

import numpy as np

from agents.algorithms.registry import AlgorithmSpec
from agents.config import SMALL_NETWORKS, TrainConfig

MIN_IMAGES = 60_000
PASSES = 40
MAX_VALIDATIONS = 100  # one after every pass, or less often where that would be more


def phase_ends(config: TrainConfig, train_size: int) -> list[int]:
    """Return the number of images after which each phase ends."""
    ends: list[int] = []
    for _, passes in config.phases():
        if passes is None:
            images = config.total_images or max(PASSES * train_size, MIN_IMAGES)
        else:
            images = max(round(passes * train_size), 1)
        ends.append((ends[-1] if ends else 0) + images)
    return ends


@dataclass
class LearningRate:
    """A learning rate that stays, or falls from ``start`` to ``end`` times that, linearly or along a cosine.

    ``linear-floor`` falls on the line from ``start`` to 0 and stays once it is ``end`` times ``start``, as in the
    code of arXiv 2606.12251.
    Over the first ``warmup`` of training, a share, the rate rises from 0 to ``start``.
    """

    start: float
    shape: str
    end: float = 0.02
    warmup: float = 0.0

    def __call__(self, remaining: float) -> float:
        """Return the rate at ``remaining`` progress, from 1 (start) to 0 (end)."""
        if 1 - remaining < self.warmup:
            return self.start * (1 - remaining) / self.warmup
        share = remaining / (1 - self.warmup)
        if self.shape == "constant":
            return self.start
        if self.shape == "linear-floor":
            return self.start * max(self.end, share)
        share = share if self.shape == "linear" else (1 - np.cos(np.pi * share)) / 2
        return float(self.start * (self.end + (1 - self.end) * share))


def learning_rate(config: TrainConfig, algorithm: AlgorithmSpec, warmup: float) -> float | LearningRate:
    """Return the learning rate as SB3 takes it; over the first ``warmup`` of training, a share, it rises."""
    default = (2e-3 if config.network in SMALL_NETWORKS else 1e-3) * algorithm.learning_rate
    start = config.learning_rate or default
    if config.lr_schedule == "constant" and not warmup:
        return start
    return LearningRate(start, config.lr_schedule, config.lr_end, warmup)
