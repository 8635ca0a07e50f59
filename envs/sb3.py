"""Image tasks as a native Stable-Baselines3 ``VecEnv``: one gather per step, no loop over environments."""

import time
from collections.abc import Iterable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env.base_vec_env import VecEnv
from torch import Tensor

from envs.arguments import TaskAttributes, check_actions, check_render_mode, resolve_dataset
from envs.errors import InputError
from envs.plain import check_seed, plain
from envs.render import Answer, render_answers
from envs.task import ImageTask

Indices = None | int | Iterable[int]


class ImageVecEnv(TaskAttributes, VecEnv):
    """An ``ImageTask`` that any SB3 algorithm with discrete actions trains on.

    Observations are uint8 (n, C, H, W), rewards float32 (n,), dones bool (n,). Every array is fresh, and the
    environment never writes into one it has returned.

    ``infos`` is one shared list of one empty dictionary while there is nothing to say. One-step episodes have
    no ``terminal_observation``: nothing follows the answer, so no algorithm uses what it would hold. Longer
    episodes have it in NumPy mode: the image answered last, again.

    Args:
        task: the environments; ``.task`` afterwards.
        tensors: return tensors on the task's device in place of NumPy arrays, and take actions as tensors
            there, unchecked; stock SB3 algorithms need NumPy. Actions in NumPy are answered in NumPy even so, as
            SB3's ``evaluate_policy`` wants it.
        monitor: report finished episodes as ``Monitor`` does, ``{"episode": {"r", "l", "t"}}``, for SB3's
            mean reward. Costs a dictionary per episode.
        seed: the seed of the first ``reset``, as ``seed()`` would set.
        render_mode: None or ``"rgb_array"``.
    """

    settable = ("render_mode", "monitor")

    def __init__(
        self,
        task: ImageTask,
        *,
        tensors: bool = False,
        monitor: bool = False,
        seed: int | None = None,
        render_mode: str | None = None,
    ) -> None:
        self.task = task
        self.tensors = tensors
        self.monitor = monitor
        self.render_mode = check_render_mode(render_mode)  # before super().__init__, which asks for it
        super().__init__(task.num_envs, task.observation_space, task.action_space)
        if seed is not None:
            self.seed(seed)
        self._no_infos: list[dict[str, Any]] = [{}] * self.num_envs
        self._answer: Answer | None = None
        self._start_time = time.time()
        self._begin_episodes()

    def reset(self) -> Any:
        """Begin new episodes and return the images: uint8 (n, C, H, W)."""
        seeds = [seed for seed in self._seeds if seed is not None]
        self.task.reset(seeds or None)
        self._reset_seeds()
        self._reset_options()
        self._as_tensors = self.tensors
        self._begin_episodes()
        self._answer = None
        return self._output(self.task.observe())

    def step_async(self, actions: Any) -> None:
        """Take the answers, integers (n,) in [0, K), for ``step_wait``."""
        self._as_tensors = self.tensors and isinstance(actions, Tensor)
        if not self._as_tensors:
            check_actions(actions, self.num_envs, self.task.num_actions)
        self._actions = torch.as_tensor(actions, device=self.task.device)

    def step_wait(self) -> tuple[Any, Any, Any, list[dict[str, Any]]]:
        """Return observations, rewards, dones and infos; what is done already shows its next image."""
        self._answer = Answer(self.task.indices, self.task.augment_seeds, self._actions)
        rewards, terminated = self.task.step(self._actions)
        infos = self._infos(rewards, terminated, self._answer)
        observations = self._output(self.task.observe())
        return observations, self._output(rewards), self._output(terminated), infos

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Seed the next ``reset``: environment i gets ``seed + i``, after those of earlier shards."""
        offset = self.task.shard[0] * self.num_envs
        self._seeds = [int(value) + offset for value in super().seed(check_seed(seed)) if value is not None]
        return self._seeds

    def close(self) -> None:
        """Do nothing: there is nothing to release."""

    def get_images(self) -> Sequence[np.ndarray | None]:
        """Return a picture of every environment: the last answer, or the image shown if there is none."""
        return list(render_answers(self.task, self._answer))

    def get_attr(self, attr_name: str, indices: Indices = None) -> list[Any]:
        """Return the attribute of this object, or else of its task, once per index: environments share it."""
        owner = self if attr_name in self.__dict__ or hasattr(type(self), attr_name) else self.task
        return [getattr(owner, attr_name)] * len(self._index_list(indices))

    def set_attr(self, attr_name: str, value: Any, indices: Indices = None) -> None:
        """Set an attribute for all environments at once: the task's ``length``, ``stop_on_error`` and
        ``reward_matrix``, this object's ``render_mode`` and ``monitor``, and new ones of the user's.

        Raises:
            InputError: ``indices`` names only some of them, or the attribute cannot be changed.
        """
        if len(set(self._index_list(indices))) != self.num_envs:
            remedy = f"these environments share {attr_name!r}, set it for all"
            raise InputError(f"indices is {indices!r}; {remedy}")
        self.set_shared(attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: Indices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Call a method of single environments; ``render`` is the one they have.

        Raises:
            AttributeError: any other method.
        """
        if method_name != "render":
            problem = f"batched environments have no method {method_name!r} of their own"
            raise AttributeError(f"{problem}; only 'render'. For others use DummyVecEnv over ImageBandit-v0")
        pictures = self.get_images()
        return [pictures[index] for index in self._index_list(indices)]

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: Indices = None) -> list[bool]:
        """Say whether episodes are monitored if asked for ``Monitor``; there are no other wrappers."""
        wrapped = self.monitor and issubclass(Monitor, wrapper_class)
        return [wrapped] * len(self._index_list(indices))

    def _output(self, values: Tensor) -> Any:
        return values if self._as_tensors else values.cpu().numpy()

    def _begin_episodes(self) -> None:
        self._returns = np.zeros(self.num_envs)
        self._lengths = np.zeros(self.num_envs, dtype=np.int64)

    def _infos(self, rewards: Tensor, terminated: Tensor, answer: Answer) -> list[dict[str, Any]]:
        with_observations = self.task.length > 1 and not self._as_tensors
        if not (self.monitor or with_observations):
            return self._no_infos
        if self.monitor:
            self._returns += rewards.cpu().numpy()
            self._lengths += 1
        done = terminated.cpu().numpy()
        if not done.any():
            return self._no_infos
        infos = list(self._no_infos)
        ended = done.nonzero()[0]
        if with_observations:
            rows = torch.from_numpy(ended).to(self.task.device)
            shown = self.task.render_batch(answer.indices[rows], answer.augment_seeds[rows])
            for i, image in zip(ended.tolist(), shown.cpu().numpy(), strict=True):
                infos[i] = {"terminal_observation": image}
        if self.monitor:
            elapsed = round(time.time() - self._start_time, 6)
            totals = zip(self._returns[ended].tolist(), self._lengths[ended].tolist(), strict=True)
            for i, (total, length) in zip(ended.tolist(), totals, strict=True):
                infos[i] = {**infos[i], "episode": {"r": total, "l": length, "t": elapsed}}
            self._returns[ended] = 0
            self._lengths[ended] = 0
        return infos

    def _index_list(self, indices: Indices) -> list[int]:
        return list(self._get_indices(plain(indices)))


