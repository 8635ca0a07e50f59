"""The top of the report: verdicts, cost and settings over all models, as tables like any other."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from eval.core.stats import mean_interval
from eval.report.audits import Audit
from eval.report.model import Model
from eval.report.study_file import Column, Entry, Table

_WORST_FIRST = ("masked", "inconclusive", "sound")
_GROUP = (Column("dataset", "data set"), Column("network", "network"), Column("regime", "regime"))
_VERDICT = (
    Column("threat", "threat"),
    Column("verdict", "verdict", "verdict"),
    Column("clean", "clean", "percent"),
    Column("claimed", "PGD claims", "percent"),
    Column("robust", "robust, worst case", "percent"),
    Column("alarms", "alarms", "number"),
    Column("seeds", "seeds", "integer"),
)
_COST = (
    Column("seeds", "seeds", "integer"),
    Column("images", "training images", "integer"),
    Column("training", "training, s", "number"),
    Column("attacks", "attacks, s", "number"),
    Column("audits", "audits, s", "number"),
    Column("passes", "image passes", "integer"),
    Column("device", "device"),
)
_OWN_SETTINGS = {"run_dir", "resume", "progress", "seed"}  # differ without meaning
_MOST_DIFFERENCES = 30


def by_group(models: Iterable[Model]) -> dict[tuple[str, str, str], list[Model]]:
    """Return the models by data set, network and regime; what is left to differ is the seed."""
    groups: dict[tuple[str, str, str], list[Model]] = {}
    for model in models:
        groups.setdefault(model.cell.group, []).append(model)
    return groups


def verdict_table(models: Sequence[Model]) -> Table | None:
    """Return one row per group and threat model; None where nothing was audited."""
    rows = []
    for group, members in by_group(models).items():
        audits = [audit for model in members for audit in model.audits]
        for threat in dict.fromkeys(audit.threat for audit in audits):
            found = [audit for audit in audits if audit.threat == threat]
            rows.append(tuple(Entry(part) for part in group) + _verdict_row(threat, found))
    note = (
        "The audit's verdict per regime. PGD claims: accuracy under PGD on the cross-entropy. Robust: share of images "
        "that none of the audit's attacks breaks; interval: 95 %, over images for one seed, over seeds for several."
    )
    table = Table("verdicts", "Verdict per regime", _GROUP + _VERDICT, tuple(rows), note)
    return filled_columns(table, _GROUP) if rows else None


def _verdict_row(threat: str, audits: Sequence[Audit]) -> tuple[Entry, ...]:
    return (
        Entry(threat),
        Entry(verdict_text([audit.verdict for audit in audits])),
        Entry(_mean(audit.clean for audit in audits)),
        Entry(_mean(audit.claimed for audit in audits)),
        _robust(audits),
        Entry(_mean(float(audit.alarms) for audit in audits)),
        Entry(float(len(audits))),
    )


def verdict_text(verdicts: Sequence[str]) -> str:
    """Return the verdict that all agree on, else how many there are of each, the worst first."""
    if len(set(verdicts)) == 1:
        return verdicts[0]
    counts = {name: verdicts.count(name) for name in _WORST_FIRST if name in verdicts}
    return ", ".join(f"{name} {number} of {len(verdicts)}" for name, number in counts.items())


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _robust(audits: Sequence[Audit]) -> Entry:
    known = [audit for audit in audits if audit.robust is not None]
    if len(known) == 1:
        return Entry(known[0].robust, known[0].low, known[0].high, known[0].n)
    if not known:
        return Entry()
    mean, interval, n = mean_interval([audit.robust for audit in known if audit.robust is not None])
    if interval is None:
        return Entry(mean, n=n)
    return Entry(mean, max(0.0, interval.low), min(1.0, interval.high), n)


def cost_table(models: Sequence[Model]) -> Table | None:
    """Return what every group took, summed over its seeds; None where nothing is known."""
    rows = []
    for group, members in by_group(models).items():
        costs = [model.cost for model in members]
        sums = (
            _sum(cost.images for cost in costs),
            _sum(cost.training for cost in costs),
            sum(cost.attacks for cost in costs),
            sum(cost.audits for cost in costs),
            sum(cost.passes for cost in costs),
        )
        devices = ", ".join(dict.fromkeys(cost.device for cost in costs if cost.device))
        figures = (Entry(float(len(members))), *(Entry(value) for value in sums), Entry(devices or None))
        rows.append(tuple(Entry(part) for part in group) + figures)
    note = (
        "Sums over seeds. Image passes: forward and backward passes of attacks and audits, counted per image."
    )
    table = Table("cost", "Cost", _GROUP + _COST, tuple(rows), note)
    return filled_columns(table, _GROUP) if rows else None


def _sum(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def filled_columns(table: Table, constant: tuple[Column, ...] = ()) -> Table:
    """Return the table without empty columns, and without those of ``constant`` that are the same everywhere."""
    kept = []
    for k, column in enumerate(table.columns):
        values = {(row[k].value, row[k].low) for row in table.rows} - {(None, None), ("", None)}
        if len(values) > (column in constant):
            kept.append(k)
    columns = tuple(table.columns[k] for k in kept)
    rows = tuple(tuple(row[k] for k in kept) for row in table.rows)
    return replace(table, columns=columns, rows=rows)


def common_settings(models: Sequence[Model]) -> dict[str, str]:
    """Return the settings that all models share."""
    known = [model.settings for model in models if model.settings]
    if not known:
        return {}
    return {
        key: value
        for key, value in known[0].items()
        if key not in _OWN_SETTINGS and all(settings.get(key) == value for settings in known)
    }


def differing_settings(models: Sequence[Model]) -> Table | None:
    """Return one row per group, with the settings in which the groups differ; None where there are none."""
    common = common_settings(models)
    groups = {
        group: members[0].settings for group, members in by_group(models).items() if members[0].settings
    }
    keys = list(dict.fromkeys(key for settings in groups.values() for key in settings))
    keys = [key for key in keys if key not in common and key not in _OWN_SETTINGS][:_MOST_DIFFERENCES]
    if not keys:
        return None
    columns = _GROUP + tuple(Column(f"setting {key}", key) for key in keys)
    rows = tuple(
        tuple(Entry(part) for part in group) + tuple(Entry(settings.get(key)) for key in keys)
        for group, settings in groups.items()
    )
    return Table("settings", "Settings in which the regimes differ", columns, rows, "Of the first seed each.")
