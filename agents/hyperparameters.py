"""Hyperparameter files of RL Baselines3 Zoo (``rl_zoo3``): environment -> hyperparameters, in YAML."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agents.config import TrainConfig
from agents.presets import preset_from, value_of
from envs.errors import InputError, unknown_name

ENTRIES = ("ImageBandit-v0", "ImageEpisode-v0", "envs:ImageBandit-v0", "envs:ImageEpisode-v0", "default")
_PPO = ["gamma", "gae_lambda", "clip_range", "ent_coef", "vf_coef", "target_kl", "normalize_advantage"]
_DQN = ["buffer_size", "learning_starts", "target_update_interval", "exploration_fraction"]
OPTIONS = {  # where each hyperparameter goes
    "n_timesteps": "total_images",
    **{name: name for name in ("learning_rate", "batch_size", "max_grad_norm")},
    "n_epochs": "ppo.epochs",
    **{name: f"ppo.{name}" for name in _PPO},
    **{name: f"dqn.{name}" for name in _DQN},
    "exploration_final_eps": "exploration.eps",
}
_WHOLE = ("n_timesteps", "n_steps", "n_envs", "batch_size", "n_epochs", *_DQN[:3])
_STEPS = {"ppo": 2048, "a2c": 5}  # n_steps where a file leaves it out, as in Stable-Baselines3


def start_from(arguments: Sequence[str]) -> TrainConfig | None:
    """Return what ``--preset`` and ``--hyperparameters`` among the arguments set; None where neither is given.

    One line on standard error says where each hyperparameter went, and which have no counterpart here.

    Raises:
        InputError: the preset, the file or its entry does not exist, or a value cannot be read.
    """
    config, name = preset_from(arguments), value_of("--hyperparameters", arguments)
    if name is None:
        return config
    entry, values = read_hyperparameters(name)
    if value_of("--passes", arguments) or value_of("--schedule", arguments):
        values.pop("n_timesteps", None)  # the command line chooses another length
    config = config or TrainConfig()
    config, used, unused = apply(config, values, value_of("--algo", arguments) or config.algo, name)
    line = f"{name}, {entry}: {', '.join(f'{key} = {value}' for key, value in used.items())}"
    print(line + (f"; no counterpart: {', '.join(unused)}" if unused else ""), file=sys.stderr)
    return config


def read_hyperparameters(name: str) -> tuple[str, dict[str, Any]]:
    """Return an entry of a file and its hyperparameters; ``FILE.yml`` or ``FILE.yml:ENTRY`` name it.

    Raises:
        InputError: there is no such file or entry, or it is not in rl_zoo3's format.
    """
    try:
        import yaml
    except ImportError:
        raise InputError('--hyperparameters needs PyYAML; pip install "labelbandit[contrib]"') from None
    path, suffix, wanted = name.partition(".yml:")
    path += ".yml" if suffix else ""
    try:
        entries = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path} is not YAML: {error}") from None
    if not isinstance(entries, dict):
        expected = "expected an environment, such as default, with hyperparameters"
        raise InputError(f"{path} has no entries; {expected}")
    found = wanted or next((entry for entry in ENTRIES if entry in entries), "")
    if wanted and found not in entries:
        raise unknown_name(f"entry of {path}", found, list(map(str, entries)))
    if found not in entries:
        remedy = f"name one, as in {path}:{next(iter(entries), 'atari')}"
        raise InputError(f"{path} has no entry {ENTRIES[0]}, {ENTRIES[1]} or default; {remedy}")
    if not isinstance(entries[found], dict):
        raise InputError(f"{path} has {found}: {entries[found]!r}; expected hyperparameters with values")
    return found, {str(key): value for key, value in entries[found].items()}


def apply(
    config: TrainConfig, values: dict[str, Any], algo: str, name: str = "hyperparameters"
) -> tuple[TrainConfig, dict[str, Any], list[str]]:
    """Return ``config`` with hyperparameters set, the options set, and the hyperparameters that have none.

    ``n_steps * n_envs`` is PPO's rollout and A2C's batch. A number as the learning rate is kept constant,
    ``lin_0.001`` falls linearly to 0, as in rl_zoo3. Raises InputError: a value is not a number.
    """
    options: dict[str, Any] = {}
    rest = dict(values)
    if algo in _STEPS and ("n_steps" in rest or "n_envs" in rest):
        steps, envs = rest.pop("n_steps", _STEPS[algo]), rest.pop("n_envs", 1)
        images = _read(name, "n_steps", steps) * _read(name, "n_envs", envs)
        options["ppo.rollout" if algo == "ppo" else "batch_size"] = images
    rate = rest.get("learning_rate")
    if rate is not None:
        falls = isinstance(rate, str) and rate.startswith("lin_")
        rest["learning_rate"] = rate[4:] if falls else rate
        options |= {"lr_schedule": "linear", "lr_end": 0.0} if falls else {"lr_schedule": "constant"}
    if isinstance(rest.get("clip_range"), str):
        rest["clip_range (falling)"] = rest.pop("clip_range")
    for key in [key for key in rest if key in OPTIONS]:
        options[OPTIONS[key]] = _read(name, key, rest.pop(key))
    if "total_images" in options:
        config = dataclasses.replace(config, passes=None)
    for option, value in options.items():
        section, _, field = option.rpartition(".")
        changes: dict[str, Any] = {field: value}
        if section:
            changes = {section: dataclasses.replace(getattr(config, section), **changes)}
        config = dataclasses.replace(config, **changes)
    return config, options, list(rest)


def _read(name: str, key: str, value: Any) -> Any:
    """Return a value as its option takes it; YAML reads 1e6 as a text, and ``!!float 1e6`` as 1000000.0."""
    expected = "true or false" if key == "normalize_advantage" else "a number"
    if (key == "target_kl" and value is None) or (isinstance(value, bool) and expected == "true or false"):
        return value
    try:
        if isinstance(value, bool) or expected != "a number":
            raise ValueError
        return int(float(value)) if key in _WHOLE else float(value)
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"{name} has {key}: {value!r}; expected {expected}") from None
