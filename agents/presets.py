"""Settings by name: the paper's, strong baselines beside them, and small ones for a CPU.

The paper's (arXiv 2606.12251) come in the two forms that its authors published commands for; ``-long`` is the second.
Where only one form is known (SL-adv) or a value is not stated for a form, the choice made here is said in `_paper`.
"""

import dataclasses
import difflib
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from agents.adversarial_config import AdversarialConfig
from agents.config import TrainConfig
from envs.errors import InputError

_PAPER_NETWORKS = ("cnn6", "cnn4")
_PAPER_DATASETS = ("cifar10", "cifar100", "imagenet100")
_ADAMW_WEIGHT_DECAY = 1e-2  # PyTorch's default


def _paper(network: str, dataset: str, regime: str, long: bool) -> TrainConfig:
    """Return one of the paper's regimes: ``rl``, ``sl``, ``rl-adv`` or ``sl-adv``.

    Published: AdamW; learning rate 1e-3 at batch 32 for 100 passes, or 1e-4 at batch 256 for 600 passes with attacks
    from pass 400; FGSM of Linf .01 on the own loss, weight .2 (the default) or 1; SL-adv from pass 80 of 100 at 2e-4
    with 5 passes of warm-up, linear decay to 10 % and clipping at 1. Chosen here: RL-adv of the first form begins at
    pass 80, too; weight .2 goes with the first form and 1 with the second; SL-adv of the second form keeps its own rate
    and decay; learning rates without a stated decay are constant, and gradients without a stated clipping unclipped.
    """
    adversarial = AdversarialConfig()
    if regime.endswith("-adv"):
        start, weight = (400.0, 1.0) if long else (80.0, 0.2)
        adversarial = AdversarialConfig("fgsm", eps=0.01, norm="Linf", weight=weight, start=start)
    config = TrainConfig(
        algo="supervised" if regime.startswith("sl") else "reinforce",
        dataset=dataset,
        network=network,
        passes=600 if long else 100,
        batch_size=256 if long else 32,
        learning_rate=1e-4 if long else 1e-3,
        lr_schedule="constant",
        weight_decay=_ADAMW_WEIGHT_DECAY,
        max_grad_norm=0.0,
        augmentation="paper",
        adversarial=adversarial,
    )
    if regime == "sl-adv":
        decay = {"lr_schedule": "linear", "lr_end": 0.1, "lr_warmup": 5.0}
        config = dataclasses.replace(config, learning_rate=2e-4, max_grad_norm=1.0, **decay)  # type: ignore[arg-type]
    return config


def _strong(network: str, dataset: str, algo: str, method: str) -> TrainConfig:
    """Return PGD-AT (Madry et al. 2018; 10 steps) or TRADES (Zhang et al. 2019), 30 passes, kept by robustness."""
    return TrainConfig(
        algo=algo,
        dataset=dataset,
        network=network,
        passes=30,
        batch_size=128,
        learning_rate=1e-3,
        lr_schedule="cosine",
        weight_decay=5e-4,
        augmentation="standard",
        select="robust",
        adversarial=AdversarialConfig(method, steps=10),  # type: ignore[arg-type]
    )


def _small(dataset: str) -> dict[str, TrainConfig]:
    """Return the regimes at a size for one or two CPU cores: seconds on digits, minutes on MNIST."""
    base = TrainConfig(dataset=dataset, network="small", passes=40 if dataset == "digits" else 5)
    pgd = AdversarialConfig("pgd", norm="Linf", eps=0.1, steps=5)
    rule = AdversarialConfig("fgsm", norm="Linf", eps=0.01, weight=0.2)
    trades = AdversarialConfig("trades", norm="Linf", eps=0.1, steps=5)
    regimes: dict[str, tuple[str, AdversarialConfig]] = {
        "sl": ("supervised", AdversarialConfig()),
        "sl-adv": ("supervised", pgd),
        "sl-trades": ("supervised", trades),
        "rl": ("reinforce", AdversarialConfig()),
        "rl-adv": ("reinforce", rule),
        "rl-pgd": ("reinforce", pgd),
        "epg": ("epg", AdversarialConfig()),
        "epg-adv": ("epg", pgd),
        "ppo": ("ppo", AdversarialConfig()),
        "ppo-adv": ("ppo", pgd),
    }
    return {
        f"{dataset}-{regime}": dataclasses.replace(
            base, algo=algo, adversarial=adversarial, select="robust" if adversarial is pgd else "clean"
        )
        for regime, (algo, adversarial) in regimes.items()
    }


