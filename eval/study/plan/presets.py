"""Studies by name; a file with the same keys does the same."""

from typing import Any

from envs.errors import unknown_name
from eval.study.plan.config import Grid, parse_grid

_RULE = {"method": "fgsm", "eps": 0.01, "norm": "Linf", "weight": 0.2}  # the paper's adversarial training
_PGD = {"method": "pgd", "eps": 0.1, "norm": "Linf", "steps": 5}
_TRADES = {"method": "trades", "eps": 0.1, "norm": "Linf", "steps": 5}
_ATTACKS = ["pgd", "pgd-cleverhans", "pgd-paper", "pgd-mifpe", "fast", "square"]
_RADII = (0.02, 0.05, 0.1, 0.2)
_WEIGHTS = (0.2, 1.0, 5.0)


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
        "SL-TRADES": {"algo": "supervised", "adversarial": _TRADES, "select": "robust"},
        "RL-TRADES": {"algo": "reinforce", "adversarial": _TRADES, "select": "robust"},
    }
    return {name: found[name] for name in names}


def _paper(*names: str, network: str = "{network}", dataset: str = "{dataset}") -> dict[str, Any]:
    """Return the paper's regimes, such as ``RL-adv`` or ``RL-adv-long``, from the training presets of a network."""
    return {name: {"preset": f"paper-{network}-{dataset}-{name.lower()}"} for name in names}


def _front() -> dict[str, Any]:
    """Return regimes of growing strength: radii for PGD's training, weights for the paper's rule and for TRADES."""
    found = dict(_regimes("SL", "RL"))
    for name, algo in (("SL", "supervised"), ("RL", "reinforce")):
        for radius in _RADII:
            strong = {"adversarial": _PGD | {"eps": radius}, "select": "robust"}
            found[f"{name}-PGD-{radius:g}"] = {"algo": algo, **strong}
        for weight in _WEIGHTS:
            found[f"{name}-adv-w{weight:g}"] = {
                "algo": algo,
                "adversarial": _RULE | {"eps": 0.1, "weight": weight},
            }
            trades = {"adversarial": _TRADES | {"weight": weight}, "select": "robust"}
            found[f"{name}-TRADES-w{weight:g}"] = {"algo": algo, **trades}
    return found


def _exploration() -> dict[str, Any]:
    """Return RL at exploration rates from 0 to .5, and with entropy bonuses at the paper's rate."""
    rates = {f"RL-eps{rate:g}": {"exploration": {"eps": rate}} for rate in (0.0, 0.05, 0.1, 0.2, 0.35, 0.5)}
    bonuses = {f"RL-entropy{bonus:g}": {"ppo": {"ent_coef": bonus}} for bonus in (0.001, 0.01, 0.1)}
    return _regimes("SL") | {
        name: {"algo": "reinforce", **options} for name, options in (rates | bonuses).items()
    }


_SMALL: dict[str, Any] = {  # what the studies of digits share
    "datasets": ["digits"],
    "networks": ["small"],
    "seeds": [0, 1, 2],
    "threats": ["L2 0.5", "Linf 0.1"],
    "attacks": _ATTACKS,
    "attack": {"square": {"queries": 1000}},
    "images": 200,
    "train": {"passes": 50.0},
}
_LARGE: dict[str, Any] = {  # what the studies at the paper's size share
    "networks": ["cnn6"],
    "regimes": _paper("SL", "SL-adv", "RL", "RL-adv"),
    "threats": ["L2 1.0", "Linf 8/255"],
    "attacks": ["pgd", "pgd-cleverhans", "pgd-paper", "pgd-mifpe", "autoattack", "square"],
    "images": 1000,
    "train": {"precision": "bf16"},
    "mechanism": {"images": 256, "resolution": 101},
    "audit": {"mode": "full", "images": 200},
}

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
    "digits": _SMALL | {"regimes": _regimes("SL", "SL-adv", "RL", "RL-adv", "EPG", "SL-PGD", "RL-PGD")},
    "regimes": _SMALL
    | {
        "regimes": {
            "SL": {"algo": "supervised", "passes": 10.0},
            "SL-long": {"algo": "supervised"},
            "hybrid": {"schedule": "supervised:10,reinforce:40"},
        }
        | _regimes("RL", "SL-TRADES", "RL-TRADES"),
    },
    "exploration": _SMALL | {"regimes": _exploration()},
    "front": _SMALL
    | {"regimes": _front(), "threats": ["Linf 0.1"], "transfer": {"crafts": []}, "audit": {"mode": "none"}},
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
    "cifar10": _LARGE | {"datasets": ["cifar10"]},
    "cifar10-long": _LARGE
    | {
        "datasets": ["cifar10"],
        "regimes": _paper("SL", "SL-long", "SL-adv-long", "RL-long", "RL-adv-long")
        | {
            "hybrid": {
                "preset": "paper-{network}-{dataset}-rl-long",
                "schedule": "supervised:30,reinforce:570",
            }
        },
    },
    "cifar10-networks": _LARGE
    | {
        "datasets": ["cifar10"],
        "networks": ["cnn4", "resnet18", "resnet50", "densenet121", "wrn16-4", "vit"],
        "regimes": _paper("SL", "SL-adv", "RL", "RL-adv", network="cnn6"),
    },
    "cifar100": _LARGE | {"datasets": ["cifar100"], "seeds": [0, 1, 2]},
    "stl10": _LARGE
    | {
        "datasets": ["stl10"],
        "seeds": [0, 1, 2],
        "regimes": _paper("SL", "SL-adv", "RL", "RL-adv", dataset="cifar10"),
    },
    "imagenet100": _LARGE | {"datasets": ["imagenet100"], "seeds": [0, 1, 2]},
}


def preset(name: str) -> Grid:
    """Return the study called ``name``.

    Raises:
        InputError: there is none; the names are told.
    """
    if name not in PRESETS:
        raise unknown_name("study", name, [*PRESETS, "FILE.toml"])
    return parse_grid({"name": name} | PRESETS[name])
