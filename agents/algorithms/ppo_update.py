"""PPO's update on tensors: Stable-Baselines3's arithmetic without waiting for the device."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from stable_baselines3.common.type_aliases import RolloutBufferSamples
from torch import Tensor

from agents.algorithms import losses
from agents.algorithms.optimizer_step import descend

if TYPE_CHECKING:
    from agents.algorithms.rollouts import PPO

_NAMES = ("policy_gradient_loss", "value_loss", "approx_kl", "clip_fraction", "loss")


def update(model: PPO) -> None:
    """Take ``n_epochs`` passes over the rollout of ``model`` (Schulman et al. 2017, arXiv 1707.06347, eq. 7 and 9).

    The weights end where SB3's ``PPO.train`` takes them, up to rounding. The means that it logs go into
    ``model.statistics``; the entropy is that of each pass's first minibatch unless it is part of the loss. Only
    ``target_kl`` waits for the device, to stop early.
    """
    model.policy.set_training_mode(True)
    model._update_learning_rate(model.policy.optimizer)
    ranges = _clip_ranges(model)
    measured: list[Tensor] = []
    for _ in range(model.n_epochs):
        going_on = _one_pass(model, ranges, measured)
        model._n_updates += 1
        if not going_on:
            break
    means = torch.stack(measured).mean(0)
    model.statistics.add(**dict(zip(_NAMES, means.unbind(), strict=True)))
    model.statistics.add(explained_variance=model.rollout_buffer.explained_variance())
    model.logger.record("train/clip_range", ranges[0])
    model.logger.record("train/n_updates", model._n_updates, exclude="tensorboard")


def _clip_ranges(model: PPO) -> tuple[float, float | None]:
    progress = model._current_progress_remaining
    of_values = model.clip_range_vf
    return model.clip_range(progress), None if of_values is None else of_values(progress)  # type: ignore[operator]


def _one_pass(model: PPO, ranges: tuple[float, float | None], measured: list[Tensor]) -> bool:
    """Visit every minibatch once and append what was measured; return False to stop at ``target_kl``."""
    policy = model.policy
    for number, batch in enumerate(model.rollout_buffer.get(model.batch_size)):
        logits, values = policy.logits_and_values(batch.observations)
        log_ratio = policy.log_probs(logits, batch.actions) - batch.old_log_prob
        policy_loss, clipped = _surrogate(model, log_ratio, batch, ranges[0])
        value_loss = F.mse_loss(batch.returns, _clipped_values(values[:, 0], batch, ranges[1]))
        loss = policy_loss + model.vf_coef * value_loss
        if model.ent_coef or number == 0:
            log_probs = losses.mixture_log_probs(
                logits if model.ent_coef else logits.detach(), policy.mixture
            )
            entropy = losses.entropies(log_probs).mean()
            model.statistics.add(entropy_loss=-entropy)
            loss = loss - model.ent_coef * entropy if model.ent_coef else loss
        drift = log_ratio.detach()
        approx_kl = (drift.expm1() - drift).mean()
        measured.append(
            torch.stack([policy_loss.detach(), value_loss.detach(), approx_kl, clipped, loss.detach()])
        )
        if model.target_kl is not None and float(approx_kl) > 1.5 * model.target_kl:
            return False
        descend(loss, policy.optimizer, model._parameters, model.max_grad_norm)
    return True


def _surrogate(
    model: PPO, log_ratio: Tensor, batch: RolloutBufferSamples, clip: float
) -> tuple[Tensor, Tensor]:
    """Return the clipped surrogate loss and the share of clipped ratios."""
    advantages = batch.advantages
    if model.normalize_advantage and len(advantages) > 1:
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    ratio = log_ratio.exp()
    loss = -torch.min(advantages * ratio, advantages * ratio.clamp(1 - clip, 1 + clip)).mean()
    return loss, ((ratio.detach() - 1).abs() > clip).float().mean()


def _clipped_values(values: Tensor, batch: RolloutBufferSamples, clip: float | None) -> Tensor:
    if clip is None:
        return values
    return batch.old_values + (values - batch.old_values).clamp(-clip, clip)
