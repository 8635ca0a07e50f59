"""Which attacks AutoAttack runs, in which order and with which budgets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from attacks.apgd import Apgd
from attacks.errors import AttackError, unknown_name
from attacks.fab import Fab
from attacks.forward import Model
from attacks.problem import Problem
from attacks.result import AttackResult
from attacks.square import Square

VERSIONS = ("standard", "plus", "rand")
STAGES = ("apgd-ce", "apgd-dlr", "apgd-mifpe", "fab", "square", "apgd-t", "fab-t")
_ORDER = {
    "standard": ("apgd-ce", "apgd-t", "fab-t", "square"),
    "plus": ("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"),
    "rand": ("apgd-ce", "apgd-dlr"),
}


@dataclass(frozen=True)
class Stage:
    """One attack of a plan, on the samples that no earlier one broke."""

    name: str
    attack: Callable[[Model, Problem, int], AttackResult]


def plan(version: str | Sequence[str], norm: str, classes: int, random: str) -> tuple[Stage, ...]:
    """The stages of a version, or of a list of names from `STAGES`, for a model of so many ``classes``.

    Budgets are those of the published code (Croce and Hein 2020; at L1 2021): 100 iterations, 9 targets (L1: 5), 5000
    queries of Square, one restart (L1: 5; "plus": 5), 20 passes per gradient in "rand". With fewer than 4 (3) classes,
    where the targeted (untargeted) DLR loss is undefined, cross-entropy (the margin) takes its place.

    Raises:
        AttackError: an unknown version or stage, or no stage at all.
    """
    if isinstance(version, str) and version not in VERSIONS:
        raise unknown_name("version", version, VERSIONS)
    names = _ORDER[version] if isinstance(version, str) else tuple(version)
    if not names:
        raise AttackError(f"a custom AutoAttack needs at least one of: {', '.join(STAGES)}")
    for name in names:
        if name not in STAGES:
            raise unknown_name("stage of AutoAttack", name, STAGES)
    restarts = 5 if version == "plus" or (norm == "L1" and version != "rand") else 1
    table: dict[str, Callable[[Model, Problem, int], AttackResult]] = {
        "apgd-ce": _apgd("ce", restarts, version, random),
        "apgd-dlr": _apgd("dlr" if classes > 2 else "margin", restarts, version, random),
        "apgd-mifpe": _apgd("mifpe", restarts, version, random),
        "apgd-t": Apgd(
            "dlr" if classes > 3 else "ce",
            num_targets=5 if norm == "L1" and version == "standard" else 9,
            random=random,
        ),
        "fab": Fab(restarts=5, random=random),
        "fab-t": Fab(num_targets=9, random=random),
        "square": Square(random=random),
    }
    return tuple(Stage(name, table[name]) for name in names)


def _apgd(loss: str, restarts: int, version: str | Sequence[str], random: str) -> Apgd:
    rand = version == "rand"
    return Apgd(loss, restarts=restarts, eot_samples=20 if rand else 1, early_stop=not rand, random=random)
