"""The tables of paired tests between regimes and of cost."""

from itertools import combinations
from statistics import mean

from eval.core.stats import known_mean
from eval.study.results.overview import Overview, clean, is_cleverhans, outcome, survives
from eval.study.results.statistics import Measure, compare, holm
from eval.study.results.table import Table, columns, filled


def tests_table(overview: Overview) -> Table | None:
    """Paired tests between all regimes: clean, each cleverhans protocol, and the worst case."""
    measures: list[tuple[str, str, Measure]] = [("clean", "-", clean)]
    for threat in overview.grid.threats:
        measures += [
            (attack.name, str(threat), outcome(threat, attack.name))
            for attack in overview.attacks("pgd")
            if is_cleverhans(attack)
        ]
        measures.append(("worst case", str(threat), survives(threat)))
    rows = []
    for group in overview.groups:
        for label, threat_name, measure in measures:
            for (first, ours), (second, theirs) in combinations(overview.regimes(group).items(), 2):
                found = compare(ours, theirs, measure)
                if found is not None:
                    place = overview.place(group) | {"measure": label, "threat": threat_name}
                    rows.append(place | {"first": first, "second": second, **vars(found)})
    for row, adjusted in zip(rows, holm([row["p_images"] for row in rows]), strict=True):
        row["p_holm"] = adjusted
    shown = overview.columns(
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
    return filled("tests", "Paired tests between regimes", note, shown, rows)


def cost_table(overview: Overview) -> Table:
    """What training and attacking one model took."""
    rows = []
    for place, found in overview.rows():
        costs = [
            [result.cost for item in cell.attacks.values() for result in item.values()] for cell in found
        ]
        passes = [sum(cost["forwards"] + cost["backwards"] for cost in each) for each in costs]
        rows.append(
            place
            | {"images": mean(item.train["images"] for item in found), "passes": mean(passes)}
            | {"attacks": mean(sum(cost["seconds"] for cost in each) for each in costs)}
            | {"train": mean(item.train["seconds"] for item in found)}
            | {"audit": known_mean(item.seconds.get("audit") for item in found)}
            | {"device": ", ".join(sorted({str(item.train["device"]) for item in found}))}
        )
    shown = overview.columns(
        *columns(regime="regime"),
        *columns("integer", images="training images"),
        *columns("number", train="training, s", attacks="attacks, s"),
        *columns("integer", passes="passes in attacks"),
        *columns("number", audit="audit, s"),
        *columns(device="device"),
    )
    note = "Means per model. Training images: shown, repetitions counted; passes: of one image, forward and backward."
    return Table("cost", "Cost", note, shown, tuple(rows))
