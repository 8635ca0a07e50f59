"""Many label-guessing games at once, on tensors: the core of the scalar, Gymnasium and SB3 environments."""

import operator
import secrets
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from envs.augment import Augmentation, augment
from envs.errors import InputError, unknown_name
from envs.rng import hash_tensor, to_int64
from envs.sampling import ORDERS, Deal

if TYPE_CHECKING:
    from envs.datasets import ImageDataset

REWARDS = ("accuracy", "signed")
_NOISE_STREAM = 0x6E6F697365  # "noise": label noise depends on the image alone, not on the seed


class ImageTask:
    """``num_envs`` environments that show images of a data set, take labels as actions, and pay rewards.

    Everything stays on one device and nothing waits for it. Environment i of a task seeded with s shows what
    a single environment seeded with s + i shows.

    Args:
        dataset: the images and labels.
        num_envs: how many environments, n.
        length: images per episode.
        stop_on_error: end the episode at the first action that is not the label.
        reward: ``"accuracy"`` (1 if the action is the label, else 0), ``"signed"`` (1 or -1), or a (K, K)
            array ``[label, action]``.
        label_noise: probability in [0, 1) with which an image's label is, once and for all, a wrong one.
        augmentation: what is drawn for every image shown; an ``Augmentation``, its text form, or None.
        order: ``"iid"`` (each environment draws images independently, with replacement) or ``"epoch"`` (all
            environments together deal the shuffled data set, pass after pass).
        shard: ``(k, m)``: this task is part k of m, which together are one task of ``m * num_envs``.
        device: where to work; the data set's device by default.

    Raises:
        InputError: a wrong argument.

    Example:
        >>> task = ImageTask(load_dataset("digits"), num_envs=256)  # doctest: +SKIP
        >>> task.reset(seed=0)  # doctest: +SKIP
        >>> rewards, terminated = task.step(policy(task.observe()))  # doctest: +SKIP
    """

    def __init__(
        self,
        dataset: "ImageDataset",
        num_envs: int = 1,
        *,
        length: int = 1,
        stop_on_error: bool = False,
        reward: Any = "accuracy",
        label_noise: float = 0.0,
        augmentation: Augmentation | str | None = None,
        order: str = "iid",
        shard: tuple[int, int] = (0, 1),
        device: torch.device | str | None = None,
    ) -> None:
        self.dataset = dataset if device is None else dataset.to(device)
        self.num_envs = _positive("num_envs", num_envs)
        self.length = _positive("length", length)
        self.stop_on_error = bool(stop_on_error)
        self.order = order
        self.shard = _check_shard(shard)
        if order not in ORDERS:
            raise unknown_name("order", order, ORDERS)
        self.augmentation = _check_augmentation(augmentation)
        self.images = self.dataset.images
        self.device = self.images.device
        self.num_actions = self.dataset.num_classes
        self.reward_matrix = reward_matrix(reward, self.num_actions).to(self.device)
        self.all_true_labels = self.dataset.labels
        self.all_labels = noisy_labels(self.dataset.labels, self.num_actions, label_noise)
        self.label_noise = label_noise
        self._time = self._labelled = -1
        self._deal: Deal | None = None
        self._played = torch.zeros(self.num_envs, dtype=torch.int64, device=self.device)

    @property
    def observation_space(self) -> spaces.Box:
        """The space of one image: uint8 (C, H, W)."""
        return spaces.Box(0, 255, self.dataset.shape, np.uint8)

    @property
    def action_space(self) -> spaces.Discrete:
        """The labels 0..K-1."""
        return spaces.Discrete(self.num_actions)

    def reset(self, seed: int | Sequence[int] | None = None) -> None:
        """Begin new episodes on new images.

        Args:
            seed: environment i gets ``seed + i`` (after those of the shards before this one), or ``seed[i]``;
                the draws start over. None goes on with them, and begins with a random seed the first time.

        Raises:
            InputError: a seed that is not an integer, or a list of another length than ``num_envs``.
        """
        if seed is None and self._deal is not None:
            self._time += 1
        else:
            self._start(self._seeds(secrets.randbits(62) if seed is None else seed))
        self._played.zero_()

    @property
    def indices(self) -> Tensor:
        """Which images of the data set are shown: int64 (n,); read only."""
        return self._dealt().indices(self._time)

    @property
    def augment_seeds(self) -> Tensor:
        """The seeds that augment the images shown: int64 (n,); zeros where there is no augmentation."""
        return self._dealt().augment_seeds(self._time)

    @property
    def labels(self) -> Tensor:
        """The labels that the rewards go by, label noise included: int64 (n,); read only."""
        if self._labelled != self._time:
            self._labelled, self._labels = self._time, self.all_labels.index_select(0, self.indices)
        return self._labels

    @property
    def true_labels(self) -> Tensor:
        """The data set's labels of the images shown: int64 (n,)."""
        return self.all_true_labels.index_select(0, self.indices)

    def observe(self) -> Tensor:
        """Return the images shown, augmented: uint8 (n, C, H, W), a fresh tensor."""
        return self.render_batch(self.indices, self.augment_seeds)

    def render_batch(self, indices: Tensor, augment_seeds: Tensor) -> Tensor:
        """Return the observations of any (index, augmentation seed) pairs, as a stored rollout needs them.

        Args:
            indices: int64 (B,).
            augment_seeds: int64 (B,).

        Returns:
            uint8 (B, C, H, W), bit for bit what ``observe`` returned then.
        """
        return augment(self._take(indices), augment_seeds, self.augmentation)

    def step(self, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Answer every image, then move every environment to its next one; finished episodes start anew.

        Args:
            actions: integers (n,), each in [0, K), on the task's device; unchecked, which would wait for it.

        Returns:
            rewards float32 (n,), and bool (n,): whether that answer ended the episode.
        """
        labels = self.labels
        rewards = self.reward_matrix.take(labels * self.num_actions + actions)
        if self.length == 1:
            terminated = torch.ones(self.num_envs, dtype=torch.bool, device=self.device)
        else:
            self._played += 1
            terminated = self._played >= self.length
            if self.stop_on_error:
                terminated |= actions != labels
            self._played.masked_fill_(terminated, 0)
        self._time += 1
        return rewards, terminated

    def change(self, name: str, value: Any) -> None:
        """Change ``length``, ``stop_on_error`` or ``reward_matrix`` (K, K), from the next step on.

        Raises:
            InputError: a wrong value, or another attribute, which a task keeps for good.
        """
        if name == "length":
            self.length = _positive("length", value)
        elif name == "stop_on_error":
            self.stop_on_error = bool(value)
        elif name == "reward_matrix":
            values = value.cpu().numpy() if isinstance(value, Tensor) else value
            self.reward_matrix = reward_matrix(values, self.num_actions).to(self.device)
        else:
            raise InputError(
                f"{name} cannot be changed; expected length, stop_on_error or reward_matrix; make a new environment"
            )

    def action_rewards(self) -> Tensor:
        """Return what each action would earn on the images shown (full information): float32 (n, K)."""
        return self.reward_matrix.index_select(0, self.labels)

    def state_dict(self) -> dict[str, Any]:
        """Return all that a task with the same arguments needs to go on exactly: integers and CPU tensors."""
        deal = self._dealt()
        return {"seeds": deal.seeds.cpu(), "time": self._time, "played": self._played.cpu().clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state_dict`` returned.

        Raises:
            InputError: the state is of a task with another ``num_envs``, or is no such state.
        """
        try:
            seeds, played, time = state["seeds"], state["played"], operator.index(state["time"])
            shape = (tuple(seeds.shape), tuple(played.shape))
        except (KeyError, TypeError, AttributeError):
            raise InputError("not the state of an ImageTask; expected seeds, played and time") from None
        if shape != ((self.num_envs,), (self.num_envs,)):
            raise InputError(
                f"the state is of {len(seeds)} environments, not {self.num_envs}; set num_envs={len(seeds)}"
            )
        self._start(seeds.to(self.device))
        self._time = time
        self._played = played.to(self.device).clone()

    def _take(self, indices: Tensor) -> Tensor:
        if self.device.type != "cpu":
            return self.images.index_select(0, indices)
        # NumPy copies row by row in this thread; waiting for a second one costs more than it saves, and
        # milliseconds where cores are shared.
        return torch.from_numpy(self.images.numpy().take(indices.numpy(), axis=0))

    def _start(self, seeds: Tensor) -> None:
        self._time, self._labelled = 0, -1
        self._deal = Deal(
            seeds,
            len(self.dataset),
            order=self.order,
            shard=self.shard,
            augmented=not self.augmentation.is_identity,
        )

    def _dealt(self) -> Deal:
        if self._deal is None:
            raise InputError("the task has not begun; call reset(seed=...) first")
        return self._deal

    def _seeds(self, seed: int | Sequence[int]) -> Tensor:
        try:
            if isinstance(seed, Sequence) and not isinstance(seed, str):
                seeds = [operator.index(value) for value in seed]
            else:
                first = operator.index(seed) + self.shard[0] * self.num_envs
                seeds = list(range(first, first + self.num_envs))
        except TypeError:
            raise InputError(f"seed is {seed!r}; expected an integer, a list of integers, or None") from None
        if len(seeds) != self.num_envs:
            raise InputError(
                f"{len(seeds)} seeds for {self.num_envs} environments; give one each, or one integer"
            )
        return torch.tensor([to_int64(value) for value in seeds], dtype=torch.int64, device=self.device)


def reward_matrix(reward: Any, num_classes: int) -> Tensor:
    """Return the reward of each [label, action], float32 (K, K), for a name in ``REWARDS`` or such an array.

    Raises:
        InputError: an unknown name, another shape, or values that are not finite numbers.
    """
    correct = torch.eye(num_classes)
    if isinstance(reward, str):
        if reward not in REWARDS:
            raise unknown_name("reward", reward, (*REWARDS, "a (K, K) array"))
        return correct if reward == "accuracy" else 2 * correct - 1
    try:
        matrix = torch.from_numpy(np.array(reward, dtype=np.float32))
    except (TypeError, ValueError):
        raise InputError(f"reward is {reward!r}; expected {REWARDS} or a (K, K) array of numbers") from None
    if matrix.shape != correct.shape:
        raise InputError(
            f"the reward matrix is {tuple(matrix.shape)}; expected {tuple(correct.shape)}, [label, action]"
        )
    if not torch.isfinite(matrix).all():
        raise InputError("the reward matrix holds NaN or infinity; expected finite numbers")
    return matrix


def noisy_labels(labels: Tensor, num_classes: int, noise: float) -> Tensor:
    """Return the labels with each replaced, with probability ``noise``, by a uniformly drawn wrong one.

    The draw is a hash of the image's index: the same in every run and environment.

    Args:
        labels: int64 (N,), each in [0, num_classes).
        num_classes: K.
        noise: probability in [0, 1).

    Raises:
        InputError: ``noise`` is out of range, or there is only one class to choose from.
    """
    if not 0 <= noise < 1:
        raise InputError(f"label_noise is {noise}; expected a probability in [0, 1), such as 0.2")
    if noise == 0:
        return labels
    if num_classes < 2:
        raise InputError(f"label_noise is {noise} with a single class; wrong labels need another class")
    image = torch.arange(len(labels), device=labels.device)
    flipped = hash_tensor(_NOISE_STREAM, 0, image) < int(noise * 2**63)
    offset = 1 + hash_tensor(_NOISE_STREAM, 1, image) % (num_classes - 1)
    return torch.where(flipped, (labels + offset) % num_classes, labels)


def _positive(name: str, value: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        number = 0
    if number < 1:
        raise InputError(f"{name} is {value!r}; expected a whole number, at least 1")
    return number


def _check_augmentation(augmentation: Augmentation | str | None) -> Augmentation:
    if isinstance(augmentation, str):
        return Augmentation.parse(augmentation)
    if augmentation is not None and not isinstance(augmentation, Augmentation):
        raise InputError(
            f"augmentation is {augmentation!r}; expected an Augmentation, text such as 'hflip,crop:4', or None"
        )
    return augmentation or Augmentation()


def _check_shard(shard: tuple[int, int]) -> tuple[int, int]:
    try:
        part, parts = (operator.index(value) for value in shard)
    except (TypeError, ValueError):
        part, parts = 0, 0
    if not 0 <= part < parts:
        raise InputError(f"shard is {shard!r}; expected (k, m) with 0 <= k < m, such as (0, 1)")
    return part, parts
