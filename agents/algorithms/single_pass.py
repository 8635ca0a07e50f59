"""Algorithms that learn from the very forward pass that acts: REINFORCE, its expectation, and supervised learning."""

import abc
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from agents.algorithms import closed_form, losses
from agents.algorithms.adversarial import AdversarialTraining, adversarial_term, attacked_images
from agents.algorithms.base import ImageAlgorithm
from agents.algorithms.buffers import UnusedRolloutBuffer
from agents.algorithms.optimizer_step import descend
from agents.models.policy import ImagePolicy
from envs.errors import InputError
from envs.task import ImageTask

ENTROPY_EVERY = 8  # updates; logging it costs a softmax


@dataclass
class Batch:
    """What one update learns from; N images.

    Attributes:
        pixels: float images in [0, 1], ``(N, C, H, W)``.
        logits: ``(N, K)``, with their graph.
        actions: int64 ``(N,)``, taken.
        returns: float32 ``(N,)``, discounted rewards from each action on.
        labels: int64 ``(N,)``, the labels that rewards use; None outside an image task.
        action_rewards: float32 ``(N, K)``, the reward of every action; None where no loss or attack needs it.
    """

    pixels: Tensor
    logits: Tensor
    actions: Tensor
    returns: Tensor
    labels: Tensor | None = None
    action_rewards: Tensor | None = None


