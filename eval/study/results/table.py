"""A table of a study, and how it is written: Markdown, CSV, LaTeX and JSON."""

import csv
import io
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

Kind = Literal["text", "percent", "number", "integer", "interval", "verdict"]
_LATEX = {
    "&": r"\&",
    "%": r"\%",
    "_": r"\_",
    "#": r"\#",
    "$": r"\$",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
}


@dataclass(frozen=True)
class Column:
    """A column: the key of its values in a row, its heading, and how values are written.

    ``percent`` values are shares from 0 to 1; ``interval`` values have ``low`` and ``high``, shares, too.
    """

    key: str
    label: str
    kind: Kind = "text"


@dataclass(frozen=True)
class Table:
    """A table with what a reader must know of it.

    A value is plain, None, or ``{"value", "low", "high", "n"}``: a figure, its 95 % interval and how many it is of.
    """

    id: str
    title: str
    note: str
    columns: tuple[Column, ...]
    rows: tuple[Mapping[str, Any], ...]

    def to_json(self, folder: str = "tables") -> dict[str, Any]:
        """Return the table as ``study.json`` holds it, with the names of its files."""
        return {
            "id": self.id,
            "title": self.title,
            "note": self.note,
            "columns": [asdict(column) for column in self.columns],
            "rows": [dict(row) for row in self.rows],
            "files": {kind: f"{folder}/{self.id}.{kind}" for kind in ("md", "csv", "tex")},
        }


def markdown(table: Table) -> str:
    """Return the table in Markdown, with title and note."""
    lines = [f"### {table.title}", "", "| " + " | ".join(column.label for column in table.columns) + " |"]
    lines.append("|" + "".join("---|" if column.kind == "text" else "---:|" for column in table.columns))
    for row in table.rows:
        cells = (text(row.get(column.key), column.kind).replace("|", r"\|") for column in table.columns)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", table.note, ""]) if table.note else "\n".join([*lines, ""])


def comma_separated(table: Table) -> str:
    """Return the table as CSV; a figure's interval and number take columns of their own, where any row has them."""
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
    extra = [
        name
        for name in ("low", "high", "n")
        if any(isinstance(item, Mapping) and item.get(name) is not None for item in found)
    ]
    return ["", *(f"_{name}" for name in extra)]


def _part(item: Any, suffix: str) -> Any:
    if isinstance(item, Mapping):
        return item.get(suffix[1:] or "value")
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


def _line(cells: Any) -> str:
    return " & ".join(_escape(cell) for cell in cells) + r" \\"


def _escape(words: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in words.replace("\\", "/"))


def text(item: Any, kind: Kind) -> str:
    """Return a value as tables in text show it."""
    if item is None:
        return "-"
    if not isinstance(item, Mapping):
        return _plain(item, kind)
    low, high = item.get("low"), item.get("high")
    bounds = "" if low is None or high is None else f"[{_bound(low, kind)}, {_bound(high, kind)}]"
    if kind == "interval":
        return bounds or "-"
    return f"{_plain(item.get('value'), kind)} {bounds}".strip()


def _plain(value: Any, kind: Kind) -> str:
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
