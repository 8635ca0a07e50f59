"""Studies by name: the TOML files of the folder ``studies``; a file of your own with the same keys does the same."""

import tomllib
from importlib.resources import files
from typing import Any

from envs.errors import unknown_name
from eval.study.plan.config import Grid, parse_grid

_NAMES = (
    *("smoke", "digits", "regimes", "exploration", "front", "mnist", "cifar10", "cifar10-long"),
    *("cifar10-networks", "cifar100", "stl10", "imagenet100"),
)
_FOLDER = files("eval.study.plan") / "studies"
PRESETS: dict[str, dict[str, Any]] = {
    name: tomllib.loads((_FOLDER / f"{name}.toml").read_text(encoding="utf-8")) for name in _NAMES
}


def preset(name: str) -> Grid:
    """Return the study called ``name``; an InputError tells the names where there is none."""
    if name not in PRESETS:
        raise unknown_name("study", name, [*PRESETS, "FILE.toml"])
    return parse_grid({"name": name} | PRESETS[name])
