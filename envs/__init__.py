"""Gymnasium and Stable-Baselines3 environments whose observations are images and whose actions are labels."""

import importlib
from typing import TYPE_CHECKING, Any

import gymnasium

if TYPE_CHECKING:
    from envs.allocator import keep_freed_memory as keep_freed_memory
    from envs.augment import Augmentation as Augmentation
    from envs.datasets import ImageDataset as ImageDataset
    from envs.datasets import Splits as Splits
    from envs.datasets import load_dataset as load_dataset
    from envs.datasets import load_splits as load_splits
    from envs.errors import InputError as InputError
    from envs.sb3 import ImageVecEnv as ImageVecEnv
    from envs.sb3 import sb3_env as sb3_env
    from envs.task import ImageTask as ImageTask

# Imported when first asked for, so that command lines answer before PyTorch is there.
_HOMES = {
    "envs.allocator": ("keep_freed_memory",),
    "envs.augment": ("Augmentation",),
    "envs.datasets": ("ImageDataset", "Splits", "load_dataset", "load_splits"),
    "envs.errors": ("InputError",),
    "envs.sb3": ("ImageVecEnv", "sb3_env"),
    "envs.task": ("ImageTask",),
}
__all__ = sorted(name for names in _HOMES.values() for name in names)


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


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
