"""PPO: rollouts on the device, and Stable-Baselines3's update without waiting for it."""

from typing import Any

import torch
import torch.nn.functional as F
from stable_baselines3 import ppo
from stable_baselines3.common.type_aliases import RolloutBufferSamples
from torch import Tensor

from agents.algorithms.base import optimizer_step
from agents.algorithms.registry import AlgorithmSpec, register_algorithm
from agents.algorithms.rollouts import TensorRollouts, build_actor_critic, check_minibatches
from agents.algorithms.setups import Setup
from agents.config import TrainConfig
from agents.models import action_distribution as distribution
from envs.errors import InputError

_LOGGED = ("policy_gradient_loss", "value_loss", "approx_kl", "clip_fraction", "loss")


class PPO(TensorRollouts, ppo.PPO):
    """SB3's PPO (Schulman et al. 2017, arXiv 1707.06347, eq. 7 and 9) with device-resident rollouts and updates.

    The weights end where SB3's own update takes them, up to rounding. The means that it logs go into ``statistics``;
    the entropy is that of each pass's first minibatch unless it is part of the loss. ``target_kl`` stops the update on
    the device; a GPU is asked once a pass whether it has, where the optimiser is a fused one.
    """

    _stopped: Tensor  # 1 once ``target_kl`` was exceeded, else 0

    def _update(self) -> None:
        """Take ``n_epochs`` passes over the rollout."""
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        progress = self._current_progress_remaining
        clip = self.clip_range(progress)  # type: ignore[operator]
        value_clip = None if self.clip_range_vf is None else self.clip_range_vf(progress)  # type: ignore[operator]
        measured: list[Tensor] = []
        if self.target_kl is not None:
            self._stopped = torch.zeros((), device=self.device)
        optimizer: Any = self.policy.optimizer
        fused = bool(optimizer.defaults.get("fused"))
        if fused and self.target_kl is not None:
            optimizer.found_inf = self._stopped  # where it is 1, fused optimisers leave the weights alone
        try:
            for _ in range(self.n_epochs):
                self._one_pass(clip, value_clip, measured, waits=self.device.type == "cpu" or not fused)
                self._n_updates += 1
                if self.target_kl is not None and bool(self._stopped):
                    break
        finally:
            vars(optimizer).pop("found_inf", None)
        rows = torch.stack(measured)
        if self.target_kl is None:
            means = rows.mean(0)
        else:
            counts = rows[:, -1:]  # 0 for minibatches after the stop
            means = (rows[:, :-1] * counts).sum(0) / counts.sum()
        self.statistics.add(**dict(zip(_LOGGED, means.unbind(), strict=True)))
        self.statistics.add(explained_variance=self.rollout_buffer.explained_variance())
        self.logger.record("train/clip_range", clip)
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")

    def _one_pass(self, clip: float, value_clip: float | None, measured: list[Tensor], waits: bool) -> None:
        """Visit every minibatch once and append what was measured; if it ``waits``, end at ``target_kl``."""
        policy = self.policy
        for number, batch in enumerate(self.rollout_buffer.get(self.batch_size)):
            logits, values = policy.logits_and_values(batch.observations)
            log_ratio = policy.log_probs(logits, batch.actions) - batch.old_log_prob
            policy_loss, clipped = self._surrogate(log_ratio, batch.advantages, clip)
            value_loss = F.mse_loss(batch.returns, _clipped_values(values[:, 0], batch, value_clip))
            loss = policy_loss + self.vf_coef * value_loss
            if self.ent_coef or number == 0:
                log_probs = distribution.mixture_log_probs(
                    logits if self.ent_coef else logits.detach(), policy.mixture
                )
                entropy = distribution.entropies(log_probs).mean()
                self.statistics.add(entropy_loss=-entropy)
                loss = loss - self.ent_coef * entropy if self.ent_coef else loss
            drift = log_ratio.detach()
            approx_kl = (drift.expm1() - drift).mean()
            parts = (policy_loss.detach(), value_loss.detach(), approx_kl, clipped, loss.detach())
            if self.target_kl is None:
                measured.append(torch.stack(parts))
            else:
                measured.append(torch.stack([*parts, 1 - self._stopped]))
                self._stopped.logical_or_(approx_kl > 1.5 * self.target_kl)
                if waits and bool(self._stopped):
                    return
            optimizer_step(loss, policy.optimizer, self._parameters, self.max_grad_norm)

    def _surrogate(self, log_ratio: Tensor, advantages: Tensor, clip: float) -> tuple[Tensor, Tensor]:
        """Return the clipped surrogate loss and the share of clipped ratios."""
        if self.normalize_advantage and len(advantages) > 1:
            advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        ratio = log_ratio.exp()
        loss = -torch.min(advantages * ratio, advantages * ratio.clamp(1 - clip, 1 + clip)).mean()
        return loss, ((ratio.detach() - 1).abs() > clip).float().mean()


def _clipped_values(values: Tensor, batch: RolloutBufferSamples, clip: float | None) -> Tensor:
    if clip is None:
        return values
    return batch.old_values + (values - batch.old_values).clamp(-clip, clip)


def _build(setup: Setup) -> TensorRollouts:
    options, envs = setup.config.ppo, setup.env.num_envs
    return build_actor_critic(
        setup,
        n_steps=max(options.rollout // envs, 1),
        batch_size=envs,
        n_epochs=options.epochs,
        clip_range=options.clip_range,
        target_kl=options.target_kl,
    )


def _check(config: TrainConfig) -> None:
    check_minibatches(config)
    batch = config.images_per_step()
    if config.ppo.rollout % batch:
        near = max(round(config.ppo.rollout / batch), 1) * batch
        raise InputError(
            f"--ppo.rollout is {config.ppo.rollout}; expected a multiple of --batch-size ({batch}), such as {near}"
        )


register_algorithm(
    "ppo",
    AlgorithmSpec(
        PPO,
        _build,
        exploration=0.0,
        exploration_mode="mixture",
        adversarial="observations",
        small_batch=256,
        check=_check,
        forward_passes=lambda config: 1 + 3 * config.ppo.epochs,
    ),
)
