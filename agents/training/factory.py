"""Builds environment, network and algorithm from resolved options."""

import hashlib
import json
from pathlib import Path
from typing import Any

from stable_baselines3.common.vec_env import VecEnv
from torch.nn.modules.batchnorm import _BatchNorm

from agents.algorithms.adversarial_env import AdversarialObservation
from agents.algorithms.base import ImageAlgorithm
from agents.algorithms.registry import find_algorithm
from agents.algorithms.setups import Setup
from agents.config import TrainConfig
from agents.models.architectures import PRETRAINED, load_pretrained
from agents.models.classifier_files import classifier_bytes
from agents.models.extraction import extract_classifier
from agents.models.image_network import resolve_network
from agents.training.resolve import ResolvedConfig
from agents.training.snapshots import check_size
from agents.training.validation import Probe
from envs import Augmentation, ImageDataset, sb3_env
from envs.errors import InputError
from envs.files import read_json


def check_names(config: TrainConfig) -> None:
    """Resolve every name of the configuration before any data is read.

    Raises:
        InputError: a name or list of options is unknown.
    """
    resolve_network(config.network, allow_import=True)
    Augmentation.parse(config.augmentation)
    for name, _ in config.phases():
        spec = find_algorithm(name)
        if config.precision != "fp32" and not spec.bf16:
            raise InputError(f"--precision {config.precision} is not offered for {name}; use fp32")
        if config.pretrained and (config.network not in PRETRAINED or not spec.in_schedules):
            remedy = f"use {', '.join(PRETRAINED)} and an algorithm of this project other than dqn"
            raise InputError(f"--pretrained is not offered for {name} with {config.network}; {remedy}")
    _reward(config.reward)


def try_out(settings: ResolvedConfig, dataset: ImageDataset) -> None:
    """Build everything once and save the classifier to memory, so that what cannot work is refused before a run begins.

    Raises:
        InputError: the configuration does not fit the data, or the network cannot be saved.
    """
    env = build_env(settings, dataset)
    model = build_algorithm(settings, env, dataset)
    if env.num_envs == 1 and any(isinstance(layer, _BatchNorm) for layer in model.policy.modules()):
        problem = f"--batch-size is 1, and network {settings.options.network!r} has BatchNorm"
        raise InputError(f"{problem}; expected at least 2 images at a time")
    check_size(settings.snapshots, len(classifier_bytes(extract_classifier(model.policy))))


def build_env(settings: ResolvedConfig, dataset: ImageDataset) -> VecEnv:
    """Return the training environment, ``batch_size`` images at a time, seeded."""
    config = settings.options
    return sb3_env(
        dataset,
        num_envs=settings.batch_size,
        tensors=settings.phases[0].spec.tensors,
        device=dataset.device,
        length=config.episode_length,
        reward=_reward(config.reward),
        augmentation=Augmentation.parse(config.augmentation),
        order="epoch",
        **{name: getattr(config, name) for name in ("seed", "stop_on_error", "label_noise")},
    )


def build_algorithm(
    settings: ResolvedConfig, env: VecEnv, dataset: ImageDataset, phase: int = 0
) -> ImageAlgorithm:
    """Return the algorithm of a phase with a new policy on ``env``."""
    chosen, attacks = settings.phases[phase], settings.attacks
    if attacks is not None and chosen.spec.adversarial == "observations":
        how: dict[str, Any] = {name: getattr(attacks, name) for name in ("share", "begins")}
        how |= {name: getattr(attacks.ascent, name) for name in ("eps", "steps", "step_size", "start")}
        env = AdversarialObservation(env, norm=attacks.ascent.norm.name, **how)
    mean, std = (tuple(values.tolist()) for values in dataset.channel_stats())
    std = tuple(value or 1.0 for value in std)  # a channel may be constant
    setup = Setup(
        **vars(chosen),
        config=settings.options,
        env=env,
        device=dataset.device,
        network={"network": settings.options.network, "mean": mean, "std": std},
        compile=settings.compile,
        attacks=attacks,
    )
    model = chosen.spec.build(setup)
    if isinstance(env, AdversarialObservation):
        env.watch(model)
    if settings.options.pretrained:
        network = model.policy.features_extractor.get_submodule("network")
        load_pretrained(network, settings.options.network, dataset.shape)
    return model


def build_probe(settings: ResolvedConfig, validation: ImageDataset) -> Probe | None:
    """Return what attacks the policy at every validation, or None.

    Raises:
        InputError: the radius is larger than the images allow.
    """
    if settings.probe_images == 0:
        return None
    steps = settings.options.probe_steps
    return Probe(validation, settings.probe_images, settings.norm, settings.eps, steps)


def _reward(reward: str) -> Any:
    """Return a reward's name, or the matrix in the JSON file of that name."""
    return read_json(Path(reward)) if reward.endswith(".json") else reward


def reward_fingerprint(reward: str) -> str | None:
    """Return the SHA-256 (hex) of the reward matrix in the JSON file ``reward``; None for a reward's name."""
    if not reward.endswith(".json"):
        return None
    return hashlib.sha256(json.dumps(_reward(reward)).encode()).hexdigest()
