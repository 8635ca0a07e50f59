"""Algorithms that differentiate the forward pass that chose the actions: REINFORCE, its expectation, supervised."""

import abc
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from stable_baselines3.common.utils import obs_as_tensor
from torch import Tensor

from agents.algorithms import losses
from agents.algorithms.adversarial import AdversarialTraining, crafting
from agents.algorithms.base import ImageAlgorithm, image_task, optimizer_step
from agents.algorithms.buffers import UnusedRolloutBuffer
from agents.algorithms.registry import AlgorithmSpec, register_family
from agents.algorithms.setups import Setup
from agents.algorithms.step_graphs import Inputs, StepGraphs
from agents.models import action_distribution as distribution
from agents.models.policy import ImagePolicy
from envs.errors import InputError

ENTROPY_EVERY = 8  # updates; logging it costs a softmax


@dataclass
class Batch:
    """What one update learns from; N images."""

    pixels: Tensor  #: float images in [0, 1], ``(N, C, H, W)``
    logits: Tensor  #: ``(N, K)``, with their graph
    actions: Tensor  #: int64 ``(N,)``, taken
    returns: Tensor  #: float32 ``(N,)``, discounted rewards from each action on
    labels: Tensor | None = None  #: int64 ``(N,)``, the labels that rewards use; None outside an image task
    #: float32 ``(N, K)``, the reward of every action; None where no loss or attack needs it
    action_rewards: Tensor | None = None


