"""The tables of accuracies: clean, PGD by protocol, AutoAttack, query attacks; and the list of all tables."""

from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter
from statistics import mean
from typing import NamedTuple

from eval.attack.results import AttackResults
from eval.core.stats import known_mean
from eval.core.threats import Threat
from eval.study.results.cell_results import CellResult
from eval.study.results.model_tables import audit_table, mechanism_table, trajectory_table, transfer_table
from eval.study.results.overview import Overview, clean, entries, is_cleverhans, outcome, pair, survives
from eval.study.results.published import SOURCE, paper_pgd
from eval.study.results.significance_tables import cost_table, tests_table
from eval.study.results.statistics import Measure, rate_of
from eval.study.results.table import Column, Measured, Table, Value

PGD = ("pgd", "fgsm")
AUTOATTACK = ("autoattack", "apgd", "apgd_targeted", "fab", "fab_targeted")
QUERY_ATTACKS = ("square", "spsa", "nes", "boundary", "hopskipjump", "rays")
INTERVALS = (
    "Means over seeds. Brackets: Wilson's 95 % interval over test images at the mean; column over seeds: Student's "
    "95 % t-interval."
)


class Part(NamedTuple):
    """Neighbouring columns, and their values for the results of one regime under a threat model."""

    columns: Iterable[Column]
    values: Callable[[Sequence[CellResult], Threat], dict[str, Value]]


def clean_table(overview: Overview) -> Table:
    """Clean accuracy on all test images and on those that were attacked."""
    rows = []
    for place, found in overview.rows():
        whole = mean(item.train["test_accuracy"] for item in found)
        measured = Measured(whole, n=found[0].train.get("test_images"))
        own = entries("clean", rate_of(found, clean))
        rows.append(place | {"whole": measured, "seeds": len(found)} | own)
    columns = overview.columns(
        Column("regime", "regime"),
        Column("whole", "all test images", "percent"),
        *pair("clean", "attacked images"),
        Column("seeds", "seeds", "integer"),
    )
    return Table("clean", "Clean accuracy", INTERVALS, columns, tuple(rows))


def pgd_table(overview: Overview) -> Table:
    """PGD under every protocol and loss of the study, with the share of shortened steps."""
    parts = [Part([Column("clean", "clean", "percent")], _clean)]
    for attack in overview.attacks(*PGD):
        parts.append(_accuracy(attack.name))
        if is_cleverhans(attack):
            shortened = attrgetter("shortened_l2")
            parts.append(_mean("shortened", "steps shortened", "percent", attack.name, shortened))
    if any(paper_pgd(item.cell, threat) for item in overview.cells for threat in overview.grid.threats):
        parts.append(Part([Column("paper", f"paper ({SOURCE})")], _paper))
    note = (
        "pgd: steps of unit length; cleverhans: loss averaged over 128 images and L2 steps floored, so that vanishing "
        "gradients shorten them, last iterate; mifpe and margin: other losses, unit steps; pgd-paper: cleverhans "
        "without clipping to [0, 1], so no robust accuracy under that box. " + INTERVALS
    )
    return _table(overview, "pgd", "PGD by protocol", note, parts)


def autoattack_table(overview: Overview) -> Table:
    """AutoAttack, and the per-image worst case over every attack of the study."""
    parts = [
        _accuracy(attack.name, "AutoAttack fast" if attack.name == "fast" else attack.name)
        for attack in overview.attacks(*AUTOATTACK)
    ]
    parts.append(_rate("worst", "worst case of all attacks", survives))
    note = "Worst case: an image counts as robust if no attack of the study broke it. " + INTERVALS
    return _table(overview, "autoattack", "AutoAttack and the worst case", note, parts)


def query_table(overview: Overview) -> Table | None:
    """Attacks that ask for outputs alone."""
    parts = []
    for attack in overview.attacks(*QUERY_ATTACKS):
        queries = _mean(
            "queries", "queries/image", "integer", attack.name, lambda result: float(result.queries.mean())
        )
        parts += [_accuracy(attack.name), queries]
    note = "Queries until success, averaged over all images. " + INTERVALS
    return _table(overview, "query", "Query attacks", note, parts) if parts else None


def other_table(overview: Overview) -> Table | None:
    """Every attack of the study that no other table of accuracies has a column for."""
    shown = overview.attacks(*PGD, *AUTOATTACK, *QUERY_ATTACKS)
    parts = [_accuracy(attack.name) for attack in overview.grid.attacks if attack not in shown]
    return _table(overview, "other", "Further attacks", INTERVALS, parts) if parts else None


def _table(overview: Overview, id: str, title: str, note: str, parts: Sequence[Part]) -> Table:
    """Return a table with one row per threat model, group and regime."""
    rows = []
    for threat in overview.grid.threats:
        for place, found in overview.rows():
            row = place | {"threat": str(threat)}
            for part in parts:
                row |= part.values(found, threat)
            rows.append(row)
    columns = [column for part in parts for column in part.columns]
    leading = (Column("threat", "threat"), Column("regime", "regime"))
    return Table(id, title, note, overview.columns(*leading, *columns), tuple(rows))


def _accuracy(name: str, label: str = "") -> Part:
    return _rate(name, label or name, lambda threat: outcome(threat, name))


def _rate(name: str, label: str, measure: Callable[[Threat], Measure]) -> Part:
    return Part(pair(name, label), lambda found, threat: entries(name, rate_of(found, measure(threat))))


def _mean(
    suffix: str, label: str, kind: str, name: str, number: Callable[[AttackResults], float | None]
) -> Part:
    """Return a column with the mean of a number of the attack ``name`` over the seeds that have one."""

    def values(found: Sequence[CellResult], threat: Threat) -> dict[str, Value]:
        results = (item.attacks.get(threat, {}).get(name) for item in found)
        return {f"{name}_{suffix}": known_mean(number(item) for item in results if item is not None)}

    return Part([Column(f"{name}_{suffix}", label, kind)], values)  # type: ignore[arg-type]  # one of Kind


def _clean(found: Sequence[CellResult], threat: Threat) -> dict[str, Value]:
    own = rate_of(found, clean)
    return {"clean": None if own is None else own.mean}


def _paper(found: Sequence[CellResult], threat: Threat) -> dict[str, Value]:
    return {"paper": paper_pgd(found[0].cell, threat)}


def all_tables(overview: Overview) -> list[Table]:
    """Return every table that the study has numbers for."""
    made: tuple[Callable[[Overview], Table | None], ...]
    made = (clean_table, pgd_table, autoattack_table, query_table, other_table, transfer_table)
    made += (mechanism_table, trajectory_table, audit_table, tests_table, cost_table)
    return [table for make in made if (table := make(overview)) is not None]
