"""Rollout and replay memory for image tasks: indices and augmentation seeds on the device, never images."""

from collections.abc import Generator
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer, RolloutBuffer
from stable_baselines3.common.type_aliases import ReplayBufferSamples, RolloutBufferSamples
from torch import Tensor

from agents.models.layers import SampleSeeds, sample_seeds
from envs.errors import InputError
from envs.task import ImageTask

_INTEGERS = ("indices", "augment_seeds", "actions", "sample_seeds")
_FLOATS = ("rewards", "episode_starts", "values", "log_probs", "advantages", "returns")
_STORED = 4  # of the floats, the first are stored step by step
_LEARNT_FROM = 2  # and the last are what updates read


class ImageRolloutBuffer(RolloutBuffer):
    """A rollout of an :class:`~envs.task.ImageTask`, kept as tensors ``(steps, envs)`` on the device.

    Images are rendered again, by index and augmentation seed, when a minibatch is read: a rollout of 50,000 images
    takes about 3 MB. While the reader holds a minibatch, consistent dropout uses that minibatch's seeds.

    Attributes:
        task: where images come from; set by the algorithm before each rollout.
    """

    task: ImageTask

    def reset(self) -> None:
        """Forget the rollout; the memory stays allocated."""
        self.pos = 0
        self.full = False
        self._hashes: Tensor | None = None
        if hasattr(self, "_floats"):
            return
        shape = (self.buffer_size, self.n_envs)
        self._integer_memory = torch.zeros(len(_INTEGERS), *shape, dtype=torch.int64, device=self.device)
        self._integers = dict(zip(_INTEGERS, self._integer_memory.unbind(), strict=True))
        self._float_memory = torch.zeros(len(_FLOATS), *shape, device=self.device)
        self._floats = dict(zip(_FLOATS, self._float_memory.unbind(), strict=True))

    @property
    def values(self) -> np.ndarray:  # type: ignore[override]
        """Value predictions ``(steps, envs)``; a copy on the host."""
        return self._floats["values"].cpu().numpy()

    def explained_variance(self) -> Tensor:
        """Return ``1 - var(returns - values) / var(returns)``, a scalar on the device; NaN for constant returns."""
        returns, values = self._floats["returns"], self._floats["values"]
        spread = returns.var(correction=0)
        return torch.where(spread == 0, torch.nan, 1 - (returns - values).var(correction=0) / spread)

    @property
    def returns(self) -> np.ndarray:  # type: ignore[override]
        """Value targets ``(steps, envs)``; a copy on the host."""
        return self._floats["returns"].cpu().numpy()

    def add_step(self, observations: Tensor, seeds: SampleSeeds, **values: Tensor) -> None:
        """Store one step of every environment, as ``(envs,)`` tensors by name; observations are not stored."""
        values["sample_seeds"] = seeds.values
        self._integer_memory[:, self.pos] = torch.stack([values[name] for name in _INTEGERS])
        self._float_memory[:_STORED, self.pos] = torch.stack(
            [values[name].float() for name in _FLOATS[:_STORED]]
        )
        if seeds.hashed:
            if self._hashes is None:
                self._hashes = seeds.hashes.new_empty(self.buffer_size, *seeds.hashes.shape)
            self._hashes[self.pos] = seeds.hashes
        self.pos += 1
        self.full = self.pos == self.buffer_size

    def compute_returns_and_advantage(self, last_values: Tensor, dones: Tensor) -> None:  # type: ignore[override]
        """Fill advantages and returns by generalised advantage estimation (Schulman et al. 2016).

        Args:
            last_values: values ``(envs,)`` of the images after the rollout; unused where ``dones``.
            dones: ``(envs,)``, whether the last step ended its episode.
        """
        data = self._floats
        if self.task.length == 1:  # every step ended its episode: what follows does not count
            torch.sub(data["rewards"], data["values"], out=data["advantages"])
            torch.add(data["advantages"], data["values"], out=data["returns"])
            return
        advantage = torch.zeros_like(last_values)
        following, alive = last_values, 1 - dones.float()
        for step in reversed(range(self.buffer_size)):
            delta = data["rewards"][step] + self.gamma * following * alive - data["values"][step]
            advantage = delta + self.gamma * self.gae_lambda * alive * advantage
            data["advantages"][step] = advantage
            following, alive = data["values"][step], 1 - data["episode_starts"][step]
        torch.add(data["advantages"], data["values"], out=data["returns"])

    def get(self, batch_size: int | None = None) -> Generator[RolloutBufferSamples, None, None]:
        """Yield the rollout once, in a random order, in minibatches of ``batch_size`` (default: all at once)."""
        total = self.buffer_size * self.n_envs
        order = torch.randperm(total, device=self.device)
        for rows in order.split(batch_size or total):
            indices, augment_seeds, actions, seeds = (
                self._integer_memory.flatten(1).index_select(1, rows).unbind()
            )
            floats = self._float_memory[_LEARNT_FROM:].flatten(1).index_select(1, rows).unbind()
            hashes = None if self._hashes is None else self._hashes.flatten(0, 1).index_select(0, rows)
            with sample_seeds(SampleSeeds(seeds, hashes)):
                yield RolloutBufferSamples(self._observations(rows, indices, augment_seeds), actions, *floats)

    def _observations(self, rows: Tensor, indices: Tensor, augment_seeds: Tensor) -> Tensor:
        """Return the images of these ``rows`` of the rollout, uint8 ``(B, C, H, W)``."""
        return self.task.render_batch(indices, augment_seeds)


