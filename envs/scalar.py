"""Scalar Gymnasium environments, in NumPy and Python integers; they equal the batched ones."""

import operator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.error import ResetNeeded

from envs.arguments import TaskAttributes, check_bandit, check_render_mode, resolve_dataset
from envs.augment import augment_one
from envs.datasets import ImageDataset
from envs.errors import InputError
from envs.plain import check_seed
from envs.render import render_image
from envs.rng import to_int64
from envs.sampling import Deal, iid_draw
from envs.task import ImageTask


class ImageEpisode(TaskAttributes, gym.Env[np.ndarray, np.int64]):
    """Episodes of ``length`` images, ``ImageEpisode-v0``: the action is a label, the reward says how good it was.

    Observations are uint8 (C, H, W), actions 0..K-1. ``step`` rewards the answer to the image shown before and
    returns the next image; at the end of an episode it returns the last image again. The info holds ``index``, the
    place in the data set of the image returned, and after an answer ``label``, the true label of the image answered.

    Args:
        dataset, split: a name for ``load_dataset`` or an ``ImageDataset``; ``"train"``, ``"val"`` or ``"test"``.
        length: images per episode.
        data_root, image_size: folder of downloaded data sets; pixels to which images are resized.
        render_mode: None or ``"rgb_array"``.
        **options: ``stop_on_error``, ``reward``, ``label_noise``, ``augmentation``, ``order``, as in ``ImageTask``.

    Raises:
        InputError: a wrong argument, or data that cannot be loaded.

    Example:
        >>> env = gym.make("envs:ImageEpisode-v0", dataset="digits", length=5)  # doctest: +SKIP
        >>> image, info = env.reset(seed=0)  # doctest: +SKIP
        >>> image, reward, terminated, truncated, info = env.step(3)  # doctest: +SKIP
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 2}  # noqa: RUF012  Gymnasium's own form

    def __init__(
        self,
        dataset: str | ImageDataset = "digits",
        split: str = "train",
        *,
        length: int = 10,
        data_root: str | Path | None = None,
        image_size: int | None = None,
        render_mode: str | None = None,
        **options: Any,
    ) -> None:
        data = resolve_dataset(dataset, split, data_root=data_root, image_size=image_size)
        # The task checks the arguments and prepares labels and rewards; the steps below do without tensors.
        task = ImageTask(data, num_envs=1, length=length, shard=(0, 1), device="cpu", **options)
        self.render_mode = check_render_mode(render_mode)
        self.observation_space, self.action_space = task.observation_space, task.action_space
        self.task, self._images = task, task.images.numpy()
        self._labels, self._true_labels = task.all_labels.numpy(), task.all_true_labels.numpy()
        self._rewards = task.reward_matrix.numpy()  # sees what changes
        self._seed: int | None = None
        self._image: np.ndarray | None = None
        self._answer: tuple[np.ndarray, int, int] | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode; ``seed`` starts the draws over, None goes on with them."""
        seed = check_seed(seed)
        super().reset(seed=seed)
        if seed is not None or self._seed is None:
            self._seed = int(self.np_random.integers(2**62)) if seed is None else seed
            self._time = -1
            if self.task.order == "epoch":
                augmented = not self.task.augmentation.is_identity
                seeds = torch.tensor([to_int64(self._seed)])
                self._deal = Deal(seeds, len(self._images), order="epoch", augmented=augmented)
        self._played, self._answer = 0, None
        self._show_next()
        return self._observation(), {"index": self._index}

    def step(self, action: int | np.integer[Any]) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Answer the image shown with a label in 0..K-1.

        Raises:
            ResetNeeded: the episode is over or has not begun.
            InputError: the action is not a label.
        """
        if self._image is None:
            raise ResetNeeded("no image to answer; call reset() to begin an episode")
        try:
            chosen = operator.index(action)
        except TypeError:
            chosen = -1
        if not 0 <= chosen < self.task.num_actions:
            raise InputError(f"action is {action!r}; expected a label in 0..{self.task.num_actions - 1}")
        label = self._labels[self._index]
        truth = int(self._true_labels[self._index])
        reward = float(self._rewards[label, chosen])
        self._answer = (self._image, chosen, truth)
        self._played += 1
        terminated = self._played >= self.task.length or (self.task.stop_on_error and chosen != int(label))
        if not terminated:
            self._show_next()
        observation = self._observation()
        if terminated:
            self._image = None
        return observation, reward, terminated, False, {"index": self._index, "label": truth}

    def render(self) -> np.ndarray | None:
        """Return a picture, uint8 (height, width, 3): the image answered last with action and truth, or the first."""
        if self.render_mode is None:
            gym.logger.warn("render() needs render_mode='rgb_array' when the environment is made")
            return None
        classes = self.task.dataset.classes
        if self._answer is not None:
            image, action, truth = self._answer
            return render_image(image, classes, action=action, truth=truth)
        if self._image is None:
            raise ResetNeeded("nothing to render yet; call reset() first")
        return render_image(self._image, classes)

    def _show_next(self) -> None:
        self._time += 1
        assert self._seed is not None  # set by reset
        if self.task.order == "epoch":
            self._index, augment_seed = (int(shown) for shown in self._deal.shown(self._time))
        else:
            self._index, augment_seed = iid_draw(self._seed, self._time, len(self._images))
        self._image = augment_one(self._images[self._index], augment_seed, self.task.augmentation)

    def _observation(self) -> np.ndarray:
        assert self._image is not None  # checked by step
        return self._image.copy()


class ImageBandit(ImageEpisode):
    """One image, one answer, one reward, ``ImageBandit-v0``: ``ImageEpisode`` with episodes of a single image.

    Arguments are those of ``ImageEpisode`` other than ``length`` and ``stop_on_error``.
    """

    def __init__(self, dataset: str | ImageDataset = "digits", split: str = "train", **options: Any) -> None:
        check_bandit(options)
        super().__init__(dataset, split, length=1, **options)
