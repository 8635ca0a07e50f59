"""A table of a study, and how it is written: Markdown, CSV, LaTeX and JSON."""

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal

import msgspec

from eval.core.records import Text

Kind = Literal["text", "percent", "number", "integer", "interval", "verdict"]
MOST_ENTRIES = 200_000
_LATEX = str.maketrans(
    {letter: rf"\{letter}" for letter in "&%_#${}"} | {"~": r"\textasciitilde{}", "\\": "/"}
)


class Measured(msgspec.Struct, frozen=True, omit_defaults=True):
    """A value with its 95 % interval and the number it is of, each None where it is unknown."""

    value: float | Text | None = None
    low: float | None = None
    high: float | None = None
    n: int | None = None

    def __post_init__(self) -> None:
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"low is {self.low:g}; expected at most {self.high:g}, the high of the interval")


Value = float | Text | None | Measured


class Column(msgspec.Struct, frozen=True):
    """A column: the key of its values in a row, its heading, and how values are written.

    ``percent`` values are shares from 0 to 1; of ``interval`` values only the bounds are written, shares too.
    """

    key: Text
    label: Text = ""
    kind: Kind = "text"


def columns(kind: Kind = "text", /, **labels: str) -> tuple[Column, ...]:
    """Return several columns of one kind, ``key="heading"`` each."""
    return tuple(Column(key, label, kind) for key, label in labels.items())


class Table(msgspec.Struct, frozen=True):
    """A table with a note on what a reader must know; ``files`` are relative paths by kind, where it is written."""

    id: Text = ""
    title: Text = ""
    note: Text = ""
    columns: Annotated[tuple[Column, ...], msgspec.Meta(max_length=200)] = ()
    rows: Annotated[tuple[dict[str, Value], ...], msgspec.Meta(max_length=20_000)] = ()
    files: dict[str, Text] = {}

    def __post_init__(self) -> None:
        if len({column.key for column in self.columns}) < len(self.columns):
            raise ValueError("two columns have one key; expected different ones")
        if (entries := len(self.rows) * len(self.columns)) > MOST_ENTRIES:
            raise ValueError(f"the table has {entries} entries; at most {MOST_ENTRIES} are read")


def filled(
    id: str, title: str, note: str, columns: tuple[Column, ...], rows: Sequence[dict[str, Value]]
) -> Table | None:
    """Return a table, None where it would have no rows."""
    return Table(id, title, note, columns, tuple(rows)) if rows else None


def markdown(table: Table) -> str:
    """Return the table in Markdown, with title and note."""
    lines = [f"### {table.title}", "", "| " + " | ".join(column.label for column in table.columns) + " |"]
    lines.append("|" + "".join("---|" if column.kind == "text" else "---:|" for column in table.columns))
    for row in table.rows:
        cells = (text(row.get(column.key), column.kind).replace("|", r"\|") for column in table.columns)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", table.note, ""]) if table.note else "\n".join([*lines, ""])


def comma_separated(table: Table) -> str:
    """Return the table as CSV; bounds and sample size take columns of their own, where any row has them."""
    parts = [(column, _parts(table, column)) for column in table.columns]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(f"{column.key}{suffix}" for column, suffixes in parts for suffix in suffixes)
    for row in table.rows:
        writer.writerow(
            _part(row.get(column.key), suffix) for column, suffixes in parts for suffix in suffixes
        )
    return buffer.getvalue()


def _parts(table: Table, column: Column) -> list[str]:
    found = [row.get(column.key) for row in table.rows]
    extra = ("_low", "_high", "_n")
    return ["", *(name for name in extra if any(_part(item, name) is not None for item in found))]


def _part(item: Value, suffix: str) -> Any:
    if isinstance(item, Measured):
        return getattr(item, suffix[1:] or "value")
    return None if suffix else item


def latex(table: Table) -> str:
    """Return the table for LaTeX with the package booktabs."""
    align = "".join("l" if column.kind in ("text", "verdict") else "r" for column in table.columns)
    lines = [r"\begin{table}", r"\centering", rf"\caption{{{_escape(table.title)}}}"]
    lines += [rf"\begin{{tabular}}{{{align}}}", r"\toprule"]
    lines.append(_line(column.label for column in table.columns))
    lines.append(r"\midrule")
    lines += [_line(text(row.get(column.key), column.kind) for column in table.columns) for row in table.rows]
    lines += [r"\bottomrule", r"\end{tabular}"]
    lines += [rf"\par\smallskip {{\footnotesize {_escape(table.note)}}}"] if table.note else []
    return "\n".join([*lines, r"\end{table}", ""])


def _line(cells: Iterable[str]) -> str:
    return " & ".join(_escape(cell) for cell in cells) + r" \\"


def _escape(words: str) -> str:
    return words.translate(_LATEX)


def text(item: Value, kind: Kind) -> str:
    """Return a value as tables in text show it."""
    if item is None:
        return "-"
    if not isinstance(item, Measured):
        return _plain(item, kind)
    low, high = item.low, item.high
    bounds = "" if low is None or high is None else f"[{_bound(low, kind)}, {_bound(high, kind)}]"
    if kind == "interval":
        return bounds or "-"
    return f"{_plain(item.value, kind)} {bounds}".strip()


def _plain(value: float | str | None, kind: Kind) -> str:
    if value is None:
        return "-"
    if isinstance(value, str) or kind in ("text", "verdict"):
        return str(value)
    if kind == "percent":
        return f"{100 * value:.1f} %"
    return f"{round(value):,}" if kind == "integer" else f"{value:.3g}"


def _bound(value: float, kind: Kind) -> str:
    return f"{100 * value:.1f}" if kind in ("percent", "interval") else f"{value:.3g}"


WRITERS = {"md": markdown, "csv": comma_separated, "tex": latex}
