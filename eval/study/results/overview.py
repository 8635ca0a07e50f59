"""The results of a study, arranged by group and regime, and the measures that tables share."""

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import product
from typing import Any

from eval.core.stats import known_mean
from eval.core.threats import Threat
from eval.study.plan.config import Attack, Grid
from eval.study.results.cell_results import CellResult
from eval.study.results.record import Column, Measured, Row, Table
from eval.study.results.statistics import Measure, Rate, rate_of

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

    def rows(self) -> Iterator[tuple[Row, list[CellResult]]]:
        """Yield one row's place and results per group and regime."""
        for group in self.groups:
            for regime, found in self.regimes(group).items():
                yield self.place(group) | {"regime": regime}, found

    @cached_property
    def attacked(self) -> list[tuple[Row, list[CellResult], Threat]]:
        """One row per threat model, group and regime with the outcome of every attack, and its results.

        By an attack's name: the values of `pair`; with ``_shortened`` and ``_queries`` behind it, the means over those
        seeds that have one.
        """
        rows = []
        for threat, (place, found) in product(self.grid.threats, list(self.rows())):
            row = place | {"threat": str(threat)}
            for name in (attack.name for attack in self.grid.attacks):
                results = [
                    item.attacks[threat][name] for item in found if name in item.attacks.get(threat, ())
                ]
                row |= entries(name, rate_of(found, outcome(threat, name)))
                row[f"{name}_shortened"] = known_mean(result.shortened_l2 for result in results)
                row[f"{name}_queries"] = known_mean(float(result.queries.mean()) for result in results)
            rows.append((row, found, threat))
        return rows

    def place(self, group: Group) -> Row:
        """Return the columns that name a group."""
        return {"dataset": group[0], "network": group[1]}

    def columns(self, further: Iterable[Column]) -> tuple[Column, ...]:
        """Return the columns of the place, without those in which a study has one value only, and others."""
        several = {"dataset": len(self.grid.datasets) > 1, "network": len(self.grid.networks) > 1}
        place = [Column(key, key.replace("dataset", "data set")) for key, kept in several.items() if kept]
        return (*place, *further)

    def table(
        self, id: str, title: str, note: str, further: Iterable[Column], rows: Sequence[Row]
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


def entries(key: str, found: Rate | None) -> Row:
    """Return the values of the columns that `pair` names."""
    if found is None:
        return {}
    seeds = None if found.seeds is None else Measured(found.mean, *found.seeds, found.trainings)
    return {key: found.entry(), f"{key}_seeds": seeds}