class SinglePassAlgorithm(ImageAlgorithm, OnPolicyAlgorithm, abc.ABC):
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
        cuda_graphs: on a GPU, record the step as CUDA graphs, see `StepGraphs`. Needs an image task with tensors,
            ``n_steps`` of 1 and no attacks in training; other trainings go on without. Own algorithms may decide
            nothing on the host in a step but :meth:`host_choices`.
        **options: ``policy_kwargs``, ``tensorboard_log``, ``verbose``, ``seed``, ``device``, as in SB3.

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
        cuda_graphs: bool = False,
        **options: Any,
    ) -> None:
        self.cuda_graphs = cuda_graphs
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
            supported_action_spaces=(spaces.Discrete,),
            **options,
        )

    def _setup_model(self) -> None:
        super()._setup_model()
        self._batch: Batch | None = None
        self._graphs: StepGraphs | None = None
        self._softmax: tuple[Tensor, Tensor] | None = None
        self._parameters = list(self.policy.parameters())

    def _excluded_save_params(self) -> list[str]:
        own = ("_batch", "_softmax", "_parameters", "_graphs", "adversarial")
        return [*super()._excluded_save_params(), *own]

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
            batch, step = self._act(env)
            steps.append(batch)
            ended.append(step["dones"])
            if not self._report(callback, locals(), step):
                return False
        if self.gamma != 0:
            following = torch.zeros_like(steps[-1].returns)
            for batch, dones in zip(reversed(steps), reversed(ended), strict=True):
                following = batch.returns + self.gamma * (1 - dones.float()) * following
                batch.returns = following
        self._batch = steps[0]
        if len(steps) > 1:
            columns = zip(*(vars(batch).values() for batch in steps), strict=True)
            joined = (None if column[0] is None else torch.cat(column) for column in columns)
            self._batch = Batch(*joined)  # type: ignore[arg-type]
        callback.on_rollout_end()
        return True

    def _act(self, env: Any) -> tuple[Batch, dict[str, Any]]:
        """Answer every environment once; return what to learn from, returns holding the rewards, and what happened."""
        observations = self._last_obs
        if not isinstance(observations, Tensor):
            observations = obs_as_tensor(observations, self.device)  # type: ignore[arg-type]
        task = image_task(env)
        labels = task.labels if task else None
        everything = self.full_information or self.adversarial is not None
        action_rewards = task.action_rewards() if task and everything else None
        tensors = getattr(env, "tensors", False)
        here = self.cuda_graphs and tensors and task is not None and self.device.type == "cuda"
        if not here or self.n_steps > 1 or self.adversarial is not None:
            self._graphs = None
        elif self._graphs is None:
            self._graphs = StepGraphs(self._answer, self._descend_on, self.policy.optimizer)
        if self._graphs is not None:
            returns = torch.empty(env.num_envs, device=self.device)
            others = {"returns": returns, "labels": labels, "action_rewards": action_rewards}
            self._softmax = None  # of memory that is overwritten
            pixels, logits, actions = self._graphs.act(observations, others, self.host_choices())
        else:
            pixels, logits, actions = self._answer(observations, labels, action_rewards)
        self._last_obs, rewards, dones, infos = env.step(actions if tensors else actions.cpu().numpy())
        self._last_episode_starts = dones
        rewards, dones = (torch.as_tensor(value, device=self.device) for value in (rewards, dones))
        self.statistics.add(reward=rewards)
        if labels is not None:
            self.statistics.add(accuracy=actions == labels)
        step = {"actions": actions, "rewards": rewards, "dones": dones}
        step |= {"new_obs": self._last_obs, "infos": infos}
        return Batch(pixels, logits, actions, rewards.float(), labels, action_rewards), step

    def _answer(
        self, observations: Tensor, labels: Tensor | None = None, action_rewards: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return pixels, logits and actions."""
        pixels = self.policy.pixels(observations)
        if self._attacks("replace"):
            pixels = self.attacked_images(pixels, *_known(labels, action_rewards))
        logits = self.policy.logits(pixels).float()
        return pixels, logits, self.choose_actions(logits)

    def host_choices(self) -> Hashable:
        """Decide what the next, recorded step decides on the host, and return all numbers that it depends on."""
        return self.ent_coef, self.max_grad_norm

    def answer(self, pixels: Tensor, labels: Tensor, action_rewards: Tensor) -> Batch:
        """Answer images outside of the environment; each is a bandit of its own, so returns are its rewards."""
        logits = self.policy.logits(pixels).float()
        actions = self.choose_actions(logits)
        returns = action_rewards.gather(1, actions[:, None])[:, 0]
        return Batch(pixels, logits, actions, returns, labels, action_rewards)

    def attacked_images(self, pixels: Tensor, labels: Tensor, action_rewards: Tensor) -> Tensor:
        """Return the images ``(N, C, H, W)`` that the regime makes of ``pixels``, without a graph."""
        regime, policy = self.adversarial, self.policy
        assert regime is not None

        def own(images: Tensor) -> Tensor:
            batch = self.answer(images, labels, action_rewards)
            return self.loss(batch.logits, batch)

        def cross_entropy(images: Tensor) -> Tensor:
            return F.cross_entropy(policy.logits(images).float(), labels, reduction="sum")

        with crafting(policy):
            if regime.rule == "trades":
                with torch.no_grad():
                    clean = policy.logits(pixels).float()
                return regime.ascent.climb(
                    lambda images: losses.divergence(clean, policy.logits(images).float()), pixels
                )
            attacked = regime.ascent.climb(own if regime.objective == "own" else cross_entropy, pixels)
        if regime.rule == "replace" and regime.share < 1:
            chosen = torch.rand(len(pixels), 1, 1, 1, device=pixels.device) < regime.share
            attacked = torch.where(chosen, attacked, pixels)
        return attacked

    def adversarial_term(self, batch: Batch, labels: Tensor, action_rewards: Tensor) -> Tensor:
        """Return what the rules ``add`` and ``trades`` add to the loss of a batch of clean images, weight included.

        Under ``add`` the attacked images are answered again: their actions are drawn from the policy on these images
        and earn their own rewards, so the term is the algorithm's own loss, on policy, as if they had been shown.
        """
        regime = self.adversarial
        assert regime is not None
        attacked = self.answer(
            self.attacked_images(batch.pixels, labels, action_rewards), labels, action_rewards
        )
        if regime.rule == "trades":
            loss = losses.divergence(batch.logits, attacked.logits)
        else:
            loss = self.loss(attacked.logits, attacked)
        accuracy = (attacked.logits.detach().argmax(-1) == labels).float().mean()
        self.statistics.add(adversarial_loss=loss, adversarial_accuracy=accuracy)
        return regime.weight * loss

    def _attacks(self, *rules: str) -> bool:
        """Return whether the phase of attacks has begun, under one of these rules."""
        regime = self.adversarial
        return regime is not None and regime.rule in rules and self.num_timesteps >= regime.begins

    def _probs(self, logits: Tensor) -> Tensor:
        """Return ``softmax(logits)``, without a graph; what choosing the actions computed, the loss finds again."""
        if self._softmax is None or self._softmax[0] is not logits:
            self._softmax = (logits, distribution.softmax(logits))
        return self._softmax[1]

    def train(self) -> None:
        """Take one gradient step on the batch collected last."""
        batch, self._batch = self._batch, None
        if batch is None:
            raise InputError("nothing was collected; call learn(), which collects before it trains")
        self._update_learning_rate(self.policy.optimizer)
        if self._graphs is None:
            loss, norm, *entropy = self._descend(batch)
        else:
            inputs = {name: getattr(batch, name) for name in ("returns", "labels", "action_rewards")}
            loss, norm, *entropy = self._graphs.learn(inputs)
        if not entropy and self._n_updates % ENTROPY_EVERY == 0:
            entropy = [distribution.entropy_of_probs(self._probs(batch.logits))]
        self._n_updates += 1
        self.statistics.add(loss=loss, grad_norm=norm, **({"entropy": entropy[0]} if entropy else {}))
        self.statistics.watch(self.num_timesteps, norm)

    def _descend_on(self, outputs: tuple[Tensor, ...], inputs: Inputs) -> tuple[Tensor, ...]:
        return self._descend(Batch(*outputs, **inputs))  # type: ignore[arg-type]

    def _descend(self, batch: Batch) -> tuple[Tensor, ...]:
        """Take the gradient step and return loss and gradient norm, and the entropy if it is part of the loss."""
        loss = self.loss(batch.logits, batch)
        total, entropies = loss, list[Tensor]()
        if self.ent_coef:
            entropies = [distribution.entropy(batch.logits)]
            total = loss - self.ent_coef * entropies[0]
        if self._attacks("add", "trades"):
            labels, action_rewards = _known(batch.labels, batch.action_rewards)
            total = total + self.adversarial_term(batch, labels, action_rewards)
        norm = optimizer_step(
            total, self.policy.optimizer, self._parameters, self.max_grad_norm or float("inf")
        )
        return loss, norm, *entropies


def _known(labels: Tensor | None, action_rewards: Tensor | None) -> tuple[Tensor, Tensor]:
    if labels is None or action_rewards is None:
        raise InputError("adversarial training needs labels; train on an environment from envs.sb3_env")
    return labels, action_rewards


def build_single_pass(setup: Setup, **options: Any) -> SinglePassAlgorithm:
    """Return the algorithm of ``setup`` with what algorithms of one pass share, and with its own ``options``."""
    model = setup.algorithm(
        ImagePolicy,
        ent_coef=setup.ent_coef,
        max_grad_norm=setup.config.max_grad_norm,
        cuda_graphs=setup.config.cuda_graphs,
        policy_kwargs=setup.image_policy,
        **setup.common,
        **options,
    )
    model.adversarial = setup.attacks
    return model


register_family(AlgorithmSpec(SinglePassAlgorithm, build_single_pass, adversarial="loss"))
