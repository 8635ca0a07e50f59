"""How values are written in the page: tables with sort keys and interval bars, numbers, nested settings."""

from typing import Any, NamedTuple

from eval.core.records import TEXT_LENGTH
from eval.study.results.record import Column, Measured, Table, measured

WORST_FIRST = ("masked", "inconclusive", "sound")  # the first of a mixed verdict gives it its colour
_SHARES = ("percent", "interval")
_DEPTH = 8
_MOST_SETTINGS = 1_000
Scale = tuple[float, float]  # the ends of a column's bars


class Bar(NamedTuple):
    """An interval drawn from 0 to 100: where it starts, how wide it is, where the value lies, if there is one."""

    start: float
    width: float
    point: float | None


class Written(NamedTuple):
    """One cell of a table as the page has it.

    ``sort``: what rows are sorted by, "" for a missing value; ``verdict``: sound, masked, inconclusive, or "";
    ``title``: what a pointer shows, such as the sample size.
    """

    text: str
    bounds: str = ""
    sort: str = ""
    bar: Bar | None = None
    verdict: str = ""
    title: str = ""


def written(table: Table) -> list[list[Written]]:
    """Return the table's cells, row by row."""
    scales = [(column, _scale(table, column)) for column in table.columns]
    return [
        [_write(measured(row.get(column.key)), column, scale) for column, scale in scales]
        for row in table.rows
    ]


def _scale(table: Table, column: Column) -> Scale:
    if column.kind in _SHARES:
        return 0.0, 1.0
    entries = [measured(row.get(column.key)) for row in table.rows]
    values = [value for entry in entries for value in (entry.value, entry.low, entry.high)]
    numbers = [value for value in values if isinstance(value, float | int)]
    low, high = min(0.0, *numbers, 0.0), max(numbers, default=1.0)
    return low, high if high > low else low + 1.0


def _write(entry: Measured, column: Column, scale: Scale) -> Written:
    value = entry.value
    if isinstance(value, str):
        named = [name for name in WORST_FIRST if name in value and column.kind == "verdict"]
        return Written(value, sort=value.casefold(), verdict=named[0] if named else "")
    title = "" if entry.n is None else f"n = {entry.n}"
    bounds, bar = "", None
    if entry.low is not None and entry.high is not None:
        bounds = f"{_number(entry.low, column)} – {_number(entry.high, column)}"
        bar = _bar(entry.low, entry.high, value, scale)
    if column.kind == "interval" or value is None:  # the value stands in a column of its own, or nowhere
        sort = "" if entry.low is None else f"{entry.low:.12g}"
        return Written(bounds or "–", sort=sort, bar=bar, title=title)
    text = _number(value, column) + (" %" if column.kind in _SHARES else "")
    return Written(text, bounds, f"{value:.12g}", bar, title=title)


def _bar(low: float, high: float, value: float | None, scale: Scale) -> Bar:
    """Return the interval from 0 to 100 on the scale; what lies beyond its ends is cut."""
    start, end = scale

    def place(number: float) -> float:
        return 100 * (min(max(number, start), end) - start) / (end - start)

    point = None if value is None else round(place(value), 2)
    return Bar(round(place(low), 2), round(place(high) - place(low), 2), point)


def _number(value: float, column: Column) -> str:
    if column.kind in _SHARES:
        return f"{round(100 * value, 1) + 0:.1f}"  # + 0 turns -0.0 into 0.0
    return f"{value + 0:,.0f}" if column.kind == "integer" else number(value)


def number(value: float | None) -> str:
    """Return a number in about four digits, thousands separated; a dash for None."""
    if not value:
        return "–" if value is None else "0"
    size = abs(value)
    if 1e-3 <= size < 10:
        return f"{value:.4g}"
    if size < 1e-3 or size >= 1e9:
        return f"{value:.3g}"
    return f"{value:,.0f}" if size >= 100 else f"{value:.1f}"


def plain(value: Any, depth: int = 0) -> str:
    """Return any JSON value as text; what is nested too deeply to be read is left out."""
    if value is None or isinstance(value, bool):
        return {None: "–", True: "yes", False: "no"}[value]
    if isinstance(value, dict | list) and depth >= _DEPTH:
        return "…"
    if isinstance(value, dict):
        return ", ".join(f"{key}: {plain(item, depth + 1)}" for key, item in value.items())[:TEXT_LENGTH]
    if isinstance(value, list):
        return ", ".join(plain(item, depth + 1) for item in value)[:TEXT_LENGTH]
    return f"{value:.6g}" if isinstance(value, float) else str(value)[:TEXT_LENGTH]


def flatten(value: dict[str, Any]) -> dict[str, str]:
    """Return nested settings as ``outer.inner`` to text, as many as a page can show; lists are one entry."""
    flat: dict[str, str] = {}
    waiting = [("", value, 0)]
    while waiting and len(flat) < _MOST_SETTINGS:
        prefix, found, depth = waiting.pop()
        inner = []
        for key, item in list(found.items())[:_MOST_SETTINGS]:
            name = f"{prefix}{key}"[:200]
            if isinstance(item, dict) and item and depth < _DEPTH:
                inner.append((f"{name}.", item, depth + 1))
            else:
                flat[name] = plain(item)
        waiting += reversed(inner)
    return flat
