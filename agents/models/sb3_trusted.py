"""Reads a Stable-Baselines3 zip as SB3 itself does, which executes the code in it: for trusted files alone.

Needed where weights and descriptions do not determine the policy: features extractors and policy classes of
users' own. `agents.models.sb3_zip` reads everything else without executing anything.
"""

from pathlib import Path
from typing import Any

import torch
from stable_baselines3.common.save_util import load_from_zip_file

from agents.models.classifier import Classifier
from agents.models.extraction import extract_classifier
from envs.errors import InputError

_UNUSED = (
    "learning_rate",
    "lr_schedule",
    "clip_range",
    "clip_range_vf",
    "exploration_schedule",
    "replay_buffer_class",
)


def load_trusted_zip(path: str | Path, device: str | torch.device = "cpu") -> Classifier:
    """Return the classifier inside the policy saved at ``path``, in eval mode; executes the code in the file.

    Args:
        path: a zip saved by an SB3 algorithm (PPO, A2C, DQN).
        device: where to put it.

    Raises:
        InputError: SB3 cannot load the file, or its policy is not a classifier of images followed by an argmax.
    """
    try:
        data, parameters, _ = load_from_zip_file(path, device="cpu", custom_objects=dict.fromkeys(_UNUSED))
        policy = _build_policy(data or {})
        policy.load_state_dict(parameters["policy"])
        policy.set_training_mode(False)
    except Exception as error:  # the code in the file may raise anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise InputError(f"cannot load {path} as Stable-Baselines3 does ({reason}); save it again") from error
    try:
        return extract_classifier(policy).eval().to(device)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _build_policy(data: dict[str, Any]) -> Any:
    options = dict(data["policy_kwargs"])
    if data.get("use_sde"):
        options["use_sde"] = True
    return data["policy_class"](data["observation_space"], data["action_space"], lambda _: 0.0, **options)
