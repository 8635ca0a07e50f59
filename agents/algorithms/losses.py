"""Losses on logits: supervised, sampled policy gradient, its expectation, and both with gradients by hand.

Differentiated by hand, the paper's policy takes half the time on a CPU: with ``p = softmax(z)`` and the floor
``c = 1e-6`` it is ``f = (p + c) / (1 + K c)``, and so ``d log f(a) / d z_j = s(a) ([j = a] - p(j))`` where
``s(a) = p(a) / (p(a) + c)``.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from agents.models.action_distribution import PROBABILITY_FLOOR


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy, in nats, of logits ``(N, K)`` and labels ``(N,)``."""
    logits = logits.float()
    return (logits.logsumexp(-1) - logits.gather(-1, labels[:, None])[:, 0]).mean()


def sampled_policy_gradient(log_probs: Tensor, returns: Tensor) -> Tensor:
    """Return ``-mean(log p(a) * G)``, whose gradient is REINFORCE's (Williams 1992).

    Args:
        log_probs: ``(N,)``, of the actions taken.
        returns: ``(N,)``, the reward (or return) of each.
    """
    return -(log_probs * returns).mean()


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


def floored_policy_gradient(logits: Tensor, probs: Tensor, actions: Tensor, returns: Tensor) -> Tensor:
    """Return ``-mean(log f(a) G)``: `sampled_policy_gradient` of the floored log-probabilities.

    Args:
        logits: ``(N, K)``; the result can be differentiated once with respect to them.
        probs: ``(N, K)``, their :func:`softmax`.
        actions: int64 ``(N,)``, taken.
        returns: ``(N,)``, the reward (or return) of each.
    """
    with torch.no_grad():
        chosen = actions[:, None]
        p = probs.gather(1, chosen)
        floored = p + PROBABILITY_FLOOR
        log_probs = (floored / _total(probs)).log_()
        scaled = (returns / -len(probs))[:, None]
        loss = (log_probs * scaled).sum()
        weights = p.div_(floored).mul_(scaled)
        gradient = (probs * -weights).scatter_add_(1, chosen, weights)
    return _KnownGradient.apply(logits, loss, gradient)


def floored_expected_policy_gradient(
    logits: Tensor, probs: Tensor, action_rewards: Tensor, exploration: float
) -> Tensor:
    """Return ``-mean(sum_a mu(a) r(a) log f(a))``, `expected_policy_gradient` of that policy.

    Actions are drawn by ``mu = (1 - exploration) f + exploration / K``, which counts as a constant.

    Args:
        logits: ``(N, K)``; the result can be differentiated once with respect to them.
        probs: ``(N, K)``, their :func:`softmax`.
        action_rewards: ``(N, K)``, the reward of every action, r.
        exploration: probability of uniform random actions.
    """
    with torch.no_grad():
        policy = (probs + PROBABILITY_FLOOR).div_(_total(probs))
        earned = (policy * (1 - exploration)).add_(exploration / probs.shape[1]).mul_(action_rewards)
        earned.div_(len(probs))
        loss = -(earned * policy.log()).sum()
        weights = earned.mul_(probs).div_(policy.mul_(_total(probs)))
        gradient = (probs * weights.sum(1, keepdim=True)).sub_(weights)
    return _KnownGradient.apply(logits, loss, gradient)


def _total(probs: Tensor) -> float:
    return 1 + probs.shape[1] * PROBABILITY_FLOOR


class _KnownGradient(torch.autograd.Function):
    """A scalar whose gradient is known, but not that gradient's own."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, loss: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return loss

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        if torch.is_grad_enabled():
            raise RuntimeError("closed forms have first derivatives only; use the other losses for more")
        (gradient,) = ctx.saved_tensors
        return gradient * upstream, None, None
