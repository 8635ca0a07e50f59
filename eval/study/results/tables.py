"""The tables of a study: accuracies by attack, paired tests, cost, transfer, mechanism, trajectories and audits."""

from collections.abc import Iterable, Sequence
from itertools import combinations, product
from statistics import mean

import numpy as np

from eval.core.stats import known_mean
from eval.core.threats import Threat
from eval.study.results.cell_results import CellResult
from eval.study.results.overview import Group, Overview, clean, entries, outcome, pair, survives
from eval.study.results.record import Column, Measured, Row, Table, columns
from eval.study.results.statistics import Measure, Rate, compare, holm, rate, rate_of
from eval.trajectory.outputs import claimed, scalars

SOURCE = "arXiv 2606.12251"  # Zou et al. 2026: the paper that studies can be compared with
# Its accuracy on CIFAR-10 images made on another model, 6-layer network under L2, by (source, target).
_PAPER_TRANSFER = {
    **dict.fromkeys((("RL", "SL"), ("RL", "RL")), "about 43 %"),
    **dict.fromkeys((("SL", "SL"), ("SL", "RL")), "about 8 %"),
    ("SL", "RL-adv"): "about 30 %",
}
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
    shown = [*columns("percent", clean="clean")]
    for attack in overview.attacks(*PGD):
        shown += pair(attack.name, attack.name)
        if attack.cleverhans:
            shown += columns("percent", **{f"{attack.name}_shortened": "steps shortened"})
    rows: list[Row] = []
    for row, found, threat in overview.attacked:
        cell, own = found[0].cell, rate_of(found, clean)
        known = cell.network == "cnn6" and threat.norm == "L2"
        paper = _PAPER_PGD.get((cell.dataset, cell.regime)) if known else None
        rows.append(row | {"clean": None if own is None else own.mean, "paper": paper})
    if any(row["paper"] for row in rows):
        shown += columns(paper=f"paper ({SOURCE})")
    note = (
        "pgd: steps of unit length; cleverhans: loss averaged over 128 images and L2 steps floored, so that vanishing "
        "gradients shorten them, last iterate; mifpe and margin: other losses, unit steps; pgd-paper: cleverhans "
        "without clipping to [0, 1], so no robust accuracy under that box. " + INTERVALS
    )
    return _table(overview, "pgd", "PGD by protocol", note, shown, rows)


def autoattack_table(overview: Overview) -> Table:
    """AutoAttack, and the per-image worst case over every attack of the study."""
    names = [attack.name for attack in overview.attacks(*AUTOATTACK)]
    shown = [column for name in names for column in pair(name, "AutoAttack fast" if name == "fast" else name)]
    shown += pair("worst", "worst case of all attacks")
    rows = [
        row | entries("worst", rate_of(found, survives(threat))) for row, found, threat in overview.attacked
    ]
    note = "Worst case: an image counts as robust if no attack of the study broke it. " + INTERVALS
    return _table(overview, "autoattack", "AutoAttack and the worst case", note, shown, rows)


def query_table(overview: Overview) -> Table | None:
    """Attacks that ask for outputs alone."""
    shown: list[Column] = []
    for attack in overview.attacks(*QUERY_ATTACKS):
        queries = columns("integer", **{f"{attack.name}_queries": "queries/image"})
        shown += (*pair(attack.name, attack.name), *queries)
    note = "Queries until success, averaged over all images. " + INTERVALS
    rows = (row for row, _, _ in overview.attacked)
    return _table(overview, "query", "Query attacks", note, shown, rows) if shown else None


def other_table(overview: Overview) -> Table | None:
    """Every attack of the study that no other table of accuracies has a column for."""
    others = overview.attacks(*PGD, *AUTOATTACK, *QUERY_ATTACKS)
    names = [attack.name for attack in overview.grid.attacks if attack not in others]
    shown = [column for name in names for column in pair(name, name)]
    rows = (row for row, _, _ in overview.attacked)
    return _table(overview, "other", "Further attacks", INTERVALS, shown, rows) if shown else None


