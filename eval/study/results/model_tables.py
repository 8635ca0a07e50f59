"""The tables of what models are like: transfer between them, mechanism indicators, audit verdicts."""

from collections.abc import Sequence
from statistics import mean
from typing import Any

import numpy as np

from eval.core.threats import Threat
from eval.study.results.cell_results import Observation
from eval.study.results.overview import Board, Group
from eval.study.results.published import SOURCE, paper_transfer
from eval.study.results.statistics import Outcomes, Rate, rate
from eval.study.results.table import Column, Table
from eval.trajectory.figure import claimed
from eval.trajectory.tables import scalars


def transfer_rates(
    board: Board, group: Group, craft: str, threat: Threat
) -> dict[tuple[str, str], tuple[Rate | None, Rate | None]]:
    """Return, by (source, target) regime, accuracy on the source's images: of the same seed, and of another seed.

    The same seed on the diagonal is the model itself: a white-box attack.
    """
    regimes = board.regimes(group)
    found = {}
    for source, makers in regimes.items():
        for target, takers in regimes.items():
            same: list[Outcomes] = []
            other: list[Outcomes] = []
            for taker in takers:
                for maker in makers:
                    row = taker.shown(maker.cell, craft, threat)
                    if row is not None:
                        (same if maker.cell.seed == taker.cell.seed else other).append(row)
            found[source, target] = tuple(_rate(rows) for rows in (same, other))
    return found  # type: ignore[return-value]


def _rate(rows: Sequence[Any]) -> Rate | None:
    return rate(rows) if rows else None


def transfer_table(board: Board) -> Table | None:
    """The full matrix: on whose images which regime stays right."""
    rows: list[dict[str, Any]] = []
    names = [regime.name for regime in board.grid.regimes]
    for group in board.groups:
        regimes = board.regimes(group)
        for threat in board.grid.threats:
            for craft in board.grid.transfer.crafts:
                rates = transfer_rates(board, group, craft, threat)
                for source in regimes:
                    row = board.place(group) | {"threat": str(threat), "craft": craft, "source": source}
                    for target in regimes:
                        same, other = rates[source, target]
                        row[target] = None if same is None else same.entry()
                        if source == target and other is not None:
                            row["other_seed"] = other.entry()
                        paper = paper_transfer(source, regimes[target][0].cell, threat)
                        row[f"{target}_paper"] = paper if craft == "paper" else None
                    if any(row.get(target) for target in regimes):
                        rows.append(row)
    if not rows:
        return None
    columns = [Column("threat", "threat"), Column("craft", "images"), Column("source", "made on")]
    for name in names:
        columns.append(Column(name, f"shown to {name}", "percent"))
        if any(row.get(f"{name}_paper") for row in rows):
            columns.append(Column(f"{name}_paper", f"paper ({SOURCE})"))
    columns.append(Column("other_seed", "to another seed of its own regime", "percent"))
    note = (
        "Accuracy on images made on the row's model of the same seed; where source and target are one regime this is "
        "the model itself, so a white-box attack. paper: last iterate of PGD by the paper's protocol; strong: "
        "last iterate of PGD with unit steps on the MIFPE loss. Brackets: Wilson's 95 % interval over images."
    )
    return Table("transfer", "Transfer, source x target", note, board.columns(*columns), tuple(rows))


_INDICATORS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("gradient_norm", "input-gradient norm", ("static", "gradient_norm", "median")),
    ("under_floor", "gradients under the floor", ("static", "under_floor")),
    ("zero", "gradients exactly zero", ("static", "zero")),
    ("stability", "direction under noise (cosine)", ("static", "stability", "median")),
    ("nonlinearity", "local nonlinearity", ("static", "nonlinearity", "median")),
    ("margin", "margin (logits)", ("static", "margin", "median")),
    ("logit_scale", "logit scale", ("static", "logit_scale", "median")),
    ("path_norm", "along PGD: gradient norm", ("dynamic", "gradient_norm", "median")),
    ("path_cosine", "along PGD: cosine to the previous", ("dynamic", "cosine", "median")),
    ("path_sign", "along PGD: equal signs", ("dynamic", "same_sign", "median")),
    ("dispersion", "along PGD: dispersion", ("dynamic", "dispersion")),
    ("drift", "along PGD: drift", ("dynamic", "drift")),
    ("entropy", "entropy, clean (bits)", ("entropy", "clean", "all", "mean")),
    ("entropy_attacked", "entropy, attacked (bits)", ("entropy", "attacked", "all", "mean")),
)
_SHARES = ("under_floor", "zero")


