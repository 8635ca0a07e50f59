"""The arguments of algorithm builders: options with defaults filled in, environment and network."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from stable_baselines3.common.vec_env import VecEnv

from agents.algorithms.adversarial import AdversarialTraining
from agents.config import TrainConfig
from agents.models.image_network import ImageNetwork


@dataclass(frozen=True)
class Setup:
    """What an algorithm is built from.

    Attributes:
        algorithm: its class.
        config: the options of the run; those with defaults by algorithm are the fields below.
        env: the training environment, ``batch_size`` images at a time.
        device: where the policy lives.
        learning_rate: a number, or a function of the remaining progress, from 1 to 0.
        exploration: share of uniform random actions.
        exploration_mode: ``batch`` or ``mixture``.
        ent_coef: weight of the entropy bonus.
        network: ``network``, ``mean`` and ``std`` of `agents.ImageNetwork`.
        compile: whether policies of this project compile it.
        attacks: how training is attacked in the loss; None where it is not.
    """

    algorithm: type[Any]
    config: TrainConfig
    env: VecEnv
    device: torch.device
    learning_rate: float | Callable[[float], float]
    exploration: float
    exploration_mode: str
    ent_coef: float
    network: dict[str, Any]
    compile: bool
    attacks: AdversarialTraining | None = None

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