class ShownImagesBuffer(ImageRolloutBuffer):
    """A rollout that keeps its images, for environments whose observations cannot be rendered again."""

    def add_step(self, observations: Tensor, seeds: SampleSeeds, **values: Tensor) -> None:
        """Store one step of every environment, observations uint8 ``(envs, C, H, W)`` included."""
        if not hasattr(self, "_images"):
            shape = (self.buffer_size, *observations.shape)
            self._images = torch.zeros(shape, dtype=torch.uint8, device=self.device)
        self._images[self.pos] = observations
        super().add_step(observations, seeds, **values)

    def _observations(self, rows: Tensor, indices: Tensor, augment_seeds: Tensor) -> Tensor:
        return self._images.flatten(0, 1)[rows]


class UnusedRolloutBuffer(RolloutBuffer):
    """Takes the place of SB3's rollout buffer where the algorithm keeps none."""

    def reset(self) -> None:
        """Allocate nothing."""


class ImageReplayBuffer(ReplayBuffer):
    """Replay memory of an image task, kept as indices and augmentation seeds on the device.

    Args:
        buffer_size: transitions kept; the oldest leave first.
        observation_space: of the environment.
        action_space: of the environment.
        device: where the tensors live.
        n_envs: environments that add transitions together.
    """

    task: ImageTask

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        device: torch.device | str = "auto",
        n_envs: int = 1,
        **_: Any,
    ) -> None:
        size = max(buffer_size // n_envs, 1)
        super(ReplayBuffer, self).__init__(size, observation_space, action_space, device, n_envs=n_envs)
        self.handle_timeout_termination = self.optimize_memory_usage = False  # what SB3 asks of its own
        shape = (self.buffer_size, n_envs)
        names = ("indices", "augment_seeds", "next_indices", "next_augment_seeds", "actions")
        self.storage = {name: torch.zeros(shape, dtype=torch.int64, device=self.device) for name in names}
        self.storage |= {name: torch.zeros(shape, device=self.device) for name in ("rewards", "dones")}

    def add_step(self, **values: Tensor) -> None:
        """Store one transition of every environment, as ``(envs,)`` tensors by name."""
        for name, value in values.items():
            self.storage[name][self.pos] = value
        self.pos += 1
        if self.pos == self.buffer_size:
            self.full, self.pos = True, 0

    def sample(self, batch_size: int, env: Any = None, following: bool = True) -> ReplayBufferSamples:
        """Return ``batch_size`` transitions drawn with replacement, images rendered.

        Without ``following`` the images that follow are left out: ``next_observations`` holds none.
        """
        filled = self.size() * self.n_envs
        rows = torch.randint(filled, (batch_size,), device=self.device)
        batch = {name: value.view(-1).index_select(0, rows) for name, value in self.storage.items()}
        observations = self.task.render_batch(batch["indices"], batch["augment_seeds"])
        after = (batch["next_indices"], batch["next_augment_seeds"])
        return ReplayBufferSamples(
            observations=observations,
            actions=batch["actions"][:, None],
            next_observations=self.task.render_batch(*after) if following else observations[:0],
            dones=batch["dones"][:, None],
            rewards=batch["rewards"][:, None],
        )

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "task"}

    def attach(self, device: torch.device, task: ImageTask | None) -> None:
        """Go on, after being saved, on ``device`` with the images of ``task``.

        Raises:
            InputError: the memory was filled by another number of environments, or from a larger data set.
        """
        self.device = device
        self.storage = {name: value.to(device) for name, value in self.storage.items()}
        if task is None:
            return
        if self.n_envs != task.num_envs:
            raise InputError(
                f"the replay memory is of {self.n_envs} environments, not {task.num_envs}; "
                f"set num_envs={self.n_envs}"
            )
        last = int(torch.maximum(self.storage["indices"], self.storage["next_indices"]).max())
        if last >= len(task.dataset):
            raise InputError(
                f"the replay memory shows image {last}, and the data set has {len(task.dataset)}; load it with "
                "the data set it was filled from"
            )
        self.task = task

    def state_dict(self) -> dict[str, Any]:
        """Return all that :meth:`load_state_dict` needs."""
        return {"pos": self.pos, "full": self.full, "storage": self.storage}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.pos, self.full = state["pos"], state["full"]
        for name, value in self.storage.items():
            value.copy_(state["storage"][name])
