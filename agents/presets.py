"""Settings by name: the paper's, strong baselines beside them, and small ones for a CPU.

The paper's (arXiv 2606.12251) follow the commands that its authors published; ``-long`` is their second RL command and
what goes with it. `SOURCES` says of every preset where its settings come from, and which of them are chosen here.
"""

import dataclasses
import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, product
from typing import Any, Literal

from rich.console import Console
from rich.table import Column, Table

from agents.adversarial_config import AdversarialConfig
from agents.config import ExplorationConfig, TrainConfig
from envs.errors import InputError

_PAPER_NETWORKS = ("cnn6", "cnn4")
_PAPER_DATASETS = ("cifar10", "cifar100", "imagenet100")
_PAPER_REGIMES = ("rl", "sl", "rl-adv", "sl-adv")
_ADAMW_WEIGHT_DECAY = 1e-2  # PyTorch's default
_ALWAYS = ("adversarial.method", "max_grad_norm")  # settings that are named even where they are the defaults


@dataclass(frozen=True)
class Source:
    """Where the settings of a preset come from."""

    origin: str = "chosen here"  #: the publication, or ``chosen here``
    #: the settings, such as ``adversarial.start``, that `origin` does not have and that are chosen
    #: here; None where all of them are
    chosen: tuple[str, ...] | None = None

    def __str__(self) -> str:
        """Return one line for tables."""
        return f"{self.origin}; chosen here: {', '.join(self.chosen)}" if self.chosen else self.origin


def _paper(network: str, dataset: str, regime: str, long: bool) -> tuple[TrainConfig, Source]:
    """Return one of the paper's regimes, ``rl``, ``sl``, ``rl-adv`` or ``sl-adv``, and its source.

    The README's RL command (batch 32, rate 1e-3, 100 passes) inherits attacks from pass 50 with weight .2: that is
    RL-adv. ``scripts/run_rl.sh`` (batch 256, rate 1e-4, 600 passes) has them from pass 400 with weight 1. The README's
    SL command attacks from pass 80 of 100 with weight 1. Plain RL and plain SL are these commands without attacks.
    """
    supervised, attacked = regime.startswith("sl"), regime.endswith("-adv")
    adversarial = AdversarialConfig()
    if attacked:
        start, weight = 400.0 if long else 80.0 if supervised else 50.0, 1.0 if supervised or long else 0.2
        adversarial = AdversarialConfig("fgsm", eps=0.01, norm="Linf", weight=weight, start=start)
    config = TrainConfig(
        algo="supervised" if supervised else "reinforce",
        dataset=dataset,
        network=network,
        image_size=32 if dataset == "imagenet100" else None,
        passes=600 if long else 100,
        batch_size=256 if long or supervised else 32,
        learning_rate=2e-4 if supervised else 1e-4 if long else 1e-3,
        lr_schedule="linear-floor" if supervised else "constant",
        weight_decay=_ADAMW_WEIGHT_DECAY,
        max_grad_norm=1.0 if supervised else 0.0,
        augmentation="paper",
        adversarial=adversarial,
        lr_end=0.1 if supervised else 0.02,
        lr_warmup=5.0 if supervised else 0.0,
        exploration=ExplorationConfig() if supervised else ExplorationConfig(0.1, "batch"),
    )
    chosen = {
        "network": network != "cnn6",
        "dataset": dataset != "cifar10" and (supervised or long),
        "passes": supervised and long,
        "lr_schedule": supervised and long,
        "adversarial.method": not attacked,
        "adversarial.start": attacked and supervised and long,
    }
    command = "README, SL command" if supervised else "scripts/run_rl.sh" if long else "README, RL command"
    origin = f"{command}, of github.com/iclr2026aerl/ICLR2026-AERL"
    return config, Source(origin, tuple(name for name, here in chosen.items() if here))


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
    none, pgd = AdversarialConfig(), AdversarialConfig("pgd", norm="Linf", eps=0.1, steps=5)
    rule = AdversarialConfig("fgsm", norm="Linf", eps=0.01, weight=0.2)
    trades = AdversarialConfig("trades", norm="Linf", eps=0.1, steps=5)
    regimes: dict[str, dict[str, AdversarialConfig]] = {
        "supervised": {"sl": none, "sl-adv": pgd, "sl-trades": trades},
        "reinforce": {"rl": none, "rl-adv": rule, "rl-pgd": pgd, "rl-trades": trades},
        "epg": {"epg": none, "epg-adv": pgd},
        "ppo": {"ppo": none, "ppo-adv": pgd},
    }
    found = {}
    for algo, attacks in regimes.items():
        for regime, attack in attacks.items():
            select: Literal["clean", "robust"] = "robust" if attack is pgd else "clean"
            found[f"{dataset}-{regime}"] = dataclasses.replace(
                base, algo=algo, adversarial=attack, select=select
            )
    return found


