"""What a study compares: data sets, networks, regimes and seeds, and what is done to every trained model."""

import dataclasses
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import msgspec

from agents.config import TrainConfig
from agents.presets import PRESETS as TRAINING_PRESETS
from agents.presets import get_preset
from envs.errors import InputError, unknown_name
from eval.attack.registry import attack_names, resolve_options
from eval.core.records import Count
from eval.core.threats import Threat, parse_eps, parse_norm
from eval.robustness.suite import PRESETS as BATTERY
from eval.transfer.matrix import CRAFTS

# Names that a study may list beside those of `eval.robustness.suite`; options as the attack's own.
ATTACKS: dict[str, tuple[str, dict[str, Any]]] = BATTERY | {"autoattack-plus": BATTERY["plus"]}
AUDITS = ("none", "quick", "full")
AtLeastOne = Annotated[int, msgspec.Meta(ge=1)]
AtLeastTwo = Annotated[int, msgspec.Meta(ge=2)]
# Set by the study itself, or of no influence on the weights that training ends with.
_NOT_TRAINING = (
    *("run_dir", "resume", "list_presets", "preset", "hyperparameters"),
    *("device", "data_root", "progress", "attack"),
)
_OWN = (*_NOT_TRAINING, "dataset", "network", "seed", "image_size")
_LENGTHS = ("passes", "total_images", "schedule")
_PICTURES = ("pictures_every", "snapshots")  # theirs to set, and of no influence either
_LISTS = ("datasets", "networks", "seeds", "threats", "attacks")
_PLANS = ("transfer", "mechanism", "trajectory", "audit")
# Studies by name: the TOML files of the folder ``studies``; a file of your own with the same keys does the same.
_STUDIES = (
    *("smoke", "digits", "regimes", "exploration", "front", "mnist", "cifar10", "cifar10-long"),
    *("cifar10-networks", "cifar100", "stl10", "imagenet100"),
)
_FOLDER = files("eval.study.plan") / "studies"
PRESETS: dict[str, dict[str, Any]] = {
    name: tomllib.loads((_FOLDER / f"{name}.toml").read_text(encoding="utf-8")) for name in _STUDIES
}
T = TypeVar("T")


@dataclass(frozen=True)
class Attack:
    """An attack by its ``name`` in tables: a function of `attacks`, and the options that differ from its defaults."""

    name: str
    attack: str
    options: dict[str, Any]

    @property
    def cleverhans(self) -> bool:
        """Whether it follows the protocol of cleverhans."""
        return self.options.get("protocol") == "cleverhans"


@dataclass(frozen=True)
class TransferPlan:
    """Images made on every model by PGD of so many ``steps`` and shown to all others.

    ``crafts``: ways of making them, see `eval.transfer.matrix.CRAFTS`; empty: no transfer.
    """

    crafts: tuple[str, ...] = ("paper", "strong")
    steps: AtLeastOne = 100


@dataclass(frozen=True)
class MechanismPlan:
    """Indicators of `eval.mechanism`, under the first L2 threat model of the study (else its first).

    ``images``: test images, 0 for no indicators; ``steps`` of PGD; ``resolution``: points per axis of the landscapes.
    """

    images: Count = 100
    steps: AtLeastTwo = 50
    resolution: AtLeastTwo = 61


@dataclass(frozen=True)
class TrajectoryPlan:
    """Robustness through training, as `eval.trajectory` has it, under the threat model of the indicators.

    ``snapshots``: that every training keeps, evenly in the logarithm of images, 0 for none; ``images``: test images.
    """

    snapshots: Count = 0
    images: AtLeastTwo = 100


@dataclass(frozen=True)
class AuditPlan:
    """The audit of `eval.audit`, its surrogates being the other regimes' models of the same seed.

    ``mode``: none, quick or full; ``images``: test images; ``seeds``: audit the models of so many, the first ones.
    """

    mode: str = "quick"
    images: AtLeastTwo = 100
    seeds: Count = 1


