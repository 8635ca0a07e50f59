"""The tables of models: transfer between them, mechanism indicators, trajectories, audit verdicts."""

from itertools import product
from statistics import mean

import numpy as np

from eval.core.threats import Threat
from eval.study.plan.cells import Cell
from eval.study.results.cell_results import CellResult
from eval.study.results.overview import Group, Overview
from eval.study.results.record import Column, Measured, Table, Value, columns
from eval.study.results.statistics import Rate, rate
from eval.trajectory.outputs import claimed, scalars

SOURCE = "arXiv 2606.12251"  # Zou et al. 2026: the paper that studies can be compared with
# Its accuracy on CIFAR-10 images made on another model, 6-layer network under L2, by (source, target).
_PAPER_TRANSFER = {
    **dict.fromkeys((("RL", "SL"), ("RL", "RL")), "about 43 %"),
    **dict.fromkeys((("SL", "SL"), ("SL", "RL")), "about 8 %"),
    ("SL", "RL-adv"): "about 30 %",
}


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


def _paper_transfer(source: str, target: Cell, threat: Threat) -> str | None:
    """Return the paper's accuracy on images made on a regime's model; None where it has none."""
    known = (target.dataset, target.network, threat.norm) == ("cifar10", "cnn6", "L2")
    return _PAPER_TRANSFER.get((source, target.regime)) if known else None


def transfer_table(overview: Overview) -> Table | None:
    """The full source x target matrix: accuracy of every regime on the images made on every other."""
    rows: list[dict[str, Value]] = []
    grid = overview.grid
    for group, threat, craft in product(overview.groups, grid.threats, grid.transfer.crafts):
        regimes = overview.regimes(group)
        rates = transfer_rates(overview, group, craft, threat)
        for source in regimes:
            row = overview.place(group) | {"threat": str(threat), "craft": craft, "source": source}
            for target in regimes:
                same, other = rates[source, target]
                row[target] = None if same is None else same.entry()
                if source == target and other is not None:
                    row["other_seed"] = other.entry()
                paper = _paper_transfer(source, regimes[target][0].cell, threat)
                row[f"{target}_paper"] = paper if craft == "paper" else None
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


_INDICATORS: tuple[tuple[str, str, tuple[str, str]], ...] = (
    ("gradient_norm", "input-gradient norm", ("static", "gradient_norm")),
    ("under_floor", "gradients under the floor", ("static", "under_floor")),
    ("zero", "gradients exactly zero", ("static", "zero")),
    ("stability", "direction under noise (cosine)", ("static", "stability")),
    ("nonlinearity", "local nonlinearity", ("static", "nonlinearity")),
    ("margin", "margin (logits)", ("static", "margin")),
    ("logit_scale", "logit scale", ("static", "logit_scale")),
    ("path_norm", "along PGD: gradient norm", ("dynamic", "gradient_norm")),
    ("path_cosine", "along PGD: cosine to the previous", ("dynamic", "cosine")),
    ("path_sign", "along PGD: equal signs", ("dynamic", "same_sign")),
    ("dispersion", "along PGD: dispersion", ("dynamic", "dispersion")),
    ("drift", "along PGD: drift", ("dynamic", "drift")),
    ("entropy", "entropy, clean (bits)", ("entropy", "clean")),
    ("entropy_attacked", "entropy, attacked (bits)", ("entropy", "attacked")),
)
_SHARES = ("under_floor", "zero")


def indicator(item: CellResult, name: str) -> float | None:
    """Return one indicator of a model: the median over images, the mean over the steps of PGD."""
    part = next(part for key, _, part in _INDICATORS if key == name)
    return None if item.mechanism is None else item.mechanism.value(*part)


def mechanism_table(overview: Overview) -> Table | None:
    """The indicators, one row per regime: mean over seeds of each model's median over images."""
    rows = []
    for place, found in overview.rows():
        row = dict(place)
        for name, _, _ in _INDICATORS:
            values = [value for item in found if (value := indicator(item, name)) is not None]
            if values:
                low, high = (min(values), max(values)) if len(values) > 1 else (None, None)
                row[name] = Measured(mean(values), low, high, len(values))
        if len(row) > len(place):
            rows.append(row)
    shown = [*columns(regime="regime")]
    for name, label, _ in _INDICATORS:
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
            row: dict[str, Value] = place | {"images": points[0].images}
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
    rows: list[dict[str, Value]] = []
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
