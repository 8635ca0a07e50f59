"""The tables of accuracies by attack, of paired tests and of cost."""

from collections.abc import Callable, Iterable, Sequence
from itertools import combinations, product
from operator import attrgetter
from statistics import mean
from typing import NamedTuple

from eval.attack.results import AttackResults
from eval.core.stats import known_mean
from eval.core.threats import Threat
from eval.study.results.cell_results import CellResult
from eval.study.results.model_tables import SOURCE
from eval.study.results.overview import Overview, clean, entries, is_cleverhans, outcome, pair, survives
from eval.study.results.record import Column, Kind, Measured, Table, Value, columns
from eval.study.results.statistics import Measure, compare, holm, rate_of

PGD = ("pgd", "fgsm")
AUTOATTACK = ("autoattack", "apgd", "apgd_targeted", "fab", "fab_targeted")
QUERY_ATTACKS = ("square", "spsa", "nes", "boundary", "hopskipjump", "rays")
INTERVALS = (
    "Means over seeds. Brackets: Wilson's 95 % interval over test images at the mean; column over seeds: Student's "
    "95 % t-interval."
)
# PGD accuracy of the paper's 6-layer network under L2, by data set and regime; as the paper gives them.
_PAPER_PGD = {
    **{("cifar10", "SL"): "about 5 %", ("cifar10", "RL"): "55-56 %"},
    **{("cifar100", "SL"): "about 2 %", ("cifar100", "RL"): "about 25 %"},
    **{("imagenet100", "SL"): "about 5 %", ("imagenet100", "RL"): "about 18 %"},
}


class Part(NamedTuple):
    """Neighbouring columns, and their values for the results of one regime under a threat model."""

    columns: Iterable[Column]
    values: Callable[[Sequence[CellResult], Threat], dict[str, Value]]


def clean_table(overview: Overview) -> Table | None:
    """Clean accuracy on all test images and on those that were attacked."""
    rows = []
    for place, found in overview.rows():
        whole = mean(item.train["test_accuracy"] for item in found)
        measured = Measured(whole, n=found[0].train.get("test_images"))
        own = entries("clean", rate_of(found, clean))
        rows.append(place | {"whole": measured, "seeds": len(found)} | own)
    shown = (
        *columns(regime="regime"),
        *columns("percent", whole="all test images"),
        *pair("clean", "attacked images"),
        *columns("integer", seeds="seeds"),
    )
    return overview.table("clean", "Clean accuracy", INTERVALS, shown, rows)


def pgd_table(overview: Overview) -> Table:
    """PGD under every protocol and loss of the study, with the share of shortened steps."""
    parts = [Part(columns("percent", clean="clean"), _clean)]
    for attack in overview.attacks(*PGD):
        parts.append(_accuracy(attack.name))
        if is_cleverhans(attack):
            shortened = attrgetter("shortened_l2")
            parts.append(_mean("shortened", "steps shortened", "percent", attack.name, shortened))
    if any(
        _paper([item], threat)["paper"] for item, threat in product(overview.cells, overview.grid.threats)
    ):
        parts.append(Part(columns(paper=f"paper ({SOURCE})"), _paper))
    note = (
        "pgd: steps of unit length; cleverhans: loss averaged over 128 images and L2 steps floored, so that vanishing "
        "gradients shorten them, last iterate; mifpe and margin: other losses, unit steps; pgd-paper: cleverhans "
        "without clipping to [0, 1], so no robust accuracy under that box. " + INTERVALS
    )
    return _table(overview, "pgd", "PGD by protocol", note, parts)


def autoattack_table(overview: Overview) -> Table:
    """AutoAttack, and the per-image worst case over every attack of the study."""
    labels = {"fast": "AutoAttack fast"}
    names = [attack.name for attack in overview.attacks(*AUTOATTACK)]
    parts = [_accuracy(name, labels.get(name, name)) for name in names]
    parts.append(_rate("worst", "worst case of all attacks", survives))
    note = "Worst case: an image counts as robust if no attack of the study broke it. " + INTERVALS
    return _table(overview, "autoattack", "AutoAttack and the worst case", note, parts)


def query_table(overview: Overview) -> Table | None:
    """Attacks that ask for outputs alone."""
    parts = []
    for attack in overview.attacks(*QUERY_ATTACKS):
        parts += [_accuracy(attack.name), _mean("queries", "queries/image", "integer", attack.name, _queries)]
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
    shown = [
        *columns(threat="threat", regime="regime"),
        *(column for part in parts for column in part.columns),
    ]
    return Table(id, title, note, overview.columns(shown), tuple(rows))


