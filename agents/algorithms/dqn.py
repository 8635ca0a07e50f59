"""DQN on tensors: a replay memory of indices, and Stable-Baselines3's update without waiting for the device."""

from typing import Any, cast

import torch
import torch.nn.functional as F
from stable_baselines3 import dqn
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.type_aliases import RolloutReturn, TrainFreq
from torch import Tensor

from agents.algorithms.base import ImageAlgorithm, image_task, optimizer_step
from agents.algorithms.buffers import ImageReplayBuffer
from agents.algorithms.registry import AlgorithmSpec, register_algorithm
from agents.algorithms.setups import Setup
from agents.models.image_network import to_fast_layout


class DQN(ImageAlgorithm, dqn.DQN):
    """SB3's DQN (Mnih et al. 2015) with device-resident replay where the environment offers tensors.

    With a NumPy environment everything is SB3's own. Exploration is epsilon-greedy, image by image.
    """

    _rollouts = 0

    def _setup_model(self) -> None:
        if self.replay_buffer_class is None and getattr(self.env, "tensors", False):
            self.replay_buffer_class = ImageReplayBuffer  # type: ignore[assignment]
        super()._setup_model()
        self._parameters = list(self.policy.parameters())

    def _excluded_save_params(self) -> list[str]:
        # the memory is chosen again for the environment
        return [*super()._excluded_save_params(), "_parameters", "replay_buffer_class"]

    def collect_rollouts(
        self,
        env: Any,
        callback: BaseCallback,
        train_freq: TrainFreq,
        replay_buffer: ReplayBuffer,
        action_noise: ActionNoise | None = None,
        learning_starts: int = 0,
        log_interval: int | None = None,
    ) -> RolloutReturn:
        """Store ``train_freq.frequency`` steps of every environment in the replay memory."""
        self._check_env_kind(env, tensors=isinstance(replay_buffer, ImageReplayBuffer))
        if not isinstance(replay_buffer, ImageReplayBuffer):
            return super().collect_rollouts(
                env, callback, train_freq, replay_buffer, action_noise, learning_starts, log_interval
            )
        self.policy.set_training_mode(False)
        replay_buffer.task = env.task
        callback.on_rollout_start()
        for number in range(1, train_freq.frequency + 1):
            step = self._collect_step(env, replay_buffer)
            if not self._report(callback, locals(), step):
                return RolloutReturn(number * env.num_envs, 0, continue_training=False)
            self._update_current_progress_remaining(self.num_timesteps, self._total_timesteps)
            self._on_step()
        callback.on_rollout_end()
        self._rollouts += 1
        if log_interval is not None and self._rollouts % log_interval == 0:
            self.dump_logs()
        return RolloutReturn(train_freq.frequency * env.num_envs, 0, continue_training=True)

    def _collect_step(self, env: Any, buffer: ImageReplayBuffer) -> dict[str, Any]:
        """Answer every environment once, epsilon-greedily; before ``learning_starts`` all actions are random."""
        task = env.task
        indices, augment_seeds, labels = task.indices, task.augment_seeds, task.labels
        actions = torch.randint(int(self.action_space.n), (env.num_envs,), device=self.device)  # type: ignore[attr-defined]
        if self.num_timesteps >= self.learning_starts:
            with torch.no_grad():
                greedy = self.q_net(self._last_obs).argmax(-1)
            explores = torch.rand(env.num_envs, device=self.device) < self.exploration_rate
            actions = torch.where(explores, actions, greedy)
        self._last_obs, rewards, dones, infos = env.step(actions)
        buffer.add_step(
            indices=indices,
            augment_seeds=augment_seeds,
            next_indices=task.indices,
            next_augment_seeds=task.augment_seeds,
            actions=actions,
            rewards=rewards,
            dones=dones.float(),
        )
        self.statistics.add(reward=rewards, accuracy=actions == labels)
        step = {"actions": actions, "rewards": rewards, "dones": dones}
        return step | {"new_obs": self._last_obs, "infos": infos}

    def train(self, gradient_steps: int, batch_size: int = 100) -> None:
        """Take ``gradient_steps`` steps on minibatches of the replay memory."""
        if not isinstance(self.replay_buffer, ImageReplayBuffer):
            super().train(gradient_steps, batch_size)
        else:
            self.policy.set_training_mode(True)
            self._update_learning_rate(self.policy.optimizer)
            for _ in range(gradient_steps):
                loss = self._loss(self.replay_buffer, batch_size)
                optimizer_step(loss, self.policy.optimizer, self._parameters, self.max_grad_norm)
                self.statistics.add(loss=loss)
            self._n_updates += gradient_steps
            self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.watch_weights()

    def _loss(self, buffer: ImageReplayBuffer, batch_size: int) -> Tensor:
        """Return the Huber loss of a minibatch towards ``r + gamma max_a Q(s', a)``; without a discount, towards r."""
        batch = buffer.sample(batch_size, following=self.gamma > 0)
        target = batch.rewards
        if self.gamma > 0:
            with torch.no_grad():
                best = self.q_net_target(batch.next_observations).amax(1, keepdim=True)
                target = target + (1 - batch.dones) * self.gamma * best
        return F.smooth_l1_loss(self.q_net(batch.observations).gather(1, batch.actions), target)

    def load_replay_buffer(self, path: Any, truncate_last_traj: bool = True) -> None:
        """Load what ``save_replay_buffer`` wrote; an index memory goes with the data set of the environment.

        Raises:
            InputError: the memory is of another number of environments, or of a larger data set.
        """
        super().load_replay_buffer(path, truncate_last_traj)
        if isinstance(self.replay_buffer, ImageReplayBuffer):
            self.replay_buffer.attach(self.device, image_task(self.env))

    def training_state(self) -> dict[str, Any]:
        """Return all that :meth:`load_training_state` needs, the replay memory included."""
        replay = cast(ImageReplayBuffer, self.replay_buffer).state_dict()
        own = {"replay": replay, "calls": self._n_calls, "eps": self.exploration_rate}
        return super().training_state() | own

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`training_state` returned."""
        super().load_training_state(state)
        cast(ImageReplayBuffer, self.replay_buffer).load_state_dict(state["replay"])
        self._n_calls, self.exploration_rate = state["calls"], state["eps"]


def _build(setup: Setup) -> DQN:
    model = setup.algorithm(
        "CnnPolicy",
        max_grad_norm=setup.config.max_grad_norm or float("inf"),
        policy_kwargs=setup.stock_policy,
        **setup.common,
        **setup.off_policy,
    )
    if setup.config.channels_last:
        to_fast_layout(model.policy)
    return model


register_algorithm("dqn", AlgorithmSpec(DQN, _build, exploration=0.05, in_schedules=False, bf16=False))
