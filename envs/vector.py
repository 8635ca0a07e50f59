"""The environments as native Gymnasium vector environments: one gather per step, no loop over environments."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from envs.arguments import TaskAttributes, check_actions, check_bandit, check_render_mode, resolve_dataset
from envs.datasets import ImageDataset
from envs.errors import InputError, unknown_name
from envs.plain import check_count
from envs.render import Answer, render_answers
from envs.task import ImageTask

OUTPUTS = ("numpy", "torch")


class ImageEpisodeVector(TaskAttributes, VectorEnv[Any, Any, Any]):
    """``num_envs`` times ``ImageEpisode-v0`` at once; seeded alike, step by step what ``SyncVectorEnv`` makes of them.

    Every array is fresh, and the environment never writes into one it has returned. ``call``, ``get_attr`` and
    ``set_attr`` are those of ``SyncVectorEnv``, for attributes that all environments share.

    Args:
        num_envs: how many environments, n.
        dataset, split, length, data_root, image_size, render_mode: as in ``ImageEpisode``.
        max_episode_steps: truncate episodes after so many images, as ``TimeLimit`` does.
        autoreset_mode: what follows the end of an episode. ``SAME_STEP``: the next one's first image at once, with
            the last image in ``infos["final_obs"]`` and its info in ``infos["final_info"]``. ``NEXT_STEP``: the
            last image again; the step after it ignores the action and begins an episode. ``DISABLED``: the last
            image again; call ``reset(options={"reset_mask": mask})``. A member of ``AutoresetMode`` or its value.
        output: ``"numpy"``, or ``"torch"`` for tensors on the device everywhere; actions are then taken as tensors
            unchecked, and ``final_obs`` is one tensor (n, C, H, W), to be read where ``_final_obs`` is true.
        device: where the data set and the environments live.
        **options: those of ``ImageEpisode``, and ``shard``, as in ``ImageTask``.

    Raises:
        InputError: a wrong argument, or data that cannot be loaded.

    Example:
        >>> envs = gym.make_vec("envs:ImageEpisode-v0", num_envs=1024, dataset="digits",
        ...                     vectorization_mode="vector_entry_point")  # doctest: +SKIP
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 2}  # noqa: RUF012  Gymnasium's own form

    def __init__(
        self,
        num_envs: int = 1,
        dataset: str | ImageDataset = "digits",
        split: str = "train",
        *,
        length: int = 10,
        max_episode_steps: int | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP,
        output: str = "numpy",
        device: torch.device | str = "cpu",
        data_root: str | Path | None = None,
        image_size: int | None = None,
        render_mode: str | None = None,
        **options: Any,
    ) -> None:
        if output not in OUTPUTS:
            raise unknown_name("output", output, OUTPUTS)
        try:
            self.autoreset_mode = AutoresetMode(autoreset_mode)
        except ValueError:
            modes = [known.value for known in AutoresetMode]
            raise unknown_name("autoreset_mode", str(autoreset_mode), modes) from None
        self.metadata = {**self.metadata, "autoreset_mode": self.autoreset_mode}
        data = resolve_dataset(dataset, split, data_root=data_root, image_size=image_size)
        self.task = ImageTask(data, num_envs, length=length, device=device, **options)
        self.num_envs, self.render_mode = self.task.num_envs, check_render_mode(render_mode)
        self.single_observation_space = self.task.observation_space
        self.single_action_space = self.task.action_space
        steps = max_episode_steps
        self._limit = None if steps is None else check_count("max_episode_steps", steps)
        self._tensors = output == "torch"
        self._answer: Answer | None = None
        # Episodes to reset.
        self._over = torch.zeros(self.num_envs, dtype=torch.bool, device=self.task.device)

    @cached_property
    def observation_space(self) -> spaces.Space:  # type: ignore[override]
        """The batch of observation spaces; made when first asked for, as it takes four times a batch's memory."""
        return batch_space(self.single_observation_space, self.num_envs)

    @cached_property
    def action_space(self) -> spaces.Space:  # type: ignore[override]
        """The batch of action spaces."""
        return batch_space(self.single_action_space, self.num_envs)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begin new episodes.

        Args:
            seed: environment i gets ``seed + i`` or ``seed[i]``, and its draws start over; None goes on with them.
            options: ``{"reset_mask": mask}`` resets the environments where the mask, bool (n,), is true; the
                observations of the others stay, and the infos are of those that were reset.

        Raises:
            InputError: wrong seeds, or a mask of another type or shape, or without a single True.
        """
        mask: Tensor | None = None
        if (given := (options or {}).get("reset_mask")) is not None:
            mask = torch.as_tensor(given, device=self.task.device)
            if mask.dtype != torch.bool or mask.shape != (self.num_envs,) or not mask.any():
                expected = f"expected booleans of shape ({self.num_envs},), at least one of them true"
                raise InputError(f"reset_mask holds {mask.dtype} of shape {tuple(mask.shape)}; {expected}")
        self.task.reset(seed, mask)
        super().reset(seed=None if seed is None or np.ndim(seed) else int(seed))  # type: ignore[call-overload, arg-type]
        if mask is None or self._answer is None:
            self._answer = None
            self._over = torch.zeros_like(self._over)
        else:
            self._answer = self._answer.without(mask, self.task)
            self._over = self._over & ~mask
        return self._output(self.task.observe()), self._masked(mask, index=self.task.indices)

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Answer every image with a label in 0..K-1: integers (n,).

        Returns:
            observations uint8 (n, C, H, W), rewards float64 (n,) (float32 tensors), terminations and truncations bool
            (n,), and infos as ``SyncVectorEnv`` merges them: ``index``, and ``label`` after an answer.

        Raises:
            InputError: actions of another type or shape, or out of range (NumPy output only).
            ResetNeeded: an episode is over and was not reset, in mode ``DISABLED``.
        """
        task = self.task
        if not self._tensors:
            check_actions(actions, self.num_envs, task.num_actions)
        if self.autoreset_mode is AutoresetMode.DISABLED and self._over.any():
            raise ResetNeeded('episodes are over; call reset(options={"reset_mask": terminated | truncated})')
        chosen = torch.as_tensor(actions, device=task.device)
        self._answer = Answer(task.indices, task.augment_seeds, chosen)
        truths = task.true_labels
        rewards, terminated = task.answer(chosen)
        truncated = self._truncated()
        if self.autoreset_mode is AutoresetMode.SAME_STEP:
            infos = self._restart(truths, terminated, truncated)
        else:
            waiting = self._over
            rewards = rewards.masked_fill(waiting, 0)
            terminated, truncated = terminated & ~waiting, truncated & ~waiting
            task.move_on(~terminated, ended=waiting)
            self._answer = self._answer.without(waiting, task)
            self._over = terminated | truncated
            infos = self._masked(index=task.indices)
            infos |= {} if waiting.all() else self._masked(~waiting, label=truths)
        rewards = rewards if self._tensors else rewards.double()
        outcome = (self._output(rewards), self._output(terminated), self._output(truncated))
        return self._output(task.observe()), *outcome, infos

    def render(self) -> tuple[np.ndarray, ...] | None:
        """Return a picture of every environment: the last answer, or the image shown if there is none yet."""
        return None if self.render_mode is None else tuple(render_answers(self.task, self._answer))

    def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Return, for every environment, what its method ``render`` returns, or the attribute called ``name``.

        Raises:
            AttributeError: another method, or no such attribute.
        """
        if name == "render":
            return self.render() or (None,) * self.num_envs
        single = f"single_{name}" if name in ("observation_space", "action_space") else name
        value = getattr(self, single)
        if callable(value):
            raise AttributeError(f"batched environments have no {name!r} of their own; use SyncVectorEnv")
        return (value,) * self.num_envs

    def get_attr(self, name: str) -> tuple[Any, ...]:
        """Return the attribute called ``name`` of every environment."""
        return self.call(name)

    def set_attr(self, name: str, values: Any) -> None:
        """Set an attribute of all environments: ``length``, ``stop_on_error``, ``reward_matrix``, or the user's own.

        ``values`` is the value, or a list or tuple of it for every environment, all the same.

        Raises:
            InputError: the values differ, or the attribute cannot be changed.
        """
        if isinstance(values, list | tuple):
            if len(values) != self.num_envs or any(not np.array_equal(value, values[0]) for value in values):
                shared = f"the {self.num_envs} environments share it"
                raise InputError(f"{name} is {values!r}; {shared}, give one value for all")
            values = values[0]
        self.set_shared(name, values)

    def _restart(self, truths: Tensor, terminated: Tensor, truncated: Tensor) -> dict[str, Any]:
        """Begin episodes where some ended, and return the infos: these have theirs in ``final_info``."""
        task = self.task
        ended = terminated | truncated
        count = self.num_envs if task.length == 1 else int(ended.sum())
        if self._limit is not None:
            task.move_on(~terminated)  # a truncated episode shows its next image, and is cut there
        # Rendered again: wrappers write into the observations that they were given.
        observations: Any = self._output(task.observe()) if count else None
        indices = task.indices
        task.move_on(ended=None if task.length == 1 else ended, by=1 if self._limit is None else ended)
        infos = self._masked(index=task.indices)
        if count < self.num_envs:
            infos |= self._masked(~ended, label=truths)
        if count:
            if not self._tensors:  # Gymnasium's form of final observations: objects, None where nothing ended
                objects = np.fromiter(observations, dtype=object, count=len(observations))
                objects[~self._output(ended)] = None
                observations = objects
            final_info = self._masked(ended, index=indices, label=truths)
            infos |= {"final_obs": observations, "_final_obs": self._output(ended.clone())}
            infos |= {"final_info": final_info, "_final_info": self._output(ended.clone())}
        return infos

    def _truncated(self) -> Tensor:
        if self._limit is None:
            return torch.zeros_like(self._over)
        if self.task.length == 1:  # where nothing is counted
            return torch.full_like(self._over, self._limit == 1)
        return self.task.played >= self._limit

    def _most_steps(self) -> int:
        return min(self.task.length, self._limit or self.task.length)

    def _masked(self, mask: Tensor | None = None, **values: Tensor) -> dict[str, Any]:
        """Return each value, zero where the mask (default: all) is false, beside a copy of the mask as ``_name``."""
        masked = {}
        for name, value in values.items():
            here = torch.ones_like(value, dtype=torch.bool) if mask is None else mask.clone()
            masked[name] = self._output(value * here)
            masked[f"_{name}"] = self._output(here)
        return masked

    def _output(self, values: Tensor) -> Any:
        return values if self._tensors else values.cpu().numpy()


class ImageBanditVector(ImageEpisodeVector):
    """``num_envs`` times ``ImageBandit-v0`` at once: ``ImageEpisodeVector`` with episodes of a single image.

    Arguments are those of ``ImageEpisodeVector`` other than ``length`` and ``stop_on_error``.
    """

    def __init__(
        self, num_envs: int = 1, dataset: str | ImageDataset = "digits", split: str = "train", **options: Any
    ) -> None:
        check_bandit(options)
        super().__init__(num_envs, dataset, split, length=1, **options)
