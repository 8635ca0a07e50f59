"""From a configuration to data, environment, policy and algorithm."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.vec_env import VecEnv
from torch.nn.modules.batchnorm import _BatchNorm

from agents.algorithms.a2c import A2C
from agents.algorithms.adversarial import AdversarialTraining, plan
from agents.algorithms.adversarial_env import AdversarialObservation
from agents.algorithms.dqn import DQN
from agents.algorithms.ppo import PPO
from agents.algorithms.reinforce import ExpectedPolicyGradient, Reinforce
from agents.algorithms.single_pass import SinglePassAlgorithm
from agents.algorithms.supervised import Supervised
from agents.config import SMALL_NETWORKS, TrainConfig
from agents.models.architectures import PRETRAINED, load_pretrained
from agents.models.image_network import ImageNetwork, resolve_network, to_fast_layout
from agents.models.policy import ImagePolicy
from agents.training.schedule import phase_ends
from agents.training.snapshots import check_size, snapshot_moments
from envs import Augmentation, ImageDataset, sb3_env
from envs.errors import InputError
from envs.files import read_json

Algorithm = PPO | A2C | DQN | SinglePassAlgorithm


def check_names(config: TrainConfig) -> None:
    """Resolve every name of the configuration before any data is read.

    Raises:
        InputError: a name or list of options is unknown.
    """
    resolve_network(config.network, allow_import=True)
    Augmentation.parse(config.augmentation)
    if config.algo == "dqn" and config.schedule is None and config.precision != "fp32":
        raise InputError("--precision bf16 is not offered for dqn; use fp32")
    if config.pretrained and (config.network not in PRETRAINED or config.algo == "dqn"):
        raise InputError(
            f"--pretrained is not offered for {config.algo} with {config.network}; use {', '.join(PRETRAINED)}, not dqn"
        )
    _reward(config.reward)


def try_out(config: TrainConfig, dataset: ImageDataset) -> None:
    """Build everything once, so that what only the data shows to be wrong is refused before a run begins.

    Raises:
        InputError: the configuration does not fit the data.
    """
    env = build_env(config, dataset)
    model = build_algorithm(config.phases()[0][0], config, env, dataset)
    if env.num_envs == 1 and any(isinstance(layer, _BatchNorm) for layer in model.policy.modules()):
        raise InputError(
            f"--batch-size is 1, and network {config.network!r} has BatchNorm; expected at least 2 images at a time"
        )
    check_size(snapshot_moments(config, len(dataset)), model.policy)


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
    """Return the algorithm called ``name`` with a new policy on ``env``.

    Raises:
        InputError: the radius of adversarial training is larger than the images allow.
    """
    regime = plan_regime(config, dataset)
    if regime is not None and name in ("ppo", "a2c"):
        env = _attacked_env(env, regime)
    mean, std = (values.tolist() for values in dataset.channel_stats())
    std = [value or 1.0 for value in std]  # a channel may be constant
    network = {"network": config.network, "mean": tuple(mean), "std": tuple(std)}
    optimizer = {"weight_decay": config.weight_decay, "fused": True}
    shared: dict[str, Any] = {"env": env, "seed": config.seed, "device": dataset.device}
    warmup = config.lr_warmup * len(dataset) / phase_ends(config, len(dataset))[-1]
    shared["learning_rate"] = learning_rate(config, name, warmup)
    shared["gamma"] = config.ppo.gamma
    if name == "dqn":
        return _build_dqn(config, network, optimizer, shared)
    shared["policy_kwargs"] = {
        **network,
        "precision": config.precision,
        "channels_last": config.channels_last,
        "compile": config.compile,
        "optimizer_kwargs": optimizer,
    }
    shared["ent_coef"] = {"a2c": 0.1}.get(name, 0.0) if config.ppo.ent_coef is None else config.ppo.ent_coef
    model: PPO | A2C | SinglePassAlgorithm
    if name in ("ppo", "a2c"):
        model = _build_actor_critic(name, config, shared)
    else:
        model = _build_direct(name, config, shared, regime)
    if config.pretrained:
        load_pretrained(
            model.policy.features_extractor.get_submodule("network"), config.network, dataset.shape
        )
    return model


def plan_regime(config: TrainConfig, dataset: ImageDataset) -> AdversarialTraining | None:
    """Return how training on ``dataset`` is attacked, or None where it is not.

    Raises:
        InputError: the radius is larger than the images allow, or the attacks would begin after the end.
    """
    if config.adversarial.method == "none":
        return None
    regime = plan(config.adversarial, dataset.shape, len(dataset))
    total = phase_ends(config, len(dataset))[-1]
    if regime.begins >= total:
        raise InputError(
            f"--adv-start is {config.adversarial.start:g} passes, {regime.begins:,} images, but training ends after "
            f"{total:,}; expected fewer passes, or a larger --total-images"
        )
    return regime


def _attacked_env(env: VecEnv, regime: AdversarialTraining) -> AdversarialObservation:
    ascent = regime.ascent
    return AdversarialObservation(
        env,
        eps=ascent.eps,
        norm=ascent.norm.name,
        steps=ascent.steps,
        step_size=ascent.step_size,
        start=ascent.start,
        share=regime.share,
        begins=regime.begins,
    )


def _build_actor_critic(name: str, config: TrainConfig, shared: dict[str, Any]) -> PPO | A2C:
    env = shared["env"]
    eps, mode = config.exploration_of(name)
    shared["policy_kwargs"] |= {"exploration": eps, "exploration_mode": mode}
    shared |= {
        "gae_lambda": config.ppo.gae_lambda,
        "vf_coef": config.ppo.vf_coef,
        "max_grad_norm": config.max_grad_norm or float("inf"),
        "normalize_advantage": config.ppo.normalize_advantage,
    }
    model: PPO | A2C
    if name == "a2c":
        model = A2C(ImagePolicy, n_steps=1, use_rms_prop=False, **shared)
    else:
        model = PPO(
            ImagePolicy,
            n_steps=max(config.ppo.rollout // env.num_envs, 1),
            batch_size=env.num_envs,
            n_epochs=config.ppo.epochs,
            clip_range=config.ppo.clip_range,
            target_kl=config.ppo.target_kl,
            **shared,
        )
    if isinstance(env, AdversarialObservation):
        env.watch(model)
    return model


def _build_direct(
    name: str, config: TrainConfig, shared: dict[str, Any], regime: AdversarialTraining | None
) -> SinglePassAlgorithm:
    shared["max_grad_norm"] = config.max_grad_norm
    model: SinglePassAlgorithm
    if name == "supervised":
        model = Supervised(ImagePolicy, **shared | {"ent_coef": 0.0})
    else:
        eps, mode = config.exploration_of(name)
        kind = Reinforce if name == "reinforce" else ExpectedPolicyGradient
        model = kind(ImagePolicy, exploration=eps, exploration_mode=mode, **shared)
    model.adversarial = regime
    return model


def _build_dqn(
    config: TrainConfig,
    network: dict[str, Any],
    optimizer: dict[str, Any],
    shared: dict[str, Any],
) -> DQN:
    num_envs = shared["env"].num_envs
    model = DQN(
        "CnnPolicy",
        buffer_size=config.dqn.buffer_size,
        learning_starts=config.dqn.learning_starts,
        batch_size=num_envs,
        train_freq=1,
        gradient_steps=1,
        target_update_interval=max(config.dqn.target_update_interval, num_envs),
        exploration_fraction=config.dqn.exploration_fraction,
        exploration_final_eps=config.exploration_of("dqn")[0],
        max_grad_norm=config.max_grad_norm or float("inf"),
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


def learning_rate(
    config: TrainConfig, algorithm: str, warmup: float = 0.0
) -> float | Callable[[float], float]:
    """Return SB3's schedule: the learning rate as a function of the remaining progress, from 1 to 0."""
    default = (2e-3 if config.network in SMALL_NETWORKS else 1e-3) * (0.5 if algorithm == "a2c" else 1)
    start = config.learning_rate or default
    if config.lr_schedule == "constant" and not warmup:
        return start
    return LearningRate(start, config.lr_schedule, config.lr_end, warmup)


