"""Shared by PPO and A2C: rollouts as tensors that stay on the device."""

from typing import Any

import torch
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from torch import Tensor

from agents.algorithms.base import ImageAlgorithm
from agents.algorithms.buffers import ImageRolloutBuffer
from agents.algorithms.setups import Setup
from agents.config import TrainConfig
from agents.models.layers import SampleSeeds, frozen_batchnorm, refresh_batchnorm, sample_seeds
from agents.models.policy import ImagePolicy
from envs.errors import InputError


class TensorRollouts(ImageAlgorithm, OnPolicyAlgorithm):
    """Collects rollouts as tensors where the environment offers them; everything else is SB3's.

    With a NumPy environment (``sb3_env(tensors=False)`` or any other) the collection is SB3's own.
    BatchNorm statistics are refreshed at the start of a rollout and then held, and dropout masks belong to the image,
    so the policy that acts is the policy that is updated.
    """

    policy: ImagePolicy
    rollout_buffer: Any  # an ImageRolloutBuffer, or SB3's with a NumPy environment

    def _setup_model(self) -> None:
        if self.rollout_buffer_class is None and getattr(self.env, "tensors", False):
            self.rollout_buffer_class = getattr(self.env, "rollout_buffer_class", ImageRolloutBuffer)
        super()._setup_model()
        self._parameters = list(self.policy.parameters())

    def _excluded_save_params(self) -> list[str]:
        # the buffer is chosen again for the environment
        return [*super()._excluded_save_params(), "_parameters", "rollout_buffer_class"]

    def collect_rollouts(
        self, env: Any, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """Fill the buffer with ``n_rollout_steps`` steps; return False if the callback asked to stop."""
        self._check_env_kind(env, tensors=isinstance(rollout_buffer, ImageRolloutBuffer))
        if not isinstance(rollout_buffer, ImageRolloutBuffer):
            return super().collect_rollouts(env, callback, rollout_buffer, n_rollout_steps)
        rollout_buffer.reset()
        rollout_buffer.task = env.task
        callback.on_rollout_start()
        with torch.no_grad(), frozen_batchnorm(self.policy):
            # Images are scaled only if there is a BatchNorm to refresh.
            refresh_batchnorm(self.policy.features_extractor, map(self.policy.pixels, [self._last_obs]))
            self.policy.set_training_mode(True)
            for _ in range(n_rollout_steps):
                step = self._collect_step(env, rollout_buffer)
                if not self._report(callback, locals(), step):
                    return False
            dones = step["dones"]
            values = self._last_values(env)
        rollout_buffer.compute_returns_and_advantage(last_values=values, dones=dones)
        callback.on_rollout_end()
        return True

    def _collect_step(self, env: Any, buffer: ImageRolloutBuffer) -> dict[str, Any]:
        seeds = SampleSeeds(torch.randint(2**62, (env.num_envs,), device=self.device))
        indices, augment_seeds, labels = env.task.indices, env.task.augment_seeds, env.task.labels
        shown = self._last_obs
        with sample_seeds(seeds):
            actions, values, log_probs = self.policy(shown)
        observations, rewards, dones, infos = env.step(actions)
        buffer.add_step(
            shown,
            seeds,
            indices=indices,
            augment_seeds=augment_seeds,
            actions=actions,
            values=values[:, 0],
            log_probs=log_probs,
            rewards=rewards,
            episode_starts=torch.as_tensor(self._last_episode_starts, device=self.device),
        )
        self.statistics.add(reward=rewards, accuracy=actions == labels)
        self._last_obs, self._last_episode_starts = observations, dones
        return {
            "actions": actions,
            "rewards": rewards,
            "dones": dones,
            "new_obs": observations,
            "infos": infos,
        }

    def _last_values(self, env: Any) -> Tensor:
        """Return the bootstrap values ``(envs,)``; in a bandit every step is terminal and they are not computed."""
        if env.task.length == 1:
            return torch.zeros(env.num_envs, device=self.device)
        return self.policy.predict_values(self._last_obs)[:, 0]

    def train(self) -> None:
        """Update with BatchNorm held at the rollout's statistics; with a NumPy environment by SB3's own code."""
        if not isinstance(self.rollout_buffer, ImageRolloutBuffer):
            return super().train()
        with frozen_batchnorm(self.policy):
            self._update()
        self.watch_weights()
        return None

    def _update(self) -> None:
        raise NotImplementedError


def build_actor_critic(setup: Setup, **options: Any) -> TensorRollouts:
    """Return the algorithm of ``setup`` with what actor-critics share, and with its own ``options``."""
    config = setup.config
    exploration = {"exploration": setup.exploration, "exploration_mode": setup.exploration_mode}
    return setup.algorithm(
        ImagePolicy,
        ent_coef=setup.ent_coef,
        gae_lambda=config.ppo.gae_lambda,
        vf_coef=config.ppo.vf_coef,
        max_grad_norm=config.max_grad_norm or float("inf"),
        normalize_advantage=config.ppo.normalize_advantage,
        policy_kwargs=setup.image_policy | exploration,
        **setup.common,
        **options,
    )


def check_minibatches(config: TrainConfig) -> None:
    """Refuse minibatches within which advantages have no deviation.

    Raises:
        InputError: they are of one image.
    """
    if config.batch_size == 1 and config.ppo.normalize_advantage:
        raise InputError(
            "--batch-size is 1; ppo and a2c scale advantages within a minibatch, so they need at least 2, "
            "or --ppo.no-normalize-advantage"
        )
