"""Gymnasium and Stable-Baselines3 environments whose observations are images and whose actions are labels."""

import gymnasium

from envs.allocator import keep_freed_memory
from envs.augment import Augmentation
from envs.datasets import ImageDataset, Splits, load_dataset, load_splits
from envs.errors import InputError
from envs.sb3 import ImageVecEnv, sb3_env
from envs.task import ImageTask

__all__ = [
    "Augmentation",
    "ImageDataset",
    "ImageTask",
    "ImageVecEnv",
    "InputError",
    "Splits",
    "keep_freed_memory",
    "load_dataset",
    "load_splits",
    "sb3_env",
]

gymnasium.register(
    "ImageBandit-v0",
    entry_point="envs.scalar:ImageBandit",
    vector_entry_point="envs.vector:ImageBanditVector",
)
gymnasium.register(
    "ImageEpisode-v0",
    entry_point="envs.scalar:ImageEpisode",
    vector_entry_point="envs.vector:ImageEpisodeVector",
)
