"""The registry of algorithms and of their defaults; each algorithm's file registers itself."""

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

from envs.errors import InputError, unknown_name


@dataclass(frozen=True)
class AlgorithmSpec:
    """The properties of an algorithm that a training run needs."""

    algorithm: type[Any]  #: the class, a Stable-Baselines3 algorithm
    build: Callable[
        [Any], Any
    ]  #: from an `agents.algorithms.setups.Setup` to the algorithm with a new policy
    exploration: float = 0.1  #: share of uniform random actions unless ``--exploration.eps`` is given
    exploration_mode: Literal["batch", "mixture"] = "batch"  #: unless ``--exploration.mode`` is given
    #: how it trains on attacked images: in its ``loss``, as ``observations``, or ``none``: not at all
    adversarial: Literal["loss", "observations", "none"] = "none"
    learning_rate: float = 1.0  #: factor of the default learning rate
    ent_coef: float = 0.0  #: weight of the entropy bonus unless ``--ppo.ent-coef`` is given
    small_batch: int = 64  #: default batch size of the smallest networks; that of others is 256
    in_schedules: bool = True  #: whether it can be a phase of ``--schedule``; they share one `ImagePolicy`
    bf16: bool = True  #: whether it trains under ``--precision bf16``
    #: whether it learns from environments of tensors on the device; False: of NumPy arrays
    tensors: bool = True
    #: raises InputError for a `TrainConfig` whose options do not go with the algorithm
    check: Callable[[Any], None] = lambda config: None
    #: from a `TrainConfig` and the class to what a user should know before training, in one line, or ""
    notes: Callable[[Any, type[Any]], str] = lambda config, algorithm: ""
    #: from a `TrainConfig` to the cost of an image, in forward passes; with a backward one they are 3
    forward_passes: Callable[[Any], int] = lambda config: 3


_named: dict[str, AlgorithmSpec] = {}
_families: list[AlgorithmSpec] = []


def register_algorithm(name: str, spec: AlgorithmSpec) -> None:
    """Make an algorithm known as ``name`` to ``--algo``, ``--schedule`` and studies.

    Raises:
        InputError: another algorithm has that name.
    """
    if not spec.algorithm.__module__.startswith("agents.algorithms."):
        _import_built_in()  # whose names are taken
    if name in _named and _named[name].algorithm is not spec.algorithm:
        raise InputError(f"algorithm {name!r} is registered already; choose another name")
    _named[name] = spec


def register_family(spec: AlgorithmSpec) -> None:
    """Make all subclasses of ``spec.algorithm`` known by their import path, where no nearer class is registered."""
    _families.append(spec)


@cache
def _import_built_in() -> None:
    for module in pkgutil.iter_modules([str(Path(__file__).parent)], "agents.algorithms."):
        importlib.import_module(module.name)


def algorithm_names(in_schedules: bool = False) -> tuple[str, ...]:
    """Return the names of all registered algorithms, or of those that can be a phase of a schedule, sorted."""
    _import_built_in()
    return tuple(sorted(name for name, spec in _named.items() if spec.in_schedules or not in_schedules))


def find_algorithm(name: str) -> AlgorithmSpec:
    """Return what is registered as ``name``, or what fits the Stable-Baselines3 algorithm at "package.module:Class".

    The latter executes code: only for names that the user typed, never for those that a file holds.

    Raises:
        InputError: the name is unknown, or what it names cannot be imported or is no such algorithm.
    """
    names = algorithm_names()
    if name in _named:
        return _named[name]
    if ":" not in name:
        raise unknown_name("algorithm", name, [*names, "package.module:Class"])
    module, _, attribute = name.partition(":")
    try:
        found: Any = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(
            f"cannot import algorithm {name!r}: {error}; expected package.module:Class"
        ) from error
    for base in found.__mro__ if isinstance(found, type) else ():
        for spec in (*_named.values(), *_families):
            if spec.algorithm is base:
                return replace(spec, algorithm=found)
    raise InputError(
        f"{name} is no Stable-Baselines3 algorithm; expected the class of one, on-policy or off-policy, with discrete "
        "actions, such as stable_baselines3:PPO"
    )
