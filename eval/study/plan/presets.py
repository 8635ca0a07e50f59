"""Studies by name; a file with the same keys does the same."""

from typing import Any

from envs.errors import unknown_name
from eval.study.plan.config import Grid, parse_grid

_RULE = {"method": "fgsm", "eps": 0.01, "norm": "Linf", "weight": 0.2}  # the paper's adversarial training
_PGD = {"method": "pgd", "eps": 0.1, "norm": "Linf", "steps": 5}


def _regimes(*names: str) -> dict[str, Any]:
    """Return the regimes called ``names``, of all that small studies have."""
    strong = {"adversarial": _PGD, "select": "robust"}
    found: dict[str, dict[str, Any]] = {
        "SL": {"algo": "supervised"},
        "SL-adv": {"algo": "supervised", "adversarial": _RULE},
        "RL": {"algo": "reinforce"},
        "RL-adv": {"algo": "reinforce", "adversarial": _RULE},
        "EPG": {"algo": "epg"},
        "SL-PGD": {"algo": "supervised", **strong},
        "RL-PGD": {"algo": "reinforce", **strong},
    }
    return {name: found[name] for name in names}


_ATTACKS = ["pgd", "pgd-cleverhans", "pgd-paper", "pgd-mifpe", "fast", "square"]

PRESETS: dict[str, dict[str, Any]] = {
    "smoke": {
        "datasets": ["digits"],
        "networks": ["small"],
        "regimes": _regimes("SL", "RL"),
        "threats": ["L2 0.5"],
        "attacks": ["pgd", "pgd-cleverhans", "fast"],
        "images": 100,
        "mechanism": {"images": 50, "steps": 20, "resolution": 21},
        "audit": {"mode": "none"},
    },
    "digits": {
        "datasets": ["digits"],
        "networks": ["small"],
        "regimes": _regimes("SL", "SL-adv", "RL", "RL-adv", "EPG", "SL-PGD", "RL-PGD"),
        "seeds": [0, 1, 2],
        "threats": ["L2 0.5", "Linf 0.1"],
        "attacks": _ATTACKS,
        "attack": {"square": {"queries": 1000}},
        "images": 200,
        "train": {"passes": 50.0},
    },
    "mnist": {
        "datasets": ["mnist"],
        "networks": ["strided"],
        "regimes": _regimes("SL", "SL-adv", "RL", "RL-adv"),
        "seeds": [0, 1, 2],
        "threats": ["L2 1.5", "Linf 0.1"],
        "attacks": _ATTACKS,
        "attack": {"square": {"queries": 1000}},
        "images": 200,
        "train": {"passes": 2.0, "batch_size": 128, "learning_rate": 2e-3, "eval_every": 27_000},
    },
    "cifar10": {
        "datasets": ["cifar10"],
        "networks": ["cnn6"],
        "regimes": {
            name: {"preset": f"paper-{{network}}-{{dataset}}-{name.lower()}"}
            for name in ("SL", "SL-adv", "RL", "RL-adv")
        },
        "threats": ["L2 1.0", "Linf 8/255"],
        "attacks": ["pgd", "pgd-cleverhans", "pgd-paper", "pgd-mifpe", "autoattack", "square"],
        "images": 1000,
        "train": {"precision": "bf16"},
        "mechanism": {"images": 256, "resolution": 101},
        "audit": {"mode": "full", "images": 200},
    },
}


def preset(name: str) -> Grid:
    """Return the study called ``name``.

    Raises:
        InputError: there is none; the names are told.
    """
    if name not in PRESETS:
        raise unknown_name("study", name, [*PRESETS, "FILE.toml"])
    return parse_grid({"name": name} | PRESETS[name])
