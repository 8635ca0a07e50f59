"""Batched image-classification tasks on tensors: the core of the scalar, Gymnasium and SB3 environments."""

import operator
import secrets
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from envs.augment import Augmentation, as_augmentation, augment, source_places
from envs.errors import InputError, unknown_name
from envs.plain import check_count, plain
from envs.rewards import noisy_labels, reward_matrix
from envs.rng import to_int64
from envs.sampling import ORDERS, Deal

if TYPE_CHECKING:
    from envs.datasets import ImageDataset


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
        self.num_envs = check_count("num_envs", num_envs)
        self.length = check_count("length", length)
        self.stop_on_error = bool(stop_on_error)
        self.order = order
        if order not in ORDERS:
            raise unknown_name("order", order, ORDERS)
        try:
            part, parts = (operator.index(value) for value in shard)
        except (TypeError, ValueError):
            part, parts = 0, 0
        if not 0 <= part < parts:
            raise InputError(f"shard is {shard!r}; expected (k, m) with 0 <= k < m, such as (0, 1)")
        self.shard = part, parts
        self.augmentation = as_augmentation(augmentation)
        self.images = self.dataset.images
        self.device = self.images.device
        self.num_actions = self.dataset.num_classes
        self.reward_matrix = reward_matrix(reward, self.num_actions).to(self.device)
        self.all_true_labels = self.dataset.labels
        self.label_noise = plain(label_noise)
        self.all_labels = noisy_labels(self.dataset.labels, self.num_actions, self.label_noise)
        self._deal: Deal | None = None
        self._time: int | Tensor = 0  # one for all while their episodes keep pace, else int64 (n,)
        self._shown: tuple[Tensor, ...] | None = None  # indices, augmentation seeds, labels, source places
        self._played = torch.zeros(self.num_envs, dtype=torch.int64, device=self.device)

    @property
    def observation_space(self) -> spaces.Box:
        """The space of one image: uint8 (C, H, W)."""
        return spaces.Box(0, 255, self.dataset.shape, np.uint8)

    @property
    def action_space(self) -> spaces.Discrete:
        """The labels 0..K-1."""
        return spaces.Discrete(self.num_actions)

    def reset(
        self, seed: int | Sequence[int | None] | Tensor | None = None, mask: Tensor | None = None
    ) -> None:
        """Begin new episodes on new images.

        Args:
            seed: environment i gets ``seed + i`` (after those of the shards before this one), or ``seed[i]``;
                the draws start over. None goes on with them, and begins with a random seed the first time.
            mask: bool (n,), which environments to reset; None: all of them.

        Raises:
            InputError: a seed that is not an integer, a list of another length than ``num_envs``, seeds for
                some environments of a task that deals in ``"epoch"`` order, or a mask before the first reset.
        """
        seeds = self._seeds(seed)
        if not self.begun:
            if mask is not None:
                raise InputError("there is nothing to reset in part; call reset() without a mask first")
            drawn = secrets.randbits(62)
            seeds = [drawn + i if value is None else value for i, value in enumerate(seeds)]
        if mask is None and None not in seeds:
            self._start(self._tensor([to_int64(value) for value in seeds if value is not None]))
            self._played.zero_()
            return
        restarted = torch.ones_like(self._played, dtype=torch.bool) if mask is None else mask.to(self.device)
        if any(value is not None for value in seeds):
            if self.order == "epoch":
                shared = 'order="epoch" deals one shuffled data set to all environments'
                raise InputError(f"{shared}; seed all of them or none")
            deal, times = self._dealt(), self._time + torch.zeros_like(self._played)
            seeded = restarted & self._tensor([value is not None for value in seeds])
            new = self._tensor([0 if value is None else to_int64(value) for value in seeds])
            self._start(torch.where(seeded, new, deal.seeds))
            self._time = times.masked_fill(seeded, -1)  # before their first image
        self.move_on(restarted, ended=restarted)

    def move_on(self, by: int | Tensor = 1, ended: Tensor | None = None) -> None:
        """Show images that come ``by`` draws later: one number, or integers or bool (n,), one for each environment.

        The latter waits for the device. ``ended``: bool (n,), where an episode begins with that image; None: nowhere.
        """
        if isinstance(by, Tensor):
            least, most = by.long().aminmax()
            by = int(least) if least == most else by
        self._time = self._time + by
        self._shown = None
        if ended is not None:
            self._played.masked_fill_(ended, 0)

    @property
    def begun(self) -> bool:
        """Whether there was a reset, and so an image is shown."""
        return self._deal is not None

    @property
    def indices(self) -> Tensor:
        """Which images of the data set are shown: int64 (n,); read only."""
        return self._present()[0]

    @property
    def augment_seeds(self) -> Tensor:
        """The seeds that augment the images shown: int64 (n,); zeros where there is no augmentation."""
        return self._present()[1]

    @property
    def played(self) -> Tensor:
        """Answers given in the present episodes: int64 (n,); uncounted, zeros, in episodes of a single image."""
        return self._played

    @property
    def labels(self) -> Tensor:
        """The labels that the rewards go by, label noise included: int64 (n,); read only."""
        return self._present()[2]

    @property
    def true_labels(self) -> Tensor:
        """The data set's labels of the images shown: int64 (n,)."""
        return self.all_true_labels.index_select(0, self.indices)

    def observe(self) -> Tensor:
        """Return the images shown, augmented: uint8 (n, C, H, W), a fresh tensor."""
        indices, augment_seeds, _, *places = self._present()
        return augment(self._take(indices), augment_seeds, self.augmentation, tuple(places) or None)  # type: ignore[arg-type]

    def render_batch(self, indices: Tensor, augment_seeds: Tensor) -> Tensor:
        """Return the observations of any (index, augmentation seed) pairs, int64 (B,) each, for stored rollouts.

        They are uint8 (B, C, H, W), bit for bit what ``observe`` returned then.
        """
        return augment(self._take(indices), augment_seeds, self.augmentation)

    def step(self, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Answer every image, then show every environment's next one; finished episodes start over.

        Args:
            actions: integers (n,), each in [0, K), on the task's device; unchecked, which would wait for it.

        Returns:
            rewards float32 (n,), and bool (n,): whether that answer ended the episode.
        """
        rewards, terminated = self.answer(actions)
        self.move_on(ended=None if self.length == 1 else terminated)
        return rewards, terminated

    def answer(self, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Answer every image, as ``step`` does, and go on showing it until ``move_on``."""
        labels = self.labels
        rewards = self.reward_matrix[labels, actions]
        if self.length == 1:
            return rewards, torch.ones(self.num_envs, dtype=torch.bool, device=self.device)
        self._played += 1
        terminated = self._played >= self.length
        if self.stop_on_error:
            terminated |= actions != labels
        return rewards, terminated

    def change(self, name: str, value: Any) -> None:
        """Change ``length``, ``stop_on_error`` or ``reward_matrix`` (K, K), from the next step on.

        Raises:
            InputError: a wrong value, or another attribute, which cannot be changed.
        """
        if name == "length":
            self.length = check_count("length", value)
        elif name == "stop_on_error":
            self.stop_on_error = bool(value)
        elif name == "reward_matrix":
            values = value.cpu().numpy() if isinstance(value, Tensor) else value
            self.reward_matrix.copy_(reward_matrix(values, self.num_actions))
        else:
            problem = f"{name} cannot be changed; expected length, stop_on_error or reward_matrix"
            raise InputError(f"{problem}; make a new environment")

    def action_rewards(self) -> Tensor:
        """Return what each action would earn on the images shown (full information): float32 (n, K)."""
        return self.reward_matrix.index_select(0, self.labels)

    def state_dict(self) -> dict[str, Any]:
        """Return all that a task with the same arguments needs to go on exactly: integers and CPU tensors."""
        seeds = self._dealt().seeds.cpu()
        time = self._time.cpu() if isinstance(self._time, Tensor) else self._time
        return {"seeds": seeds, "time": time, "played": self._played.cpu().clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state_dict`` returned.

        Raises:
            InputError: the state is of a task with another ``num_envs``, or is no such state.
        """
        try:
            seeds, played, time = state["seeds"], state["played"], state["time"]
            time = time.to(self.device) if isinstance(time, Tensor) else operator.index(time)
            shape = (tuple(seeds.shape), tuple(played.shape))
        except (KeyError, TypeError, AttributeError):
            raise InputError("not the state of an ImageTask; expected seeds, played and time") from None
        if shape != ((self.num_envs,), (self.num_envs,)):
            n = len(seeds)
            raise InputError(f"the state is of {n} environments, not {self.num_envs}; set num_envs={n}")
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
        self._time, self._shown = 0, None
        options = {"order": self.order, "shard": self.shard, "augmented": not self.augmentation.is_identity}
        self._deal = Deal(seeds, len(self.dataset), derive=self._derive, **options)  # type: ignore[arg-type]

    def _derive(self, indices: Tensor, augment_seeds: Tensor) -> tuple[Tensor, ...]:
        """Return the labels and, where images are augmented, the source places of what is shown."""
        labels = self.all_labels.take(indices)
        if self.augmentation.is_identity:
            return (labels,)
        return labels, *source_places(augment_seeds, *self.dataset.shape[1:], self.augmentation)

    def _dealt(self) -> Deal:
        if self._deal is None:
            raise InputError("the task has not begun; call reset(seed=...) first")
        return self._deal

    def _present(self) -> tuple[Tensor, ...]:
        if self._shown is None:
            self._shown = self._dealt().shown(self._time)
        return self._shown

    def _tensor(self, values: list[Any]) -> Tensor:
        return torch.tensor(values, device=self.device)

    def _seeds(self, seed: int | Sequence[int | None] | Tensor | None) -> list[int | None]:
        """Return the seed of every environment; None where its draws go on."""
        if seed is None:
            return [None] * self.num_envs
        try:
            if isinstance(seed, Sequence | np.ndarray | Tensor) and np.ndim(seed):  # type: ignore[arg-type]
                seeds = [None if value is None else operator.index(value) for value in seed]
            else:
                first = operator.index(seed) + self.shard[0] * self.num_envs  # type: ignore[arg-type]
                seeds = list(range(first, first + self.num_envs))
        except TypeError:
            raise InputError(f"seed is {seed!r}; expected an integer, a list of integers, or None") from None
        if len(seeds) != self.num_envs:
            remedy = "give one each, or one integer"
            raise InputError(f"{len(seeds)} seeds for {self.num_envs} environments; {remedy}")
        return seeds
