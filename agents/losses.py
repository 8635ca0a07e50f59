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


def expected_policy_gradient(log_probs: Tensor, action_rewards: Tensor, exploration: float) -> Tensor:
    """Return a loss whose gradient is the expectation of :func:`sampled_policy_gradient` over the behaviour policy.

    The behaviour policy is ``mu = (1 - exploration) p + exploration / K``; the loss is
    ``-mean(sum_a mu(a) r(a) log p(a))`` with ``mu r`` held constant. With ``r(a) = [a = y]`` each image weighs
    ``w = (1 - exploration) p(y) + exploration / K``. It has no sampling variance.

    Args:
        log_probs: ``(N, K)``.
        action_rewards: ``(N, K)``, the reward of every action.
        exploration: probability of a uniform random action, in [0, 1].
    """
    behaviour = (1 - exploration) * log_probs.detach().exp() + exploration / log_probs.shape[-1]
    return -(behaviour * action_rewards * log_probs).sum(-1).mean()


def entropy(log_probs: Tensor) -> Tensor:
    """Return the mean entropy, in nats, of log-probabilities ``(N, K)``."""
    return -(log_probs.exp() * log_probs).sum(-1).mean()


def sample_actions(log_probs: Tensor) -> Tensor:
    """Draw one action per row of ``(N, K)`` log-probabilities without waiting for the device (exponential races)."""
    return (log_probs.detach().exp() / torch.empty_like(log_probs).exponential_()).argmax(-1)
