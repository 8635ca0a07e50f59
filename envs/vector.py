"""The environments as native Gymnasium vector environments: one gather per step, no loop over environments."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from envs.arguments import check_actions, check_render_mode, resolve_dataset
from envs.augment import Augmentation
from envs.datasets import ImageDataset
from envs.errors import InputError, unknown_name
from envs.render import Answer, render_answers
from envs.task import ImageTask

OUTPUTS = ("numpy", "torch")


class ImageEpisodeVector(VectorEnv[Any, Any, Any]):
    """``num_envs`` times ``ImageEpisode-v0`` at once; seeded alike, step by step what ``SyncVectorEnv`` makes of them.

    Finished episodes start anew within the step (``AutoresetMode.SAME_STEP``): the observation is already that of the
    next episode, the last one's is in ``infos["final_obs"]`` and its info in ``infos["final_info"]``. Every array is
    fresh and never written to again; ``final_obs`` holds views of the observations returned a step earlier.

    Args:
        num_envs: how many environments, n.
        dataset, split, length, stop_on_error, reward, label_noise, augmentation, order, data_root, image_size,
            render_mode: as in ``ImageEpisode``.
        shard: as in ``ImageTask``.
        output: ``"numpy"``, or ``"torch"`` for tensors on the device everywhere; actions are then taken as tensors
            unchecked, and ``final_obs`` is one tensor (n, C, H, W), to be read where ``_final_obs`` is true.
        device: where the data set and the environments live.

    Raises:
        InputError: a wrong argument, or data that cannot be loaded.

    Example:
        >>> envs = gym.make_vec("envs:ImageEpisode-v0", num_envs=1024, dataset="digits",
        ...                     vectorization_mode="vector_entry_point")  # doctest: +SKIP
    """

    metadata = {  # noqa: RUF012  Gymnasium's own form
        "render_modes": ["rgb_array"],
        "render_fps": 2,
        "autoreset_mode": AutoresetMode.SAME_STEP,
    }

    def __init__(
        self,
        num_envs: int = 1,
        dataset: str | ImageDataset = "digits",
        split: str = "train",
        *,
        length: int = 10,
        stop_on_error: bool = False,
        reward: Any = "accuracy",
        label_noise: float = 0.0,
        augmentation: Augmentation | str | None = None,
        order: str = "iid",
        shard: tuple[int, int] = (0, 1),
        output: str = "numpy",
        device: torch.device | str = "cpu",
        data_root: str | Path | None = None,
        image_size: int | None = None,
        render_mode: str | None = None,
    ) -> None:
        if output not in OUTPUTS:
            raise unknown_name("output", output, OUTPUTS)
        self.task = ImageTask(
            resolve_dataset(dataset, split, data_root=data_root, image_size=image_size),
            num_envs,
            length=length,
            stop_on_error=stop_on_error,
            reward=reward,
            label_noise=label_noise,
            augmentation=augmentation,
            order=order,
            shard=shard,
            device=device,
        )
        self.num_envs = self.task.num_envs
        self.render_mode = check_render_mode(render_mode)
        self.single_observation_space = self.task.observation_space
        self.single_action_space = self.task.action_space
        self._tensors = output == "torch"
        self._shown: Any = None
        self._answer: Answer | None = None

    @cached_property
    def observation_space(self) -> spaces.Space:  # type: ignore[override]
        """The batch of observation spaces; made when first asked for, as it takes four times a batch's memory."""
        return batch_space(self.single_observation_space, self.num_envs)

    @cached_property
    def action_space(self) -> spaces.Space:  # type: ignore[override]
        """The batch of action spaces."""
        return batch_space(self.single_action_space, self.num_envs)

    def reset(
        self, *, seed: int | Sequence[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begin new episodes in all environments.

        Args:
            seed: environment i gets ``seed + i`` or ``seed[i]``, and its draws start over; None goes on with them.
            options: none are known; ``reset_mask`` is refused, as episodes restart by themselves.
        """
        if options and "reset_mask" in options:
            raise InputError("reset_mask is not supported; finished episodes start anew by themselves")
        super().reset(seed=seed if isinstance(seed, int) else None)
        self.task.reset(seed)
        self._answer = None
        self._shown = self._output(self.task.observe())
        return self._shown, self._masked(index=self.task.indices)

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Answer every image with a label in 0..K-1: integers (n,).

        Returns:
            observations uint8 (n, C, H, W), rewards float64 (n,) (float32 tensors), terminations and truncations bool
            (n,), and infos as ``SyncVectorEnv`` merges them: ``index``, and ``label`` after an answer.

        Raises:
            InputError: actions of another type or shape, or out of range (NumPy output only).
        """
        task = self.task
        if not self._tensors:
            check_actions(actions, self.num_envs, task.num_actions)
        chosen = torch.as_tensor(actions, device=task.device)
        answered, indices, truths = self._shown, task.indices, task.true_labels
        self._answer = Answer(indices, task.augment_seeds, chosen)
        rewards, terminated = task.step(chosen)
        self._shown = self._output(task.observe())
        infos = self._step_infos(answered, indices, truths, terminated)
        if not self._tensors:
            rewards = rewards.double()
        truncated = torch.zeros_like(terminated)
        return self._shown, self._output(rewards), self._output(terminated), self._output(truncated), infos

    def render(self) -> tuple[np.ndarray, ...] | None:
        """Return a picture of every environment: the last answer, or the image shown if there is none yet."""
        return None if self.render_mode is None else tuple(render_answers(self.task, self._answer))

    def _step_infos(
        self, answered: Any, indices: Tensor, truths: Tensor, terminated: Tensor
    ) -> dict[str, Any]:
        """Return the infos: ended episodes have theirs in ``final_info``, beside the reset's; as Gymnasium merges."""
        ended = self.num_envs if self.task.length == 1 else int(terminated.sum())
        infos = self._masked(index=self.task.indices)
        if ended < self.num_envs:
            infos |= self._masked(~terminated, label=truths)
        if ended == 0:
            return infos
        infos["final_obs"] = answered if self._tensors else _object_array(answered, self._output(terminated))
        infos["_final_obs"] = self._output(terminated.clone())
        infos["final_info"] = self._masked(terminated, index=indices, label=truths)
        infos["_final_info"] = self._output(terminated.clone())
        return infos

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

    Args:
        num_envs: how many environments.
        dataset: a name for ``load_dataset`` or an ``ImageDataset``.
        split: ``"train"``, ``"val"`` or ``"test"``.
        **options: those of ``ImageEpisodeVector`` other than ``length`` and ``stop_on_error``.
    """

    def __init__(
        self,
        num_envs: int = 1,
        dataset: str | ImageDataset = "digits",
        split: str = "train",
        **options: Any,
    ) -> None:
        for name in ("length", "stop_on_error"):
            if name in options:
                raise InputError(
                    f"{name} is for ImageEpisode-v0; the episodes of ImageBandit-v0 have one image"
                )
        super().__init__(num_envs, dataset, split, length=1, **options)


def _object_array(observations: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return Gymnasium's form of final observations: an array of objects, None where the mask is false."""
    objects = np.fromiter(observations, dtype=object, count=len(observations))
    objects[~mask] = None
    return objects