def sb3_env(
    dataset: Any = "digits",
    num_envs: int = 256,
    *,
    split: str = "train",
    tensors: bool = False,
    device: torch.device | str = "cpu",
    seed: int | None = None,
    monitor: bool = False,
    render_mode: str | None = None,
    data_root: str | None = None,
    image_size: int | None = None,
    **task_options: Any,
) -> ImageVecEnv:
    """Return ``num_envs`` environments over a data set as one SB3 ``VecEnv``.

    Args:
        dataset: an ``ImageDataset``, or a name for ``load_dataset``, which also takes ``split``,
            ``data_root`` and ``image_size``.
        num_envs: how many environments.
        tensors, monitor, seed, render_mode: as in ``ImageVecEnv``.
        device: where data set and environments live.
        **task_options: options of ``ImageTask``, such as ``reward="signed"`` or ``length=10``.

    Raises:
        InputError: a wrong argument, or data that cannot be loaded.

    Example:
        >>> from stable_baselines3 import PPO  # doctest: +SKIP
        >>> model = PPO("MlpPolicy", sb3_env("digits"), gamma=0, n_steps=4).learn(50_000)  # doctest: +SKIP
    """
    data = resolve_dataset(dataset, split, data_root=data_root, image_size=image_size)
    task = ImageTask(data, num_envs, device=device, **task_options)
    return ImageVecEnv(task, tensors=tensors, monitor=monitor, seed=seed, render_mode=render_mode)
