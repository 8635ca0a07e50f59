"""The phases of a run, and what algorithms are built from: options with defaults filled in, environment, network."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from stable_baselines3.common.vec_env import VecEnv

from agents.algorithms.adversarial import AdversarialTraining
from agents.algorithms.registry import AlgorithmSpec
from agents.config import TrainConfig
from agents.models.image_network import ImageNetwork


@dataclass(frozen=True)
class Phase:
    """A phase of training."""

    spec: AlgorithmSpec  #: what learns
    end: int  #: images of the whole run after which it is over
    #: a number, or a function of the whole run's remaining progress, from 1 to 0
    learning_rate: float | Callable[[float], float]
    exploration: float  #: share of uniform random actions
    exploration_mode: str  #: ``batch`` or ``mixture``
    ent_coef: float  #: weight of the entropy bonus


@dataclass(frozen=True)
class Setup(Phase):
    """What the algorithm of a phase is built from."""

    #: the options of the run; those with defaults by algorithm are the fields of the phase
    config: TrainConfig
    env: VecEnv  #: the training environment, ``batch_size`` images at a time
    device: torch.device  #: where the policy lives
    network: dict[str, Any]  #: ``network``, ``mean`` and ``std`` of `agents.ImageNetwork`
    compile: bool  #: whether policies of this project compile it
    attacks: AdversarialTraining | None = None  #: how training is attacked in the loss; None: not at all

    @property
    def algorithm(self) -> type[Any]:
        """The class of the algorithm."""
        return self.spec.algorithm

    @property
    def optimizer(self) -> dict[str, Any]:
        """Arguments of AdamW."""
        return {"weight_decay": self.config.weight_decay, "fused": True}

    @property
    def common(self) -> dict[str, Any]:
        """Arguments that every Stable-Baselines3 algorithm takes."""
        return {
            "env": self.env,
            "seed": self.config.seed,
            "device": self.device,
            "learning_rate": self.learning_rate,
            "gamma": self.config.ppo.gamma,
        }

    @property
    def off_policy(self) -> dict[str, Any]:
        """Arguments that DQN and its kin take: one step of every environment, then one on as many images."""
        dqn, envs = self.config.dqn, self.env.num_envs
        return {
            "buffer_size": dqn.buffer_size,
            "learning_starts": dqn.learning_starts,
            "batch_size": envs,
            "train_freq": 1,
            "gradient_steps": 1,
            "target_update_interval": max(dqn.target_update_interval, envs),
            "exploration_fraction": dqn.exploration_fraction,
            "exploration_final_eps": self.exploration,
        }

    @property
    def stock_policy(self) -> dict[str, Any]:
        """Arguments of a Stable-Baselines3 policy that is `agents.ImageNetwork` followed by the head alone."""
        return {
            "features_extractor_class": ImageNetwork,
            "features_extractor_kwargs": self.network,
            "net_arch": [],
            "optimizer_class": torch.optim.AdamW,
            "optimizer_kwargs": self.optimizer,
        }

    @property
    def image_policy(self) -> dict[str, Any]:
        """Arguments of `agents.ImagePolicy`, but for exploration."""
        return {
            **self.network,
            "precision": self.config.precision,
            "channels_last": self.config.channels_last,
            "compile": self.compile,
            "optimizer_kwargs": self.optimizer,
        }
