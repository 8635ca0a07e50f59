"""How values are written in the page's tables: the text, the key to sort by, and the bar of an interval."""

from dataclasses import dataclass

from eval.reporting.study import Column, Entry, Table

_VERDICTS = ("masked", "inconclusive", "sound")  # the worst first: it gives a mixed verdict its colour
_WORDS = ("text", "verdict")


@dataclass(frozen=True)
class Bar:
    """An interval drawn from 0 to 100: where it starts, how wide it is, where the value lies."""

    start: float
    width: float
    point: float


@dataclass(frozen=True)
class Written:
    """One cell of a table as the page has it.

    Attributes:
        text: what is read.
        bounds: the interval, as text.
        sort: what rows are sorted by, "" for a missing value.
        bar: the interval, drawn.
        verdict: sound, masked, inconclusive, or "".
        title: what a pointer shows, such as the sample size.
    """

    text: str
    bounds: str = ""
    sort: str = ""
    bar: Bar | None = None
    verdict: str = ""
    title: str = ""


def written(table: Table) -> list[list[Written]]:
    """Return the table's cells, row by row."""
    scales = [_scale(table, k) for k in range(len(table.columns))]
    return [
        [
            _write(entry, column, scale)
            for entry, column, scale in zip(row, table.columns, scales, strict=True)
        ]
        for row in table.rows
    ]


def is_number(column: Column) -> bool:
    """Whether a column is right-aligned."""
    return column.kind not in _WORDS


def _scale(table: Table, k: int) -> tuple[float, float, bool]:
    """Return the ends of the bars of a column, and whether its values are shares."""
    column = table.columns[k]
    found = [
        value
        for row in table.rows
        for value in (row[k].value, row[k].low, row[k].high)
        if isinstance(value, float | int)
    ]
    if column.kind == "percent" or (column.kind == "interval" and all(0 <= value <= 1 for value in found)):
        return 0.0, 1.0, True
    low, high = min(found, default=0.0), max(found, default=1.0)
    return min(low, 0.0), high if high > min(low, 0.0) else min(low, 0.0) + 1.0, False


def _write(entry: Entry, column: Column, scale: tuple[float, float, bool]) -> Written:
    start, end, share = scale
    value = entry.value
    if value is None:
        return Written("–")
    if isinstance(value, str):
        verdict = next((name for name in _VERDICTS if name in value), "") if column.kind == "verdict" else ""
        return Written(value, sort=value.casefold(), verdict=verdict)
    bounds, bar = "", None
    if entry.low is not None and entry.high is not None:
        bounds = f"{_number(entry.low, column, share)} – {_number(entry.high, column, share)}"
        places = [
            100 * (min(max(at, start), end) - start) / (end - start) for at in (entry.low, entry.high, value)
        ]
        bar = Bar(round(places[0], 2), round(places[1] - places[0], 2), round(places[2], 2))
    text = _number(value, column, share) + (" %" if share else "")
    return Written(text, bounds, f"{value:.12g}", bar, title="" if entry.n is None else f"n = {entry.n}")


def _number(value: float, column: Column, share: bool) -> str:
    if share:
        return f"{round(100 * value, 1) + 0:.1f}"  # + 0 turns -0.0 into 0.0
    return f"{value + 0:,.0f}" if column.kind == "integer" else number(value)


def number(value: float | None) -> str:
    """Return a number in at most three digits after the first, thousands separated; a dash for None."""
    if value is None:
        return "–"
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 10:
        return f"{value:.4g}"
    if abs(value) < 1e-3 or abs(value) >= 1e9:
        return f"{value:.3g}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}"