@dataclass(frozen=True)
class Regime:
    """A way of training: its ``name`` in tables, such as ``RL-adv``, and settings of `agents.config.TrainConfig`.

    ``preset`` among the ``options`` names one to begin with, in which ``{dataset}`` and ``{network}`` are filled in.
    """

    name: str
    options: dict[str, Any]

    def config(
        self, dataset: str, network: str, seed: int, shared: Mapping[str, Any], image_size: int | None
    ) -> TrainConfig:
        """Return the training's configuration: preset, then the study's ``shared`` settings, then the regime's.

        Raises InputError where the preset or a setting is unknown or wrong.
        """
        options = dict(self.options)
        preset, start = options.pop("preset", None), TrainConfig()
        if preset is not None:
            start = get_preset(str(preset).format(dataset=dataset, network=network))
        values = start.to_dict()
        for level in (shared, options):
            if any(name in level for name in _LENGTHS):  # one length replaces another
                values |= dict.fromkeys(_LENGTHS)
            for key, value in level.items():  # sections setting by setting
                inner = values.get(key)
                values[key] = inner | value if isinstance(inner, dict) and isinstance(value, dict) else value
        values |= {"dataset": dataset, "network": network, "seed": seed, "preset": start.preset}
        values |= {"image_size": image_size or start.image_size, "attack": False, "progress": False}
        try:
            config = TrainConfig.from_dict(values)
            config.validate()
        except InputError as error:
            raise InputError(f"regime {self.name}: {error}") from None
        return config


@dataclass(frozen=True)
class Grid:
    """A study: every data set x network x regime x seed is trained once and examined in the same way."""

    name: str
    datasets: tuple[str, ...]
    networks: tuple[str, ...]
    regimes: tuple[Regime, ...]
    threats: tuple[Threat, ...]
    attacks: tuple[Attack, ...]
    seeds: tuple[Count, ...] = (0,)
    images: AtLeastTwo = 200
    attack_seed: Count = 0
    image_size: int | None = None
    data_root: Path | None = None
    train: dict[str, Any] = field(default_factory=dict)
    transfer: TransferPlan = field(default_factory=TransferPlan)
    mechanism: MechanismPlan = field(default_factory=MechanismPlan)
    trajectory: TrajectoryPlan = field(default_factory=TrajectoryPlan)
    audit: AuditPlan = field(default_factory=AuditPlan)
    gallery: Count = 12

    def to_dict(self) -> dict[str, Any]:
        """Return the study as it would be written in a file, defaults included."""
        return dataclasses.asdict(self) | {
            "regimes": {regime.name: regime.options for regime in self.regimes},
            "threats": [str(threat) for threat in self.threats],
            "attacks": [attack.name for attack in self.attacks],
            "attack": {item.name: {"attack": item.attack, **item.options} for item in self.attacks},
            "data_root": None if self.data_root is None else str(self.data_root),
        }


def training_key(config: TrainConfig) -> dict[str, Any]:
    """Return what of a configuration decides over the trained weights, as plain JSON.

    Settings that came later are left out at their defaults, so that earlier studies find their cells again.
    """
    values = config.to_dict()
    if values["adversarial"]["trades_start"] is None:
        del values["adversarial"]["trades_start"]
    if not values["pretrained"]:
        del values["pretrained"]
    return {key: value for key, value in values.items() if key not in (*_NOT_TRAINING, *_PICTURES)}


def preset(name: str) -> Grid:
    """Return the study called ``name``; an InputError tells the names where there is none."""
    if name not in PRESETS:
        raise unknown_name("study", name, [*PRESETS, "FILE.toml"])
    return parse_grid({"name": name} | PRESETS[name])


