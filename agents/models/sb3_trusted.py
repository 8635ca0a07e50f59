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
    *("learning_rate", "lr_schedule", "clip_range", "clip_range_vf"),
    *("exploration_schedule", "replay_buffer_class"),
)


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
