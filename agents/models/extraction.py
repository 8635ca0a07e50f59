"""Extracts the classifier from a Stable-Baselines3 policy and compares it with the policy's own answers.

A policy in a zip is read as Stable-Baselines3 itself does. That executes the code in it, and is
for trusted files alone: needed where weights and descriptions do not determine the policy, as with features extractors
and policy classes of users' own. `agents.models.sb3_zip` reads everything else without executing anything.
"""

import copy
from pathlib import Path
from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.torch_layers import NatureCNN
from torch import nn

from agents.models.classifier import Classifier
from agents.models.classifier_spec import mean_of_quantiles, pixel_range
from agents.models.image_network import ImageNetwork, network_name
from agents.models.layers import in_mode
from envs.errors import InputError, cause

_UNUSED = (
    *("learning_rate", "lr_schedule", "clip_range", "clip_range_vf"),
    *("exploration_schedule", "replay_buffer_class"),
)
_PROBES = 8
_TOLERANCE = 1e-2  # of the spread of the logits: far above what TF32 or another memory layout changes


def extract_classifier(policy: BasePolicy) -> Classifier:
    """Return the classifier inside an SB3 actor-critic, DQN or QR-DQN policy over images.

    They share their modules; but for the head of QR-DQN, which is the present mean of its quantiles.

    It answers an image in [0, 1] as the policy answers the same image in its own range: uint8, or floats in [0, 1],
    [-1, 1] or [0, 255]. Both are compared on random images first. The modules' modes are those of the policy: call
    ``.eval()`` before using it outside of training.

    Raises:
        InputError: the policy is of another kind, not one from images to labels, or does more than its network.
    """
    classifier = assemble_classifier(policy)
    _check_answers(policy, classifier)
    return classifier


def assemble_classifier(policy: BasePolicy) -> Classifier:
    """Return what `extract_classifier` returns, without the comparison."""
    parts: Any = policy  # SB3's base class does not declare what follows
    if isinstance(getattr(getattr(parts, "q_net", None), "q_net", None), nn.Sequential):
        extractor, layers = parts.q_net.features_extractor, list(parts.q_net.q_net)
    elif isinstance(getattr(getattr(parts, "quantile_net", None), "quantile_net", None), nn.Sequential):
        extractor, layers = parts.quantile_net.features_extractor, list(parts.quantile_net.quantile_net)
        # Logits are Q values, the means of the quantiles (Dabney et al. 2018).
        quantiles, actions = layers.pop(), int(parts.action_space.n)
        mean = nn.utils.skip_init(nn.Linear, quantiles.in_features, actions, device=quantiles.weight.device)
        mean.load_state_dict(mean_of_quantiles(quantiles.state_dict(), actions))
        layers.append(mean)
    elif hasattr(parts, "action_net") and hasattr(parts, "mlp_extractor"):
        extractor, layers = parts.pi_features_extractor, [*parts.mlp_extractor.policy_net, parts.action_net]
    else:
        kind = type(policy).__name__
        raise InputError(f"a {kind} has no classifier inside; expected an actor-critic, DQN or QR-DQN policy")
    space = policy.observation_space
    discrete = isinstance(policy.action_space, spaces.Discrete)
    if not isinstance(space, spaces.Box) or len(space.shape) != 3 or not discrete:
        expected = "expected a Box of images (C, H, W) and Discrete actions"
        raise InputError(f"a policy from {space} to {policy.action_space} is no image classifier; {expected}")
    kind = str(space.dtype) if policy.normalize_images else "undivided"
    low, high = pixel_range(kind, float(space.low.min()), float(space.high.max()))
    head = layers.pop()
    body = _as_image_network(extractor, space, policy.device, low, high - low)
    classifier = Classifier(body, head, nn.Sequential(*layers))
    classifier.training = classifier.hidden.training = policy.training
    return classifier


def _as_image_network(
    extractor: nn.Module, space: spaces.Box, device: torch.device, low: float, span: float
) -> ImageNetwork:
    """Return the features extractor behind a map from [0, 1] to ``low + span * x``; itself where that is nothing."""
    if type(extractor) is ImageNetwork:
        if (low, span) == (0, 1):
            return extractor
        body = copy.copy(extractor)  # shares the layers, but not mean and std, which take up the map
        body._buffers = dict(extractor._buffers)
        body.mean, body.std = (extractor.mean - low) / span, extractor.std / span
        return body
    name = "nature" if type(extractor) is NatureCNN else network_name(type(extractor))
    mode, channels = extractor.training, (space.shape or (0,))[0]
    body = ImageNetwork(space, lambda shape: extractor, [-low / span] * channels, [1 / span] * channels, name)
    return body.train(mode).to(device)


@torch.no_grad()
def _check_answers(policy: Any, classifier: Classifier) -> None:
    """Refuse a policy that answers otherwise than its features extractor, hidden layers and head in a row."""
    space = policy.observation_space
    images = torch.randint(0, 256, (_PROBES, *space.shape), generator=torch.Generator().manual_seed(0)) / 255
    low, high = float(space.low.min()), float(space.high.max())
    shown = (images * (high - low) + low).to(policy.device)
    observations = shown.round().to(torch.uint8) if space.dtype == "uint8" else shown
    try:
        with in_mode(False, policy, classifier):
            found = classifier(images.to(policy.device)).log_softmax(1)
            if hasattr(policy, "q_net"):
                own = policy.q_net(observations)
            elif hasattr(policy, "quantile_net"):
                own = policy.quantile_net(observations).mean(1)
            else:
                own = policy.get_distribution(observations).distribution.logits
            actions = policy._predict(observations, deterministic=True).reshape(-1, 1)
    except (RuntimeError, TypeError) as error:  # a policy of other inputs, such as recurrent ones
        kind = type(policy).__name__
        raise InputError(f"a {kind} is no classifier of single images ({cause(error)})") from error
    allowed = _TOLERANCE * (found.max() - found.min())
    away, worse = (found - own.log_softmax(1)).abs(), found.amax(1) - found.gather(1, actions)[:, 0]
    if away.max() > allowed or worse.max() > allowed:
        remedy = "name a package.module:factory of an nn.Module from images in [0, 1] to logits instead"
        raise InputError(f"a {type(policy).__name__} decides otherwise than its network does; {remedy}")


def load_trusted_zip(path: str | Path, device: str | torch.device = "cpu") -> Classifier:
    """Return the classifier inside the policy that an SB3 algorithm saved at ``path``, in eval mode, on ``device``.

    Executes the code in the file.

    Raises:
        InputError: SB3 cannot load the file, or its policy is not a classifier of images followed by an argmax.
    """
    try:
        data, parameters, _ = load_from_zip_file(path, device="cpu", custom_objects=dict.fromkeys(_UNUSED))
        saved: dict[str, Any] = data or {}
        options = dict(saved["policy_kwargs"]) | ({"use_sde": True} if saved.get("use_sde") else {})
        spaces = saved["observation_space"], saved["action_space"]
        policy = saved["policy_class"](*spaces, lambda _: 0.0, **options)
        policy.load_state_dict(parameters["policy"])
        policy.set_training_mode(False)
    except Exception as error:  # the code in the file may raise anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise InputError(f"cannot load {path} as Stable-Baselines3 does ({reason}); save it again") from error
    try:
        return extract_classifier(policy).eval().to(device)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