def _all() -> dict[str, TrainConfig]:
    found = _small("digits") | _small("mnist")
    for network in _PAPER_NETWORKS:
        for dataset in _PAPER_DATASETS:
            for regime in ("rl", "sl", "rl-adv", "sl-adv"):
                name = f"paper-{network}-{dataset}-{regime}"
                found[name] = _paper(network, dataset, regime, long=False)
                found[f"{name}-long"] = _paper(network, dataset, regime, long=True)
    for network in (*_PAPER_NETWORKS, "resnet18"):
        for dataset in ("cifar10", "cifar100"):
            found[f"pgd-{network}-{dataset}-sl"] = _strong(network, dataset, "supervised", "pgd")
            found[f"trades-{network}-{dataset}-sl"] = _strong(network, dataset, "supervised", "trades")
            found[f"pgd-{network}-{dataset}-rl"] = _strong(network, dataset, "reinforce", "pgd")
            found[f"pgd-{network}-{dataset}-epg"] = _strong(network, dataset, "epg", "pgd")
    return {name: dataclasses.replace(config, preset=name) for name, config in found.items()}


PRESETS: dict[str, TrainConfig] = _all()


def get_preset(name: str) -> TrainConfig:
    """Return the configuration called ``name``; change it with ``dataclasses.replace``.

    Raises:
        InputError: no preset has that name; the nearest are told.
    """
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=3, cutoff=0.0)
        raise InputError(f"unknown preset {name!r}; the nearest are {', '.join(near)}; see --list-presets")
    return PRESETS[name]


def preset_from(arguments: Sequence[str]) -> TrainConfig | None:
    """Return the preset that command-line ``arguments`` name, ready for the others to override; None: no preset.

    Where they choose another method of adversarial training, only the preset's ball and start are kept: steps and
    weights belong to a method. ``--adversarial none`` keeps nothing, and another length replaces the preset's passes.

    Raises:
        InputError: no preset has that name.
    """
    name = _value_of("--preset", arguments)
    if name is None:
        return None
    config = get_preset(name)
    if _value_of("--total-images", arguments) or _value_of("--schedule", arguments):
        config = dataclasses.replace(config, passes=None)
    method = _value_of("--adversarial", arguments)
    present = config.adversarial
    if method is None or method == present.method:
        return config
    ball = AdversarialConfig(present.method, eps=present.eps, norm=present.norm, start=present.start)
    return dataclasses.replace(config, adversarial=AdversarialConfig() if method == "none" else ball)


def _value_of(option: str, arguments: Sequence[str]) -> str | None:
    """Return the value that ``arguments`` give ``option`` last, as ``--option value`` or ``--option=value``."""
    found = None
    for word, following in zip(arguments, [*arguments[1:], ""], strict=False):
        if word == option:
            found = following
        elif word.startswith(f"{option}="):
            found = word.partition("=")[2]
    return found


def print_presets(console: Console | None = None) -> None:
    """Print every preset in a table."""
    table = Table(title="presets: python -m agents.train --preset NAME")
    table.add_column("name", no_wrap=True)
    table.add_column("settings")
    group = ""
    for name, config in PRESETS.items():
        if name.split("-")[0] != group and group:
            table.add_section()
        group = name.split("-")[0]
        table.add_row(name, describe(config))
    (console or Console()).print(table)


def describe(config: TrainConfig) -> str:
    """Return the main settings of ``config`` in one line."""
    rate = "" if config.learning_rate is None else f", rate {config.learning_rate:g}"
    length = "" if config.passes is None else f", {config.passes:g} passes"
    text = f"{config.algo}, {config.network}{length}, batch {config.images_per_step()}{rate}"
    adversarial = config.adversarial
    if adversarial.method == "none":
        return text
    radius = "at the usual radius" if adversarial.eps is None else f"{adversarial.eps:g}"
    text += f"; {adversarial.method} {adversarial.norm or 'Linf'} {radius}"
    if adversarial.rule != "replace":
        text += f", weight {adversarial.full_weight():g}"
    return text + (f", from pass {adversarial.start:g}" if adversarial.start else "")