def _accuracy(name: str, label: str = "") -> Part:
    return _rate(name, label or name, lambda threat: outcome(threat, name))


def _rate(name: str, label: str, measure: Callable[[Threat], Measure]) -> Part:
    return Part(pair(name, label), lambda found, threat: entries(name, rate_of(found, measure(threat))))


def _mean(
    suffix: str, label: str, kind: Kind, name: str, number: Callable[[AttackResults], float | None]
) -> Part:
    """Return a column with the mean of a number of the attack ``name`` over the seeds that have one."""

    def values(found: Sequence[CellResult], threat: Threat) -> dict[str, Value]:
        results = (item.attacks.get(threat, {}).get(name) for item in found)
        return {f"{name}_{suffix}": known_mean(number(item) for item in results if item is not None)}

    return Part([Column(f"{name}_{suffix}", label, kind)], values)


def _queries(result: AttackResults) -> float:
    return float(result.queries.mean())


def _clean(found: Sequence[CellResult], threat: Threat) -> dict[str, Value]:
    own = rate_of(found, clean)
    return {"clean": None if own is None else own.mean}


def _paper(found: Sequence[CellResult], threat: Threat) -> dict[str, Value]:
    cell = found[0].cell
    known = cell.network == "cnn6" and threat.norm == "L2"
    return {"paper": _PAPER_PGD.get((cell.dataset, cell.regime)) if known else None}


def tests_table(overview: Overview) -> Table | None:
    """Paired tests between all regimes: clean, each cleverhans protocol, and the worst case."""
    measures: list[tuple[str, str, Measure]] = [("clean", "-", clean)]
    names = [attack.name for attack in overview.attacks("pgd") if is_cleverhans(attack)]
    for threat in overview.grid.threats:
        measures += [(name, str(threat), outcome(threat, name)) for name in names]
        measures.append(("worst case", str(threat), survives(threat)))
    rows = []
    for group, (label, threat_name, measure) in product(overview.groups, measures):
        for (first, ours), (second, theirs) in combinations(overview.regimes(group).items(), 2):
            found = compare(ours, theirs, measure)
            if found is not None:
                place = overview.place(group) | {"measure": label, "threat": threat_name}
                rows.append(place | {"first": first, "second": second, **vars(found)})
    for row, adjusted in zip(rows, holm([row["p_images"] for row in rows]), strict=True):
        row["p_holm"] = adjusted
    shown = (
        *columns(measure="accuracy", threat="threat", first="first", second="second"),
        *columns("percent", difference="difference"),
        *columns("integer", only_first="only first right", only_second="only second right"),
        *columns("number", p_images="p over images", p_holm="p, Holm", p_seeds="p over seeds"),
        *columns("integer", seeds="seeds"),
    )
    note = (
        "Over images: exact sign-flip test of the per-image differences summed over seeds (with one seed, McNemar's "
        "exact test), which says something of these trainings alone; Holm: adjusted for all rows of this table. Over "
        "seeds: paired t-test of the accuracies, which says something of other trainings."
    )
    return overview.table("tests", "Paired tests between regimes", note, shown, rows)


def cost_table(overview: Overview) -> Table | None:
    """What training and attacking one model took."""
    rows = []
    for place, found in overview.rows():
        costs = [[row.cost for part in item.attacks.values() for row in part.values()] for item in found]
        rows.append(
            place
            | {"images": mean(item.train["images"] for item in found)}
            | {"passes": mean(sum(cost["forwards"] + cost["backwards"] for cost in each) for each in costs)}
            | {"attacks": mean(sum(cost["seconds"] for cost in each) for each in costs)}
            | {"train": mean(item.train["seconds"] for item in found)}
            | {"audit": known_mean(item.seconds.get("audit") for item in found)}
            | {"device": ", ".join(sorted({str(item.train["device"]) for item in found}))}
        )
    shown = (
        *columns(regime="regime"),
        *columns("integer", images="training images"),
        *columns("number", train="training, s", attacks="attacks, s"),
        *columns("integer", passes="passes in attacks"),
        *columns("number", audit="audit, s"),
        *columns(device="device"),
    )
    note = "Means per model. Training images: shown, repetitions counted; passes: of one image, forward and backward."
    return overview.table("cost", "Cost", note, shown, rows)
