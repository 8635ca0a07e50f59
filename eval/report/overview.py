"""Verdicts, cost and settings over all models, as tables like any other."""

from collections.abc import Callable, Iterable, Sequence

import msgspec

from eval.audit.findings import AuditFile
from eval.core.stats import known_mean
from eval.report.cell_format import WORST_FIRST
from eval.report.model import Model
from eval.study.results.record import CellRecord, Column, Measured, Row, Table, columns, measured, over_seeds

_GROUP = columns(dataset="data set", network="network", regime="regime")
_VERDICT = (
    *columns(threat="threat"),
    *columns("verdict", verdict="verdict"),
    *columns("percent", clean="clean", claimed="PGD claims", robust="robust, worst case"),
    *columns("number", alarms="alarms"),
    *columns("integer", seeds="seeds"),
)
_COST = (
    *columns("integer", seeds="seeds", images="training images"),
    *columns("number", training="training, s", attacks="attacks, s", audits="audits, s"),
    *columns("integer", passes="image passes"),
    *columns(device="device"),
)
_CELLS = columns(seed="seed", threats="threats", status="status", hash="hash")
_OWN_SETTINGS = {"run_dir", "resume", "progress", "seed"}  # differ without meaning
_MOST_DIFFERENCES = 30


def by_group(models: Iterable[Model]) -> dict[tuple[str, str, str], list[Model]]:
    """Return the models by data set, network and regime; what is left to differ is the seed."""
    groups: dict[tuple[str, str, str], list[Model]] = {}
    for model in models:
        groups.setdefault(model.cell.group, []).append(model)
    return groups


def audits_by_threat(models: Iterable[Model]) -> dict[str, list[AuditFile]]:
    """Return the audits of some models by threat model, as text."""
    found: dict[str, list[AuditFile]] = {}
    for model in models:
        for audit in model.audits:
            found.setdefault(str(audit.threat), []).append(audit)
    return found


def _place(cell: CellRecord) -> Row:
    return dict(zip(("dataset", "network", "regime"), cell.group, strict=True))


def _table(id: str, title: str, note: str, further: tuple[Column, ...], rows: Sequence[Row]) -> Table | None:
    """Return a table of groups without empty columns; None where it would have no rows."""
    table = Table(id, title, note, _GROUP + further, tuple(rows))
    return filled_columns(table, _GROUP) if rows else None


def verdict_table(models: Sequence[Model]) -> Table | None:
    """Return one row per group and threat model; None where nothing was audited."""
    rows: list[Row] = [
        _place(members[0].cell)
        | {
            "threat": threat,
            "verdict": verdict_text([audit.verdict for audit in found]),
            "clean": known_mean(audit.clean_accuracy for audit in found),
            "claimed": known_mean(audit.claimed_accuracy for audit in found),
            "robust": robust(found),
            "alarms": known_mean(audit.alarms for audit in found),
            "seeds": len(found),
        }
        for members in by_group(models).values()
        for threat, found in audits_by_threat(members).items()
    ]
    note = (
        "The audit's verdict per regime. PGD claims: accuracy under PGD on the cross-entropy. Robust: share of images "
        "that none of the audit's attacks breaks; interval: 95 %, over images for one seed, over seeds for several."
    )
    return _table("verdicts", "Verdict per regime", note, _VERDICT, rows)


def verdict_text(verdicts: Sequence[str]) -> str:
    """Return the verdict that all agree on, else how many there are of each, the worst first."""
    if len(set(verdicts)) == 1:
        return str(verdicts[0])
    counts = {name: verdicts.count(name) for name in WORST_FIRST if name in verdicts}
    return ", ".join(f"{name} {number} of {len(verdicts)}" for name, number in counts.items())


def robust(audits: Sequence[AuditFile]) -> Measured:
    """Return the corrected accuracy: for one seed with its interval over images, for several with that over seeds."""
    known = [audit for audit in audits if audit.robust_accuracy is not None]
    if len(known) == 1:
        low, high = known[0].ci95 or (None, None)
        return Measured(known[0].robust_accuracy, low, high, known[0].n)
    return over_seeds([audit.robust_accuracy or 0.0 for audit in known], most=1.0) if known else Measured()


def cost_table(models: Sequence[Model]) -> Table | None:
    """Return what every group took, summed over its seeds; None where there are no models."""

    def total(members: Sequence[Model], number: Callable[[Model], float | None]) -> float | None:
        known = [value for model in members if (value := number(model)) is not None]
        return sum(known) if known else None

    rows: list[Row] = [
        _place(members[0].cell)
        | {
            "seeds": len(members),
            "images": total(members, lambda model: model.summary.images),
            "training": total(members, lambda model: model.summary.seconds),
            "attacks": total(members, lambda model: model.attacks),
            "audits": total(members, lambda model: sum(audit.cost.seconds for audit in model.audits)),
            "passes": total(members, lambda model: model.passes),
            "device": ", ".join(dict.fromkeys(model.summary.device or "" for model in members)),
        }
        for members in by_group(models).values()
    ]
    note = (
        "Sums over seeds. Image passes: forward and backward passes of attacks and audits, counted per image."
    )
    return _table("cost", "Cost", note, _COST, rows)


def cell_table(cells: Sequence[CellRecord]) -> Table | None:
    """Return one row per cell of the grid; None where there is at most one."""
    rows: tuple[Row, ...] = tuple(
        _place(cell)
        | {"seed": "" if cell.seed is None else str(cell.seed), "status": cell.status}
        | {"threats": ", ".join(cell.threats), "hash": cell.hash[:12]}
        for cell in cells
    )
    table = Table("cells", "Models", "One row per cell of the grid.", _GROUP + _CELLS, rows)
    return table if len(rows) > 1 else None


def filled_columns(table: Table, constant: tuple[Column, ...] = ()) -> Table:
    """Return the table without empty columns, and without those of ``constant`` that are the same everywhere."""

    def kept(column: Column) -> bool:
        found = [measured(row.get(column.key)) for row in table.rows]
        values = {(item.value, item.low) for item in found} - {(None, None), ("", None)}
        return len(values) > (column in constant)

    return msgspec.structs.replace(table, columns=tuple(filter(kept, table.columns)))


def common_settings(models: Sequence[Model]) -> dict[str, str]:
    """Return the settings that all models share."""
    known = [model.settings for model in models if model.settings] or [{}]
    shared = set.intersection(*(set(settings.items()) for settings in known))
    return {
        key: value for key, value in known[0].items() if (key, value) in shared and key not in _OWN_SETTINGS
    }


def differing_settings(models: Sequence[Model]) -> Table | None:
    """Return one row per group, with the settings in which the groups differ; None where there are none."""
    common = common_settings(models)
    first = [members[0] for members in by_group(models).values() if members[0].settings]
    keys = list(dict.fromkeys(key for model in first for key in model.settings))
    keys = [key for key in keys if key not in common and key not in _OWN_SETTINGS][:_MOST_DIFFERENCES]
    shown = _GROUP + tuple(Column(f"setting {key}", key) for key in keys)
    rows = tuple(
        _place(model.cell) | {f"setting {key}": model.settings.get(key) for key in keys} for model in first
    )
    note = "Of the first seed each."
    return Table("settings", "Settings in which the regimes differ", note, shown, rows) if keys else None