class DirectAlgorithm(ImageAlgorithm, OnPolicyAlgorithm, abc.ABC):
    """Acts with a forward pass that keeps its graph, then descends its loss: three forwards' worth per image.

    Works on any vectorised environment with images and discrete actions; those from ``envs.sb3_env(tensors=True)``
    stay on the device from data set to loss. Nothing in a step waits for the device.

    Args:
        policy: ``"ImagePolicy"`` or a subclass of :class:`~agents.policies.ImagePolicy`.
        env: environment, or its Gymnasium id.
        learning_rate: AdamW's, or a function of the remaining progress.
        n_steps: steps of each environment per update; returns do not reach beyond them.
        gamma: discount; 0 where actions do not influence the next image.
        ent_coef: weight of an entropy bonus, in nats.
        max_grad_norm: gradients are clipped to this L2 norm; 0 switches it off.
        policy_kwargs: passed to the policy.
        tensorboard_log, verbose, seed, device: as in SB3.

    Attributes:
        adversarial: how attacked images enter training, from the next step on; None: not at all. Needs an image task.
    """

    policy: ImagePolicy
    adversarial: AdversarialTraining | None = None
    full_information: ClassVar[bool] = False  # whether the loss needs the reward of every action
    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "ImagePolicy": ImagePolicy,
        "CnnPolicy": ImagePolicy,
    }

    def __init__(
        self,
        policy: str | type[ImagePolicy] = "ImagePolicy",
        env: GymEnv | str | None = None,
        learning_rate: float | Schedule = 1e-3,
        n_steps: int = 1,
        gamma: float = 0.0,
        ent_coef: float = 0.0,
        max_grad_norm: float = 1.0,
        policy_kwargs: dict[str, Any] | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: torch.device | str = "auto",
        _init_setup_model: bool = True,
    ) -> None:
        super().__init__(
            policy,
            env,  # type: ignore[arg-type]
            learning_rate=learning_rate,
            n_steps=n_steps,
            gamma=gamma,
            gae_lambda=1.0,
            ent_coef=ent_coef,
            vf_coef=0.0,
            max_grad_norm=max_grad_norm,
            use_sde=False,
            sde_sample_freq=-1,
            rollout_buffer_class=UnusedRolloutBuffer,
            policy_kwargs=policy_kwargs,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            verbose=verbose,
            seed=seed,
            device=device,
            supported_action_spaces=(spaces.Discrete,),
            _init_setup_model=_init_setup_model,
        )

    def _setup_model(self) -> None:
        super()._setup_model()
        self._batch: Batch | None = None
        self._softmax: tuple[Tensor, Tensor] | None = None
        self._parameters = list(self.policy.parameters())

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_batch", "_softmax", "_parameters", "adversarial"]

    @abc.abstractmethod
    def choose_actions(self, logits: Tensor) -> Tensor:
        """Return the actions ``(N,)`` to take on logits ``(N, K)``."""

    @abc.abstractmethod
    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Return the mean loss of ``logits (N, K)`` for the images of ``batch``."""

    def collect_rollouts(
        self, env: Any, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """Act for ``n_rollout_steps`` steps, keeping the graph; return False if the callback asked to stop."""
        self.policy.set_training_mode(True)
        callback.on_rollout_start()
        steps: list[Batch] = []
        ended: list[Tensor] = []
        for _ in range(n_rollout_steps):
            step, dones = self._act(env)
            steps.append(step)
            ended.append(dones)
            callback.update_locals(locals())
            if not callback.on_step():
                return False
        self._discount(steps, ended)
        self._batch = steps[0] if len(steps) == 1 else _concatenate(steps)
        callback.on_rollout_end()
        return True

    def _act(self, env: Any) -> tuple[Batch, Tensor]:
        """Answer every environment once; return what happened, returns holding the rewards, and ``dones (n,)``."""
        observations = self._last_obs
        if not isinstance(observations, Tensor):
            observations = obs_as_tensor(observations, self.device)  # type: ignore[arg-type]
        task = image_task(env)
        labels = task.labels if task else None
        everything = self.full_information or self.adversarial is not None
        action_rewards = task.action_rewards() if task and everything else None
        pixels = self.policy.pixels(observations)
        if self._attacks("replace"):
            pixels = attacked_images(self, pixels, *_known(labels, action_rewards))
        logits = self.policy.logits(pixels).float()
        actions = self.choose_actions(logits)
        tensors = getattr(env, "tensors", False)
        self._last_obs, rewards, dones, infos = env.step(actions if tensors else actions.cpu().numpy())
        self._last_episode_starts = dones
        if not tensors:
            self._update_info_buffer(infos, dones)
        rewards, dones = (torch.as_tensor(value, device=self.device) for value in (rewards, dones))
        self.num_timesteps += env.num_envs
        self.statistics.add(reward=rewards)
        if labels is not None:
            self.statistics.add(accuracy=actions == labels)
        return Batch(pixels, logits, actions, rewards.float(), labels, action_rewards), dones

    def answer(self, pixels: Tensor, labels: Tensor, action_rewards: Tensor) -> Batch:
        """Answer images outside of the environment; each is a bandit of its own, so returns are its rewards."""
        logits = self.policy.logits(pixels).float()
        actions = self.choose_actions(logits)
        returns = action_rewards.gather(1, actions[:, None])[:, 0]
        return Batch(pixels, logits, actions, returns, labels, action_rewards)

    def _attacks(self, *rules: str) -> bool:
        """Return whether the phase of attacks has begun, under one of these rules."""
        regime = self.adversarial
        return regime is not None and regime.rule in rules and self.num_timesteps >= regime.begins

    def _probs(self, logits: Tensor) -> Tensor:
        """Return ``softmax(logits)``, without a graph; what choosing the actions computed, the loss finds again."""
        if self._softmax is None or self._softmax[0] is not logits:
            self._softmax = (logits, closed_form.softmax(logits))
        return self._softmax[1]

    def _discount(self, steps: list[Batch], ended: list[Tensor]) -> None:
        if self.gamma == 0:
            return
        following = torch.zeros_like(steps[-1].returns)
        for step, dones in zip(reversed(steps), reversed(ended), strict=True):
            following = step.returns + self.gamma * (1 - dones.float()) * following
            step.returns = following

    def train(self) -> None:
        """Take one gradient step on the batch collected last."""
        batch, self._batch = self._batch, None
        if batch is None:
            raise InputError("nothing was collected; call learn(), which collects before it trains")
        self._update_learning_rate(self.policy.optimizer)
        loss = self.loss(batch.logits, batch)
        total = loss
        if self.ent_coef or self._n_updates % ENTROPY_EVERY == 0:
            if self.ent_coef:
                entropy = losses.entropy(batch.logits)
                total = loss - self.ent_coef * entropy
            else:
                entropy = closed_form.entropy(self._probs(batch.logits))
            self.statistics.add(entropy=entropy)
        if self._attacks("add", "trades"):
            labels, action_rewards = _known(batch.labels, batch.action_rewards)
            total = total + adversarial_term(self, batch, labels, action_rewards)
        norm = descend(total, self.policy.optimizer, self._parameters, self.max_grad_norm or float("inf"))
        self._n_updates += 1
        self.statistics.add(loss=loss, grad_norm=norm)
        self.statistics.watch(self.num_timesteps, norm)


class Reinforce(DirectAlgorithm):
    """REINFORCE with epsilon-greedy exploration, as published for image classification (arXiv 2606.12251).

    The loss is ``-mean(log p(a) G)`` (Williams 1992). Under ``batch`` exploration, the paper's, actions are drawn from
    ``p = softmax(logits) + 1e-6``, renormalised, or uniformly for the whole batch, and uniform ones count as if p had
    drawn them. Under ``mixture`` exploration p itself is ``(1 - eps) softmax(logits) + eps / K``.

    Args:
        exploration: probability of uniform random actions, in [0, 1].
        exploration_mode: ``batch`` or ``mixture``.
        **kwargs: those of :class:`DirectAlgorithm`.
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
        super().__init__(policy, env, **kwargs)

    def choose_actions(self, logits: Tensor) -> Tensor:
        """Draw actions ``(N,)`` from the policy on ``logits (N, K)``, or uniformly when exploring."""
        if self.exploration_mode == "mixture":
            return losses.sample_actions(losses.mixture_log_probs(logits.detach(), self.exploration))
        if losses.explores(self.exploration):
            return losses.uniform_actions(logits)
        return losses.draw_actions(self._probs(logits) + losses.PROBABILITY_FLOOR)

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Return ``-mean(log p(a) G)``."""
        if self.exploration_mode == "batch":
            return closed_form.policy_gradient(logits, self._probs(logits), batch.actions, batch.returns)
        log_probs = losses.action_log_probs(logits, batch.actions, self.exploration)
        return losses.sampled_policy_gradient(log_probs, batch.returns)


class ExpectedPolicyGradient(Reinforce):
    """The expectation of :class:`Reinforce`'s gradient over its own actions, in closed form: no sampling variance.

    Needs an image task, which tells the reward of every action. Actions are still drawn, for the record.
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
            return closed_form.expected_policy_gradient(logits, probs, batch.action_rewards, self.exploration)
        log_probs = losses.mixture_log_probs(logits, self.exploration)
        return losses.expected_policy_gradient(log_probs, batch.action_rewards, log_probs.exp())


class Supervised(DirectAlgorithm):
    """Cross-entropy on the labels, through the same environment, policy and logs; actions are the likeliest labels."""

    def choose_actions(self, logits: Tensor) -> Tensor:
        """Return the likeliest labels ``(N,)``."""
        return logits.detach().argmax(-1)

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Return the mean cross-entropy in nats."""
        if batch.labels is None:
            raise InputError("supervised learning needs labels; train it on an environment from envs.sb3_env")
        return losses.cross_entropy(logits, batch.labels)


def image_task(env: VecEnv) -> ImageTask | None:
    """Return the image task behind ``env``, or None where there is none."""
    task = getattr(env, "task", None)
    return task if isinstance(task, ImageTask) else None


def _known(labels: Tensor | None, action_rewards: Tensor | None) -> tuple[Tensor, Tensor]:
    if labels is None or action_rewards is None:
        raise InputError("adversarial training needs labels; train on an environment from envs.sb3_env")
    return labels, action_rewards


def _concatenate(steps: list[Batch]) -> Batch:
    columns = zip(*(vars(step).values() for step in steps), strict=True)
    return Batch(*(None if column[0] is None else torch.cat(column) for column in columns))  # type: ignore[arg-type]