def _table(
    overview: Overview, id: str, title: str, note: str, shown: Sequence[Column], rows: Iterable[Row]
) -> Table:
    """Return a table of rows of `Overview.attacked`, with the columns of their place and those ``shown``."""
    keys = ("dataset", "network", "regime", "threat", *(column.key for column in shown))
    every = overview.columns((*columns(threat="threat", regime="regime"), *shown))
    kept = tuple({key: row[key] for key in keys if key in row} for row in rows)
    return Table(id, title, note, every, kept)


def tests_table(overview: Overview) -> Table | None:
    """Paired tests between all regimes: clean, each cleverhans protocol, and the worst case."""
    measures: list[tuple[str, str, Measure]] = [("clean", "-", clean)]
    names = [attack.name for attack in overview.attacks("pgd") if attack.cleverhans]
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


def transfer_rates(
    overview: Overview, group: Group, craft: str, threat: Threat
) -> dict[tuple[str, str], tuple[Rate | None, Rate | None]]:
    """Return, by (source, target) regime, accuracy on the source's images: of the same seed, and of another seed.

    The same seed on the diagonal is the model itself: a white-box attack.
    """
    found = {}
    for (source, makers), (target, takers) in product(overview.regimes(group).items(), repeat=2):
        tried = [
            (maker.cell.seed == taker.cell.seed, row)
            for taker, maker in product(takers, makers)
            if (row := taker.shown(maker.cell, craft, threat)) is not None
        ]
        same, other = ([row for alike, row in tried if alike == wanted] for wanted in (True, False))
        found[source, target] = (rate(same) if same else None, rate(other) if other else None)
    return found


def transfer_table(overview: Overview) -> Table | None:
    """The full source x target matrix: accuracy of every regime on the images made on every other."""
    rows: list[Row] = []
    grid = overview.grid
    for group, threat, craft in product(overview.groups, grid.threats, grid.transfer.crafts):
        regimes = overview.regimes(group)
        rates = transfer_rates(overview, group, craft, threat)
        known = (*group, threat.norm, craft) == ("cifar10", "cnn6", "L2", "paper")
        for source in regimes:
            row = overview.place(group) | {"threat": str(threat), "craft": craft, "source": source}
            for target in regimes:
                same, other = rates[source, target]
                row[target] = None if same is None else same.entry()
                if source == target and other is not None:
                    row["other_seed"] = other.entry()
                row[f"{target}_paper"] = _PAPER_TRANSFER.get((source, target)) if known else None
            if any(row.get(target) for target in regimes):
                rows.append(row)
    shown = [*columns(threat="threat", craft="images", source="made on")]
    for name in (regime.name for regime in grid.regimes):
        shown.append(Column(name, f"shown to {name}", "percent"))
        if any(row.get(f"{name}_paper") for row in rows):
            shown.append(Column(f"{name}_paper", f"paper ({SOURCE})"))
    shown += columns("percent", other_seed="to another seed of its own regime")
    note = (
        "Accuracy on images made on the row's model of the same seed; where source and target are one regime this is "
        "the model itself, so a white-box attack. paper: last iterate of PGD by the paper's protocol; strong: "
        "last iterate of PGD with unit steps on the MIFPE loss. Brackets: Wilson's 95 % interval over images."
    )
    return overview.table("transfer", "Transfer, source x target", note, shown, rows)


# By name: heading, and where `Mechanism` has it.
_INDICATORS = {
    "gradient_norm": ("input-gradient norm", "static", "gradient_norm"),
    "under_floor": ("gradients under the floor", "static", "under_floor"),
    "zero": ("gradients exactly zero", "static", "zero"),
    "stability": ("direction under noise (cosine)", "static", "stability"),
    "nonlinearity": ("local nonlinearity", "static", "nonlinearity"),
    "margin": ("margin (logits)", "static", "margin"),
    "logit_scale": ("logit scale", "static", "logit_scale"),
    "path_norm": ("along PGD: gradient norm", "dynamic", "gradient_norm"),
    "path_cosine": ("along PGD: cosine to the previous", "dynamic", "cosine"),
    "path_sign": ("along PGD: equal signs", "dynamic", "same_sign"),
    "dispersion": ("along PGD: dispersion", "dynamic", "dispersion"),
    "drift": ("along PGD: drift", "dynamic", "drift"),
    "entropy": ("entropy, clean (bits)", "entropy", "clean"),
    "entropy_attacked": ("entropy, attacked (bits)", "entropy", "attacked"),
}
_SHARES = ("under_floor", "zero")


