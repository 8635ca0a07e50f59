"""Losses on logits: supervised, sampled policy gradient, and its closed-form expectation."""

import torch
import torch.nn.functional as F
from torch import Tensor

PROBABILITY_FLOOR = 1e-6


def floored_log_probs(logits: Tensor) -> Tensor:
    """Return ``log((softmax(logits) + 1e-6) / (1 + K 1e-6))`` for logits ``(N, K)``, the paper's policy.

    The floor bounds the loss of an impossible action; it also lets gradients vanish where ``softmax`` saturates.
    """
    floored = logits.float().softmax(-1) + PROBABILITY_FLOOR
    return (floored / (1 + logits.shape[-1] * PROBABILITY_FLOOR)).log()


def mixture_log_probs(logits: Tensor, exploration: float) -> Tensor:
    """Return ``log((1 - exploration) softmax(logits) + exploration / K)``, epsilon-greedy's policy, ``(N, K)``."""
    if exploration == 0:
        return logits.float().log_softmax(-1)
    return ((1 - exploration) * logits.float().softmax(-1) + exploration / logits.shape[-1]).log()


def explore_whole_batch(actions: Tensor, num_actions: int, exploration: float) -> Tensor:
    """Return ``actions (N,)``, or with probability ``exploration`` uniform random ones for the whole batch."""
    explore = torch.rand(1, device=actions.device) < exploration
    return torch.where(explore, torch.randint_like(actions, num_actions), actions)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy, in nats, of logits ``(N, K)`` and labels ``(N,)``."""
    return F.cross_entropy(logits.float(), labels)


def sampled_policy_gradient(log_probs: Tensor, actions: Tensor, returns: Tensor) -> Tensor:
    """Return ``-mean(log p(a) * G)``, whose gradient is REINFORCE's (Williams 1992).

    Args:
        log_probs: ``(N, K)``.
        actions: ``(N,)`` int64, the actions taken.
        returns: ``(N,)``, the reward (or return) of each.
    """
    return -(log_probs.gather(-1, actions[:, None])[:, 0] * returns).mean()


def expected_policy_gradient(log_probs: Tensor, action_rewards: Tensor, behaviour: Tensor) -> Tensor:
    """Return a loss whose gradient is the expectation of :func:`sampled_policy_gradient` over the actions.

    It is ``-mean(sum_a mu(a) r(a) log p(a))`` with ``mu r`` held constant; it has no sampling variance. With
    ``r(a) = [a = y]`` and whole-batch exploration each image weighs ``(1 - eps) p(y) + eps / K``.

    Args:
        log_probs: ``(N, K)``, log p.
        action_rewards: ``(N, K)``, the reward of every action.
        behaviour: ``(N, K)``, mu, the probabilities by which actions are drawn.
    """
    return -(behaviour.detach() * action_rewards * log_probs).sum(-1).mean()


def divergence(clean_logits: Tensor, attacked_logits: Tensor) -> Tensor:
    """Return the mean of ``KL(softmax(clean) || softmax(attacked))``, in nats, of logits ``(N, K)`` (TRADES, eq. 5).

    Gradients reach both arguments (Zhang et al. 2019).
    """
    clean, attacked = (logits.float().log_softmax(-1) for logits in (clean_logits, attacked_logits))
    return F.kl_div(attacked, clean, reduction="batchmean", log_target=True)


def entropy(logits: Tensor) -> Tensor:
    """Return the mean entropy, in nats, of the softmax of logits ``(N, K)``."""
    return torch.special.entr(logits.float().softmax(-1)).sum(-1).mean()


def sample_actions(weights: Tensor) -> Tensor:
    """Draw one action per row of ``(N, K)`` probabilities, in any scale, without waiting for the device.

    Exponential races: with ``E_a`` standard exponential, the largest ``w_a / E_a`` is a with probability ``w_a``.
    """
    return (weights / torch.empty_like(weights).exponential_()).argmax(-1)