def read_grid(path: Path) -> Grid:
    """Read a study from a TOML file.

    Raises InputError where it is missing or not TOML, or a key or value in it is wrong; the message names it.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; expected a TOML file of a study") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid TOML: {error}") from None
    try:
        return parse_grid({"name": path.stem} | values)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def parse_grid(values: Mapping[str, Any]) -> Grid:
    """Build a study from the values of a file or preset, and check everything that needs no data.

    Raises InputError for an unknown key (with the nearest valid one), a wrong value, or two cells that are the same.
    """
    check_keys("a study", values, (*get_type_hints(Grid), "attack"))
    plain: dict[str, Any] = dict(values)
    for key in _LISTS:
        if not isinstance(plain.get(key, []), list | tuple):
            raise InputError(f"{key} is {plain[key]!r}; expected a list, such as [{plain[key]!r}]")
    for key in ("datasets", "networks", "regimes", "threats", "attacks"):
        if not plain.get(key):
            raise InputError(f"{key} is missing or empty; name at least one")
    check_keys("regimes", plain["regimes"])
    regimes = plain["regimes"].items()
    plain["regimes"] = [Regime(name, _training(f"regimes.{name}", found)) for name, found in regimes]
    plain["threats"] = [_threat(text) for text in plain["threats"]]
    plain["attacks"] = list(_attacks(plain["attacks"], plain.pop("attack", {})))
    plain["train"] = _training("train", plain.get("train", {}))
    hints = get_type_hints(Grid)
    plain |= {key: _build(hints[key], plain.get(key, {}), key) for key in _PLANS}
    grid = _build(Grid, plain, "a study")
    for key in _LISTS:
        names = [item.name if isinstance(item, Attack) else item for item in getattr(grid, key)]
        if len(set(names)) < len(names):
            raise InputError(f"{key} names one twice: {', '.join(map(str, names))}; name each once")
    for craft in grid.transfer.crafts:
        if craft not in CRAFTS:
            raise unknown_name("way to make transfer images", craft, CRAFTS)
    if grid.audit.mode not in AUDITS:
        raise unknown_name("audit mode", grid.audit.mode, AUDITS)
    return grid


def check_keys(where: str, values: Any, valid: Iterable[str] | None = None) -> None:
    """Raise an InputError if ``values`` is no table or has a key that is not ``valid``; it names the nearest one."""
    if not isinstance(values, Mapping):
        raise InputError(f"{where} is {values!r}; expected a table, such as [{where}]")
    valid = list(values if valid is None else valid)
    for key in values:
        if key not in valid:
            raise unknown_name(f"key of {where}", key, valid)


def _build(kind: type[T], values: Any, where: str) -> T:
    """Return the dataclass ``kind`` with ``values`` for its fields, keys, types and ranges checked."""
    check_keys(where, values, get_type_hints(kind))
    try:
        return msgspec.convert(values, kind, dec_hook=_path)
    except msgspec.ValidationError as error:
        reason, _, place = str(error).partition(" - at `$.")
        key = re.split(r"\W", place)[0]
        found = f"{key} is {values[key]!r}" if key in values else where
        raise InputError(f"{found} in {where}: {reason[:1].lower()}{reason[1:].replace('`', '')}") from None


def _path(kind: type, value: Any) -> Any:
    """Return the path that a text names; msgspec does not know the kind."""
    if kind is not Path or not isinstance(value, str | Path):
        raise TypeError(f"expected a path, got {value!r}")
    return Path(value).expanduser()


def _training(where: str, options: Any) -> dict[str, Any]:
    """Check the names of training settings, in nested sections too."""
    hints = get_type_hints(TrainConfig)
    valid = [name for name in hints if name not in _OWN]
    check_keys(where, options, valid if where == "train" else [*valid, "preset"])
    for key, value in options.items():
        if key != "preset" and dataclasses.is_dataclass(hints[key]):
            check_keys(f"{where}.{key}", value, get_type_hints(hints[key]))
    preset = options.get("preset")
    if isinstance(preset, str) and "{" not in preset and preset not in TRAINING_PRESETS:
        raise unknown_name("training preset", preset, TRAINING_PRESETS)
    return dict(options)


def _threat(text: Any) -> Threat:
    words = str(text).split()
    if len(words) != 2:
        raise InputError(f"threat {text!r}; expected a norm and a radius, such as 'L2 1.0' or 'Linf 8/255'")
    norm = parse_norm(words[0])
    return Threat(norm, parse_eps(words[1], norm))


def _attacks(names: Iterable[Any], own: Any) -> Iterable[Attack]:
    check_keys("attack", own)
    for name in names:
        attack, options = ATTACKS.get(name, (name, {}))
        if name in own:
            check_keys(f"attack.{name}", own[name])
            options = dict(own[name])
            attack = options.pop("attack", name)
        attack = str(attack).replace("-", "_")
        if attack not in attack_names() or attack == "transfer":
            raise unknown_name("attack", str(name), dict.fromkeys((*ATTACKS, *attack_names(), *own)))
        resolve_options(attack, options)
        yield Attack(str(name), attack, dict(options))
    if unlisted := [name for name in own if name not in names]:
        problem = f"attack.{unlisted[0]} is described but not listed in attacks"
        raise InputError(f"{problem}; add it there or remove it")
