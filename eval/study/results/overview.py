"""The results of a study, arranged by group and regime, and the measures that tables share."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from typing import Any

from eval.core.threats import Threat
from eval.study.plan.config import Attack, Grid
from eval.study.results.cell_results import CellResult
from eval.study.results.record import Column, Table, Value
from eval.study.results.statistics import Measure, Rate

Group = tuple[str, str]


class Overview:
    """The results of a study, arranged as tables need them.

    Attributes:
        grid: the study.
        cells: the results of its finished cells.
        groups: (data set, network) in the order of the grid, those with results.
    """

    def __init__(self, grid: Grid, cells: Sequence[CellResult]) -> None:
        self.grid, self.cells = grid, list(cells)
        found = {item.cell.group[:2] for item in cells}
        self.groups = [group for group in product(grid.datasets, grid.networks) if group in found]

    def regimes(self, group: Group) -> dict[str, list[CellResult]]:
        """Return the results of every regime of a group that has some."""
        here = [item for item in self.cells if item.cell.group[:2] == group]
        rows = {
            row.name: [item for item in here if item.cell.regime == row.name] for row in self.grid.regimes
        }
        return {name: found for name, found in rows.items() if found}

    def rows(self) -> Iterator[tuple[dict[str, Value], list[CellResult]]]:
        """Yield one row's place and results per group and regime."""
        for group in self.groups:
            for regime, found in self.regimes(group).items():
                yield self.place(group) | {"regime": regime}, found

    def place(self, group: Group) -> dict[str, Value]:
        """Return the columns that name a group."""
        return {"dataset": group[0], "network": group[1]}

    def columns(self, further: Iterable[Column]) -> tuple[Column, ...]:
        """Return the columns of the place, without those in which a study has one value only, and others."""
        several = {"dataset": len(self.grid.datasets) > 1, "network": len(self.grid.networks) > 1}
        place = [Column(key, key.replace("dataset", "data set")) for key, kept in several.items() if kept]
        return (*place, *further)

    def table(
        self, id: str, title: str, note: str, further: Iterable[Column], rows: Sequence[dict[str, Value]]
    ) -> Table | None:
        """Return a table of the place's columns and ``further`` ones; None where it would have no rows."""
        return Table(id, title, note, self.columns(further), tuple(rows)) if rows else None

    def attacks(self, *functions: str) -> list[Attack]:
        """Return the study's attacks that are one of the functions."""
        return [attack for attack in self.grid.attacks if attack.attack in functions]


def outcome(threat: Threat, name: str) -> Measure:
    """Return the measure "survives this attack"."""
    return lambda item: item.attacks[threat][name].robust if name in item.attacks.get(threat, ()) else None


def survives(threat: Threat) -> Measure:
    """Return the measure "survives every attack of the study under this threat model"."""
    return lambda item: item.worst[threat].robust if threat in item.worst else None


def clean(item: CellResult) -> Any:
    """The measure "is classified correctly unattacked"."""
    return item.clean


def pair(key: str, label: str) -> tuple[Column, Column]:
    """Return the columns of an accuracy: with its interval over images, and its interval over seeds."""
    return Column(key, label, "percent"), Column(f"{key}_seeds", "over seeds", "interval")


def entries(key: str, found: Rate | None) -> dict[str, Value]:
    """Return the values of the columns that `pair` names."""
    return {} if found is None else {key: found.entry(), f"{key}_seeds": found.spread()}


def is_cleverhans(attack: Attack) -> bool:
    """Return whether an attack follows the protocol of cleverhans."""
    return attack.options.get("protocol") == "cleverhans"
