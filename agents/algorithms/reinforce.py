"""REINFORCE and the expectation of its gradient, in closed form."""

from collections.abc import Hashable
from typing import Any, Literal

from stable_baselines3.common.type_aliases import GymEnv
from torch import Tensor

from agents.algorithms import losses
from agents.algorithms.registry import AlgorithmSpec, register_algorithm
from agents.algorithms.setups import Setup
from agents.algorithms.single_pass import Batch, SinglePassAlgorithm, build_single_pass
from agents.models import action_distribution as distribution
from agents.models.policy import ImagePolicy
from envs.errors import InputError


class Reinforce(SinglePassAlgorithm):
    """REINFORCE with epsilon-greedy exploration, as published for image classification (arXiv 2606.12251).

    The loss is ``-mean(log p(a) G)`` (Williams 1992). Under ``batch`` exploration, the paper's, actions are drawn from
    ``p = softmax(logits) + 1e-6``, renormalised, or uniformly for the whole batch, and uniform ones count as if p had
    drawn them. Under ``mixture`` exploration p itself is ``(1 - eps) softmax(logits) + eps / K``.

    Args:
        exploration: probability of uniform random actions, in [0, 1].
        exploration_mode: ``batch`` or ``mixture``.
        **kwargs: those of :class:`SinglePassAlgorithm`.
    """

    def __init__(
        self,
        policy: str | type[ImagePolicy] = "ImagePolicy",
        env: GymEnv | str | None = None,
        *,
        exploration: float = 0.1,
        exploration_mode: Literal["batch", "mixture"] = "batch",
        **kwargs: Any,
    ) -> None:
        if not 0 <= exploration <= 1:
            raise InputError(f"exploration is {exploration}; expected a probability from 0 to 1")
        if exploration_mode not in ("batch", "mixture"):
            raise InputError(f"exploration_mode is {exploration_mode!r}; expected 'batch' or 'mixture'")
        self.exploration = exploration
        self.exploration_mode = exploration_mode
        # Whether the next actions are random, where that is decided beforehand.
        self._explores: bool | None = None
        super().__init__(policy, env, **kwargs)

    def choose_actions(self, logits: Tensor) -> Tensor:
        """Draw actions ``(N,)`` from the policy on ``logits (N, K)``, or uniformly when exploring."""
        if self.exploration_mode == "mixture":
            return distribution.sample_actions(
                distribution.mixture_log_probs(logits.detach(), self.exploration)
            )
        decided, self._explores = self._explores, None
        if distribution.explores(self.exploration) if decided is None else decided:
            return distribution.uniform_actions(logits)
        return distribution.draw_actions(self._probs(logits) + distribution.PROBABILITY_FLOOR)

    def host_choices(self) -> Hashable:
        """Decide whether the whole batch explores."""
        if self.exploration_mode == "batch":
            self._explores = distribution.explores(self.exploration)
        return self.exploration, self._explores, super().host_choices()

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Return ``-mean(log p(a) G)``."""
        if self.exploration_mode == "batch":
            return losses.floored_policy_gradient(logits, self._probs(logits), batch.actions, batch.returns)
        log_probs = distribution.action_log_probs(logits, batch.actions, self.exploration)
        return losses.sampled_policy_gradient(log_probs, batch.returns)


class ExpectedPolicyGradient(Reinforce):
    """The expectation of :class:`Reinforce`'s gradient over its own actions, in closed form: no sampling variance.

    Needs an image task, which knows the reward of every action. Actions are still drawn, for the logs.
    """

    full_information = True

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Return `expected_policy_gradient`, whose gradient is the mean of REINFORCE's."""
        if batch.action_rewards is None:
            raise InputError(
                "epg needs the reward of every action; train it on an environment from envs.sb3_env"
            )
        if self.exploration_mode == "batch":
            probs = self._probs(logits)
            return losses.floored_expected_policy_gradient(
                logits, probs, batch.action_rewards, self.exploration
            )
        log_probs = distribution.mixture_log_probs(logits, self.exploration)
        return losses.expected_policy_gradient(log_probs, batch.action_rewards, log_probs.exp())


def _build(setup: Setup) -> SinglePassAlgorithm:
    return build_single_pass(setup, exploration=setup.exploration, exploration_mode=setup.exploration_mode)


register_algorithm("reinforce", AlgorithmSpec(Reinforce, _build, adversarial="loss"))
register_algorithm("epg", AlgorithmSpec(ExpectedPolicyGradient, _build, adversarial="loss"))
