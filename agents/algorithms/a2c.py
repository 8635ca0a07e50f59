"""A2C: rollouts on the device, and Stable-Baselines3's update without waiting for it."""

import torch.nn.functional as F
from stable_baselines3 import a2c
from stable_baselines3.common.type_aliases import RolloutBufferSamples

from agents.algorithms.base import optimizer_step
from agents.algorithms.registry import AlgorithmSpec, register_algorithm
from agents.algorithms.rollouts import TensorRollouts, build_actor_critic, check_minibatches


class A2C(TensorRollouts, a2c.A2C):
    """SB3's A2C (Mnih et al. 2016, arXiv 1602.01783) with device-resident rollouts and updates.

    The weights end where SB3's own update takes them, bit for bit; what it logs of every update goes into
    ``statistics``, as means.
    """

    def _update(self) -> None:
        """Take one gradient step on the whole rollout."""
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        for batch in self.rollout_buffer.get():  # once; dropout belongs to the batch while the loop holds it
            self._step(batch)
        self._n_updates += 1
        self.statistics.add(explained_variance=self.rollout_buffer.explained_variance())
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")

    def _step(self, batch: RolloutBufferSamples) -> None:
        policy = self.policy
        values, log_probs, entropies = policy.evaluate_actions(batch.observations, batch.actions)
        advantages = batch.advantages
        if self.normalize_advantage:
            advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        policy_loss = -(advantages * log_probs).mean()
        value_loss = F.mse_loss(batch.returns, values.flatten())
        entropy_loss = -entropies.mean()
        loss = policy_loss + self.ent_coef * entropy_loss + self.vf_coef * value_loss
        optimizer_step(loss, policy.optimizer, self._parameters, self.max_grad_norm)
        self.statistics.add(policy_loss=policy_loss, value_loss=value_loss, entropy_loss=entropy_loss)


register_algorithm(
    "a2c",
    AlgorithmSpec(
        A2C,
        lambda setup: build_actor_critic(setup, n_steps=1, use_rms_prop=False),
        exploration_mode="mixture",
        adversarial="observations",
        learning_rate=0.5,
        ent_coef=0.1,
        check=check_minibatches,
    ),
)