def indicator(item: Observation, name: str) -> float | None:
    """Return one indicator of a model: the median over images, the mean over the steps of PGD."""
    path = next(path for key, _, path in _INDICATORS if key == name)
    value: Any = item.mechanism
    for step in path:
        value = value.get(step) if isinstance(value, dict) else None
    if isinstance(value, list):
        known = [number for number in value if number is not None]
        value = mean(known) if known else None
    return value


def mechanism_table(board: Board) -> Table | None:
    """The indicators, one row per regime: mean over seeds of each model's median over images."""
    rows = []
    for place, found in board.rows():
        row = dict(place)
        for name, _, _ in _INDICATORS:
            values = [value for item in found if (value := indicator(item, name)) is not None]
            if values:
                several = len(values) > 1
                bounds = {"low": min(values), "high": max(values)} if several else {}
                row[name] = {"value": mean(values), **bounds, "n": len(values)}
        if len(row) > len(place):
            rows.append(row)
    if not rows:
        return None
    columns = [Column("regime", "regime")]
    columns += [
        Column(name, label, "percent" if name in _SHARES else "number") for name, label, _ in _INDICATORS
    ]
    note = (
        "Medians over images (along PGD: averaged over its steps), mean over seeds; brackets: range of seeds."
    )
    return Table("mechanism", "Mechanism indicators", note, board.columns(*columns), tuple(rows))


def trajectory_table(board: Board) -> Table | None:
    """What the paper's protocol reports at every snapshot, and what is left; means over seeds."""
    rows = []
    for place, found in board.rows():
        followed = [item.trajectory for item in found if item.trajectory is not None]
        for points in zip(*(trajectory.points for trajectory in followed), strict=False):
            shares = {
                name: _rate([np.asarray(list(row_of(point))) == "1" for point in points])
                for name, row_of in {
                    "clean": lambda point: point.clean,
                    "claimed": claimed,
                    "left": lambda point: point.left,
                }.items()
            }
            figures = [scalars(point) for point in points]
            row: dict[str, Any] = place | {"images": points[0].images}
            row |= {name: None if share is None else share.entry() for name, share in shares.items()}
            for name in ("shortened/pgd-cleverhans", "gradient_norm", "margin"):
                row[name] = mean(values[name] for values in figures) if name in figures[0] else None
            rows.append(row)
    if not rows:
        return None
    columns = [
        Column("regime", "regime"),
        Column("images", "images seen", "integer"),
        Column("clean", "clean", "percent"),
        Column("claimed", "reported: the paper's protocol", "percent"),
        Column("left", "left: worst case", "percent"),
        Column("shortened/pgd-cleverhans", "steps shortened", "percent"),
        Column("gradient_norm", "input-gradient norm", "number"),
        Column("margin", "logit margin", "number"),
    ]
    note = (
        "Weights as they were after so many images, not the selected ones; means over seeds. Left: worst case per "
        "image over all attacks inside [0, 1]. Brackets: Wilson's 95 % interval over images."
    )
    return Table("trajectory", "Robustness through training", note, board.columns(*columns), tuple(rows))


def audit_table(board: Board) -> Table | None:
    """One verdict per audited model and threat model."""
    rows = []
    for item in board.observations:
        for threat, found in item.audits.items():
            low, high = found["ci95"]
            rows.append(
                board.place(item.cell.group[:2])
                | {"regime": item.cell.regime, "seed": item.cell.seed, "threat": str(threat)}
                | {"verdict": found["headline"], "claimed": found["claimed_accuracy"]}
                | {"robust": {"value": found["robust_accuracy"], "low": low, "high": high, "n": found["n"]}}
            )
    if not rows:
        return None
    columns = board.columns(
        Column("threat", "threat"),
        Column("regime", "regime"),
        Column("seed", "seed", "integer"),
        Column("verdict", "verdict", "verdict"),
        Column("claimed", "PGD on cross-entropy claims", "percent"),
        Column("robust", "corrected robust accuracy", "percent"),
    )
    note = f"The {board.grid.audit.mode} audit; surrogates are the other regimes' models of the same seed."
    return Table("audit", "Audit verdicts", note, columns, tuple(sorted(rows, key=lambda row: row["threat"])))