def indicator(item: CellResult, name: str) -> float | None:
    """Return one indicator of a model: the median over images, the mean over the steps of PGD."""
    _, part, key = _INDICATORS[name]
    return None if item.mechanism is None else item.mechanism.value(part, key)


def mechanism_table(overview: Overview) -> Table | None:
    """The indicators, one row per regime: mean over seeds of each model's median over images."""
    rows = []
    for place, found in overview.rows():
        row = dict(place)
        for name in _INDICATORS:
            values = [value for item in found if (value := indicator(item, name)) is not None]
            if values:
                low, high = (min(values), max(values)) if len(values) > 1 else (None, None)
                row[name] = Measured(mean(values), low, high, len(values))
        if len(row) > len(place):
            rows.append(row)
    shown = [*columns(regime="regime")]
    for name, (label, _, _) in _INDICATORS.items():
        shown.append(Column(name, label, "percent" if name in _SHARES else "number"))
    note = (
        "Medians over images (along PGD: averaged over its steps), mean over seeds; brackets: range of seeds."
    )
    return overview.table("mechanism", "Mechanism indicators", note, shown, rows)


def trajectory_table(overview: Overview) -> Table | None:
    """What the paper's protocol reports at every snapshot, and what is left; means over seeds."""
    rows = []
    for place, found in overview.rows():
        followed = [item.trajectory for item in found if item.trajectory is not None]
        for points in zip(*(trajectory.points for trajectory in followed), strict=False):
            texts = {"clean": [point.clean for point in points], "left": [point.left for point in points]}
            texts["claimed"] = [claimed(point) for point in points]
            numbers = [scalars(point) for point in points]
            row: Row = place | {"images": points[0].images}
            for name, bits in texts.items():
                row[name] = rate([np.asarray(list(text)) == "1" for text in bits]).entry()
            for name in ("shortened/pgd-cleverhans", "gradient_norm", "margin"):
                row[name] = mean(values[name] for values in numbers) if name in numbers[0] else None
            rows.append(row)
    shown = (
        *columns(regime="regime"),
        *columns("integer", images="images seen"),
        *columns("percent", clean="clean", claimed="reported: the paper's protocol", left="left: worst case"),
        *columns("percent", **{"shortened/pgd-cleverhans": "steps shortened"}),
        *columns("number", gradient_norm="input-gradient norm", margin="logit margin"),
    )
    note = (
        "Weights as they were after so many images, not the selected ones; means over seeds. Left: worst case per "
        "image over all attacks inside [0, 1]. Brackets: Wilson's 95 % interval over images."
    )
    return overview.table("trajectory", "Robustness through training", note, shown, rows)


def audit_table(overview: Overview) -> Table | None:
    """One verdict per audited model and threat model."""
    rows: list[Row] = []
    for item in overview.cells:
        for threat, found in item.audits.items():
            low, high = found.ci95 or (None, None)
            robust = Measured(found.robust_accuracy, low, high, found.n)
            rows.append(
                overview.place(item.cell.group[:2])
                | {"regime": item.cell.regime, "seed": item.cell.seed, "threat": str(threat)}
                | {"verdict": found.headline, "claimed": found.claimed_accuracy, "robust": robust}
            )
    shown = (
        *columns(threat="threat", regime="regime"),
        *columns("integer", seed="seed"),
        *columns("verdict", verdict="verdict"),
        *columns("percent", claimed="PGD on cross-entropy claims", robust="corrected robust accuracy"),
    )
    note = f"The {overview.grid.audit.mode} audit; surrogates are the other regimes' models of the same seed."
    ordered = sorted(rows, key=lambda row: str(row["threat"]))
    return overview.table("audit", "Audit verdicts", note, shown, ordered)
