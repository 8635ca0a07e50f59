"""From a configuration to data, environment, policy and algorithm."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.vec_env import VecEnv

from agents.config import SMALL_NETWORKS, TrainConfig
from agents.direct import DirectAlgorithm, ExpectedPolicyGradient, Reinforce, Supervised
from agents.dqn import DQN
from agents.networks import ImageNetwork, resolve_network, to_fast_layout
from agents.on_policy import A2C, PPO
from agents.policies import ImagePolicy
from envs import Augmentation, ImageDataset, sb3_env
from envs.errors import InputError
from envs.files import read_json

Algorithm = PPO | A2C | DQN | DirectAlgorithm
LR_FLOOR = 0.02


def check_names(config: TrainConfig) -> None:
    """Resolve every name of the configuration before any data is read.

    Raises:
        InputError: a name or list of options is unknown.
    """
    resolve_network(config.network, allow_import=True)
    Augmentation.parse(config.augmentation)
    if config.algo == "dqn" and config.schedule is None and config.precision != "fp32":
        raise InputError("--precision bf16 is not offered for dqn; use fp32")
    _reward(config.reward)


def build_env(config: TrainConfig, dataset: ImageDataset) -> VecEnv:
    """Return the training environment, ``batch_size`` images at a time, seeded."""
    return sb3_env(
        dataset,
        num_envs=min(config.images_per_step(), len(dataset)),
        tensors=True,
        device=dataset.device,
        seed=config.seed,
        length=config.episode_length,
        stop_on_error=config.stop_on_error,
        reward=_reward(config.reward),
        label_noise=config.label_noise,
        augmentation=Augmentation.parse(config.augmentation),
        order="epoch",
    )


def build_algorithm(name: str, config: TrainConfig, env: VecEnv, dataset: ImageDataset) -> Algorithm:
    """Return the algorithm called ``name`` with a new policy on ``env``."""
    mean, std = (tuple(values.tolist()) for values in dataset.channel_stats())
    network = {"network": config.network, "mean": mean, "std": std}
    optimizer = {"weight_decay": config.weight_decay, "fused": True}
    shared: dict[str, Any] = {"env": env, "seed": config.seed, "device": dataset.device}
    shared["learning_rate"] = learning_rate(config, name)
    max_norm = config.max_grad_norm or float("inf")
    if name == "dqn":
        return _build_dqn(config, network, optimizer, shared, max_norm)
    shared["policy_kwargs"] = {
        **network,
        "precision": config.precision,
        "channels_last": config.channels_last,
        "compile": config.compile,
        "optimizer_kwargs": optimizer,
    }
    shared["ent_coef"] = {"a2c": 0.1}.get(name, 0.0) if config.ppo.ent_coef is None else config.ppo.ent_coef
    shared["gamma"] = config.ppo.gamma
    eps, mode = config.exploration_of(name)
    if name in ("ppo", "a2c"):
        shared["policy_kwargs"] |= {"exploration": eps, "exploration_mode": mode}
        shared |= {
            "gae_lambda": config.ppo.gae_lambda,
            "vf_coef": config.ppo.vf_coef,
            "max_grad_norm": max_norm,
        }
        if name == "a2c":
            normalize = config.ppo.normalize_advantage
            return A2C(ImagePolicy, n_steps=1, use_rms_prop=False, normalize_advantage=normalize, **shared)
        return PPO(
            ImagePolicy,
            n_steps=max(config.ppo.rollout // env.num_envs, 1),
            batch_size=env.num_envs,
            n_epochs=config.ppo.epochs,
            clip_range=config.ppo.clip_range,
            target_kl=config.ppo.target_kl,
            normalize_advantage=config.ppo.normalize_advantage,
            **shared,
        )
    shared["max_grad_norm"] = config.max_grad_norm
    if name == "supervised":
        return Supervised(ImagePolicy, **shared | {"ent_coef": 0.0})
    kind = Reinforce if name == "reinforce" else ExpectedPolicyGradient
    return kind(ImagePolicy, exploration=eps, exploration_mode=mode, **shared)


def _build_dqn(
    config: TrainConfig,
    network: dict[str, Any],
    optimizer: dict[str, Any],
    shared: dict[str, Any],
    max_norm: float,
) -> DQN:
    num_envs = shared["env"].num_envs
    model = DQN(
        "CnnPolicy",
        buffer_size=config.dqn.buffer_size,
        learning_starts=config.dqn.learning_starts,
        batch_size=num_envs,
        gamma=config.ppo.gamma,
        train_freq=1,
        gradient_steps=1,
        target_update_interval=max(config.dqn.target_update_interval, num_envs),
        exploration_fraction=config.dqn.exploration_fraction,
        exploration_final_eps=config.exploration_of("dqn")[0],
        max_grad_norm=max_norm,
        policy_kwargs={
            "features_extractor_class": ImageNetwork,
            "features_extractor_kwargs": network,
            "net_arch": [],
            "optimizer_class": torch.optim.AdamW,
            "optimizer_kwargs": optimizer,
        },
        **shared,
    )
    if config.channels_last:
        to_fast_layout(model.policy)
    return model


def learning_rate(config: TrainConfig, algorithm: str) -> float | Callable[[float], float]:
    """Return SB3's schedule: the learning rate as a function of the remaining progress, from 1 to 0."""
    default = (2e-3 if config.network in SMALL_NETWORKS else 1e-3) * (0.5 if algorithm == "a2c" else 1)
    start = config.learning_rate or default
    if config.lr_schedule == "constant":
        return start
    return LearningRate(start, config.lr_schedule)


class LearningRate:
    """A learning rate that falls from ``start`` to 2 % of it, linearly or along a cosine."""

    def __init__(self, start: float, shape: str) -> None:
        self.start = start
        self.shape = shape

    def __call__(self, remaining: float) -> float:
        """Return the rate at ``remaining`` progress, from 1 (start) to 0 (end)."""
        share = remaining if self.shape == "linear" else (1 - np.cos(np.pi * remaining)) / 2
        return float(self.start * (LR_FLOOR + (1 - LR_FLOOR) * share))


def _reward(reward: str) -> Any:
    """Return a reward's name, or the matrix in the JSON file of that name."""
    return read_json(Path(reward)) if reward.endswith(".json") else reward