def _all() -> dict[str, tuple[TrainConfig, Source]]:
    found = {name: (config, Source()) for name, config in (_small("digits") | _small("mnist")).items()}
    for network, dataset, regime in product(_PAPER_NETWORKS, _PAPER_DATASETS, _PAPER_REGIMES):
        name = f"paper-{network}-{dataset}-{regime}"
        found[name] = _paper(network, dataset, regime, long=False)
        found[f"{name}-long"] = _paper(network, dataset, regime, long=True)
    strong = product((*_PAPER_NETWORKS, "resnet18"), ("cifar10", "cifar100"), _STRONG)
    for network, dataset, (method, short, algo) in strong:
        found[f"{method}-{network}-{dataset}-{short}"] = (_strong(network, dataset, algo, method), Source())
    return {
        name: (dataclasses.replace(config, preset=name), source) for name, (config, source) in found.items()
    }


_STRONG = (
    ("pgd", "sl", "supervised"),
    ("trades", "sl", "supervised"),
    ("pgd", "rl", "reinforce"),
    ("trades", "rl", "reinforce"),
    ("pgd", "epg", "epg"),
)
_ALL = _all()
PRESETS: dict[str, TrainConfig] = {name: config for name, (config, _) in _ALL.items()}
SOURCES: dict[str, Source] = {name: source for name, (_, source) in _ALL.items()}


def settings(name: str) -> dict[str, tuple[Any, bool]]:
    """Return what the preset called ``name`` sets: (value, whether it is published) by setting.

    Settings are those that differ from the defaults of `TrainConfig`, and the method of attack and the clipping in any
    case; those of a section have its name and a dot before theirs, such as ``adversarial.start``.

    Raises:
        InputError: no preset has that name.
    """
    defaults, chosen, found = _flat(TrainConfig()), SOURCES[name].chosen, {}
    for key, value in _flat(get_preset(name)).items():
        if key != "preset" and (value != defaults[key] or key in _ALWAYS):
            found[key] = (value, chosen is not None and key not in chosen)
    return found


def _flat(config: TrainConfig) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in config.to_dict().items():
        section = value.items() if isinstance(value, dict) else ()
        found |= {f"{key}.{name}": item for name, item in section} if section else {key: value}
    return found


def get_preset(name: str) -> TrainConfig:
    """Return the configuration called ``name``; change it with ``dataclasses.replace``.

    Raises:
        InputError: no preset has that name; the message lists the nearest.
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
    name = value_of("--preset", arguments)
    if name is None:
        return None
    config = get_preset(name)
    if value_of("--total-images", arguments) or value_of("--schedule", arguments):
        config = dataclasses.replace(config, passes=None)
    method = value_of("--adversarial", arguments)
    present = config.adversarial
    if method is None or method == present.method:
        return config
    ball = AdversarialConfig(present.method, eps=present.eps, norm=present.norm, start=present.start)
    return dataclasses.replace(config, adversarial=AdversarialConfig() if method == "none" else ball)


def value_of(option: str, arguments: Sequence[str]) -> str | None:
    """Return the value that ``arguments`` give ``option`` last, as ``--option value`` or ``--option=value``."""
    found = None
    for word, following in zip(arguments, [*arguments[1:], ""], strict=False):
        name, equals, value = word.partition("=")
        found = (value if equals else following) if name == option else found
    return found


def print_presets(console: Console | None = None) -> None:
    """Print every preset in a table."""
    table = Table(Column("name", no_wrap=True), "settings", "source")
    table.title = "presets: python -m agents.train --preset NAME"
    for _, names in groupby(PRESETS, lambda name: name.split("-")[0]):
        for name in names:
            table.add_row(name, describe(PRESETS[name]), str(SOURCES[name]))
        table.add_section()
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
