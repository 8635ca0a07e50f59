"""How values are written in the page's tables: the text, the key to sort by, and the bar of an interval."""

from dataclasses import dataclass

from eval.report.study_file import Column, Entry, Table

_VERDICTS = ("masked", "inconclusive", "sound")  # the worst first: it gives a mixed verdict its colour
_WORDS = ("text", "verdict")
_SHARES = ("percent", "interval")


@dataclass(frozen=True)
class Bar:
    """An interval drawn from 0 to 100: where it starts, how wide it is, where the value lies, if there is one."""

    start: float
    width: float
    point: float | None


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
    if table.columns[k].kind in _SHARES:
        return 0.0, 1.0, True
    entries = [row[k] for row in table.rows]
    found = [
        value
        for entry in entries
        for value in (entry.value, entry.low, entry.high)
        if isinstance(value, float | int)
    ]
    low, high = min(found, default=0.0), max(found, default=1.0)
    return min(low, 0.0), high if high > min(low, 0.0) else min(low, 0.0) + 1.0, False


def _write(entry: Entry, column: Column, scale: tuple[float, float, bool]) -> Written:
    value, share = entry.value, scale[2]
    if isinstance(value, str):
        verdict = next((name for name in _VERDICTS if name in value), "") if column.kind == "verdict" else ""
        return Written(value, sort=value.casefold(), verdict=verdict)
    title = "" if entry.n is None else f"n = {entry.n}"
    bounds, bar = "", None
    if entry.low is not None and entry.high is not None:
        bounds = f"{_number(entry.low, column, share)} – {_number(entry.high, column, share)}"
        bar = _bar(entry.low, entry.high, value, scale)
    if column.kind == "interval" or value is None:  # the figure stands in a column of its own, or nowhere
        return Written(
            bounds or "–", sort="" if entry.low is None else f"{entry.low:.12g}", bar=bar, title=title
        )
    text = _number(value, column, share) + (" %" if share else "")
    return Written(text, bounds, f"{value:.12g}", bar, title=title)


def _bar(low: float, high: float, value: float | None, scale: tuple[float, float, bool]) -> Bar:
    """Return the interval from 0 to 100 on the scale; what lies beyond its ends is cut."""
    start, end, _ = scale
    at = [100 * (min(max(place, start), end) - start) / (end - start) for place in (low, high)]
    point = None if value is None else 100 * (min(max(value, start), end) - start) / (end - start)
    return Bar(round(at[0], 2), round(at[1] - at[0], 2), None if point is None else round(point, 2))


def _number(value: float, column: Column, share: bool) -> str:
    if share:
        return f"{round(100 * value, 1) + 0:.1f}"  # + 0 turns -0.0 into 0.0
    return f"{value + 0:,.0f}" if column.kind == "integer" else number(value)


def number(value: float | None) -> str:
    """Return a number in about four digits, thousands separated; a dash for None."""
    if value is None:
        return "–"
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 10:
        return f"{value:.4g}"
    if abs(value) < 1e-3 or abs(value) >= 1e9:
        return f"{value:.3g}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}"
