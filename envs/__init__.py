"""Gymnasium and Stable-Baselines3 environments whose observations are images and whose actions are labels."""

from typing import TYPE_CHECKING

import gymnasium

from envs.lazy_imports import lazy_names

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

_HOMES = {
    "envs.allocator": ("keep_freed_memory",),
    "envs.augment": ("Augmentation",),
    "envs.datasets": ("ImageDataset", "Splits", "load_dataset", "load_splits"),
    "envs.errors": ("InputError",),
    "envs.sb3": ("ImageVecEnv", "sb3_env"),
    "envs.task": ("ImageTask",),
}
__getattr__ = lazy_names(__name__, _HOMES)
__all__ = sorted(name for names in _HOMES.values() for name in names)


def __dir__() -> list[str]:
    return __all__


for _name in ("ImageBandit", "ImageEpisode"):
    _entries = {"entry_point": f"envs.scalar:{_name}", "vector_entry_point": f"envs.vector:{_name}Vector"}
    gymnasium.register(f"{_name}-v0", **_entries)  # type: ignore[arg-type]
