"""The task's attributes as attributes of the environment: readable, and writable where that has an effect."""

from typing import Any

from gymnasium.envs.registration import EnvSpec

from envs.arguments import check_render_mode
from envs.task import ImageTask


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
