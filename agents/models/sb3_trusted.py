"""Reading a Stable-Baselines3 zip as SB3 itself does, which executes the code in it: for files of trusted origin alone.

Needed where weights and descriptions do not tell how the policy is built: features extractors and policy classes of
users' own. `agents.models.sb3_zip` reads everything else without executing anything.
"""

from pathlib import Path
from typing import Any

import torch
from stable_baselines3.common.save_util import load_from_zip_file
from torch import Tensor

from agents.models.classifier import Classifier, extract_classifier
from envs.errors import InputError

_UNUSED = (
    "learning_rate",
    "lr_schedule",
    "clip_range",
    "clip_range_vf",
    "exploration_schedule",
    "replay_buffer_class",
)
_PROBES = 16


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
    classifier = extract_classifier(policy).eval()
    _check_decisions(policy, classifier, path)
    return classifier.to(device)


def _build_policy(data: dict[str, Any]) -> Any:
    options = dict(data["policy_kwargs"])
    if data.get("use_sde"):
        options["use_sde"] = True
    return data["policy_class"](data["observation_space"], data["action_space"], lambda _: 0.0, **options)


@torch.no_grad()
def _check_decisions(policy: Any, classifier: Classifier, path: str | Path) -> None:
    """Refuse a policy whose own code decides otherwise than its features, hidden layers and head in a row."""
    shape = (_PROBES, *policy.observation_space.shape)
    if policy.observation_space.dtype == "uint8":
        images = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
        logits = classifier(images.float() / 255)
    else:
        images = torch.rand(shape, generator=torch.Generator().manual_seed(0))
        logits = classifier(images)
    actions: Tensor = policy._predict(images, deterministic=True)
    if not torch.equal(logits.argmax(1), actions.reshape(-1)):
        raise InputError(
            f"the policy in {path} decides otherwise than its network does; name a package.module:factory of an "
            "nn.Module from images in [0, 1] to logits instead"
        )