class LearningRate:
    """A learning rate that stays, or falls from ``start`` to ``end`` times that, linearly or along a cosine.

    ``linear-floor`` falls on the line from ``start`` to 0 and stays once it is ``end`` times ``start``, as in the
    code of arXiv 2606.12251.
    Over the first ``warmup`` of training, a share, the rate rises from 0 to ``start``.
    """

    def __init__(self, start: float, shape: str, end: float = 0.02, warmup: float = 0.0) -> None:
        self.start = start
        self.shape = shape
        self.end = end
        self.warmup = warmup

    def __call__(self, remaining: float) -> float:
        """Return the rate at ``remaining`` progress, from 1 (start) to 0 (end)."""
        if 1 - remaining < self.warmup:
            return self.start * (1 - remaining) / self.warmup
        share = remaining / (1 - self.warmup)
        if self.shape == "constant":
            return self.start
        if self.shape == "linear-floor":
            return self.start * max(self.end, share)
        share = share if self.shape == "linear" else (1 - np.cos(np.pi * share)) / 2
        return float(self.start * (self.end + (1 - self.end) * share))


def _reward(reward: str) -> Any:
    """Return a reward's name, or the matrix in the JSON file of that name."""
    return read_json(Path(reward)) if reward.endswith(".json") else reward


def reward_fingerprint(reward: str) -> str | None:
    """Return the SHA-256 (hex) of the reward matrix in the JSON file ``reward``; None for a reward's name."""
    if not reward.endswith(".json"):
        return None
    return hashlib.sha256(json.dumps(_reward(reward)).encode()).hexdigest()
