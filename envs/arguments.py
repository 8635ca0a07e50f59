"""Arguments and attributes that the environment classes have in common."""

from collections.abc import Container
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
from gymnasium.envs.registration import EnvSpec

from envs.datasets import ImageDataset, load_dataset
from envs.errors import InputError
from envs.plain import plain
from envs.task import ImageTask

RENDER_MODES = ("rgb_array",)
# A thousand scalar environments over one data set share it while any of them lives.
_loaded: WeakValueDictionary[tuple[Any, ...], ImageDataset] = WeakValueDictionary()


def resolve_dataset(
    dataset: str | ImageDataset,
    split: str,
    *,
    data_root: str | Path | None = None,
    image_size: int | None = None,
) -> ImageDataset:
    """Return the data set called ``dataset``, or ``dataset`` itself if it is one already.

    Raises:
        InputError: as ``load_dataset``, or ``dataset`` is neither a name nor an ``ImageDataset``.
    """
    if isinstance(dataset, ImageDataset):
        return dataset
    image_size = plain(image_size)
    if not isinstance(dataset, str):
        raise InputError(f"dataset is a {type(dataset).__name__}; expected a name or an ImageDataset")
    key = (dataset, split, str(data_root), image_size)
    data = _loaded.get(key)
    if data is None:
        data = _loaded[key] = load_dataset(dataset, split, data_root=data_root, image_size=image_size)
    return data


def check_bandit(options: Container[str]) -> None:
    """Raise InputError for options that only episodes of several images have."""
    for name in ("length", "stop_on_error"):
        if name in options:
            raise InputError(f"{name} is for ImageEpisode-v0; the episodes of ImageBandit-v0 have one image")


def check_render_mode(render_mode: str | None) -> str | None:
    """Return ``render_mode``, which must be None or ``"rgb_array"``, else raise InputError."""
    if render_mode is not None and render_mode not in RENDER_MODES:
        raise InputError(f"render_mode is {render_mode!r}; expected None or 'rgb_array'")
    return render_mode


def check_actions(actions: Any, num_envs: int, num_actions: int) -> np.ndarray:
    """Return NumPy actions as they are if they are integers (num_envs,) in [0, num_actions).

    Raises:
        InputError: another type or shape, or an action out of range.
    """
    actions = np.asarray(actions)
    if actions.shape != (num_envs,) or actions.dtype.kind not in "iu":
        found = f"{actions.dtype} of shape {actions.shape}"
        raise InputError(f"actions are {found}; expected integers of shape ({num_envs},)")
    lowest, highest = actions.min(), actions.max()
    if lowest < 0 or highest >= num_actions:
        raise InputError(f"actions reach from {lowest} to {highest}; expected labels in 0..{num_actions - 1}")
    return actions


class TaskAttribute:
    """An attribute of ``env.task``; setting it changes the task or raises InputError, see ``ImageTask.change``."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, env: Any, owner: type | None = None) -> Any:
        return self if env is None else getattr(env.task, self.name)

    def __set__(self, env: Any, value: Any) -> None:
        env.task.change(self.name, value)


class TaskAttributes:
    """Gives an environment its task's attributes, and its specification the length of the longest episode."""

    task: ImageTask
    # By set_attr, beside the task's attributes and those that the user added.
    settable: tuple[str, ...] = ("render_mode",)
    _spec: EnvSpec | None = None

    length = TaskAttribute()
    stop_on_error = TaskAttribute()
    reward_matrix = TaskAttribute()
    label_noise = TaskAttribute()
    augmentation = TaskAttribute()
    order = TaskAttribute()
    shard = TaskAttribute()
    dataset = TaskAttribute()

    @property
    def spec(self) -> EnvSpec | None:
        """Gymnasium's specification, where the environment was made by name."""
        if self._spec is not None:
            self._spec.max_episode_steps = self._most_steps()
        return self._spec

    @spec.setter
    def spec(self, spec: EnvSpec | None) -> None:
        self._spec = spec

    def set_shared(self, name: str, value: Any) -> None:
        """Set an attribute for all environments at once; new ones are the user's own.

        Raises:
            InputError: the value is wrong, or setting this attribute would have no effect.
        """
        own = self.__dict__.setdefault("_own", set())
        known = hasattr(self, name) or hasattr(self.task, name)
        of_task = isinstance(getattr(type(self), name, None), TaskAttribute)
        if not known:
            own.add(name)
        if known and not (of_task or name in own or name in self.settable):
            self.task.change(name, value)  # which refuses
        setattr(self, name, check_render_mode(value) if name == "render_mode" else value)

    def _most_steps(self) -> int:
        return self.task.length
