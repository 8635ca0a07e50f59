"""The file ``study.json`` and the tables in it, as the study writes and the report reads them; tables as text, too."""

import csv
import io
import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec

from eval.core.records import Text
from eval.core.stats import mean_interval

STUDY_FILE = "study.json"
MOST_ENTRIES = 200_000
Kind = Literal["text", "percent", "number", "integer", "interval", "verdict"]
Status = Literal["finished", "failed", "missing"]
_LETTERS = {letter: rf"\{letter}" for letter in "&%_#${}"} | {"~": r"\textasciitilde{}", "\\": "/"}
_LATEX = str.maketrans(_LETTERS)


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
Row = dict[str, Value]


class Column(msgspec.Struct, frozen=True):
    """A column: the key of its values in a row, its heading, and how values are written.

    ``percent`` values are shares from 0 to 1; of ``interval`` values only the bounds are written, shares too.
    """

    key: Text
    label: Text = ""
    kind: Kind = "text"

    @property
    def is_number(self) -> bool:
        """Whether the column is right-aligned."""
        return self.kind not in ("text", "verdict")


class Table(msgspec.Struct, frozen=True):
    """A table with a note on what a reader must know; ``files`` are relative paths by kind, where it is written."""

    id: Text = ""
    title: Text = ""
    note: Text = ""
    columns: Annotated[tuple[Column, ...], msgspec.Meta(max_length=200)] = ()
    rows: Annotated[tuple[Row, ...], msgspec.Meta(max_length=20_000)] = ()
    files: dict[str, Text] = {}

    def __post_init__(self) -> None:
        if len({column.key for column in self.columns}) < len(self.columns):
            raise ValueError("two columns have one key; expected different ones")
        if (entries := len(self.rows) * len(self.columns)) > MOST_ENTRIES:
            raise ValueError(f"the table has {entries} entries; at most {MOST_ENTRIES} are read")


class CellRecord(msgspec.Struct, frozen=True):
    """One trained and attacked model of the grid: a name for people, and the hash of its configuration.

    ``error``: why it failed; ``run``: the run directory relative to the study, "" where that is the run itself.
    """

    id: Text = ""
    hash: Text = ""
    dataset: Text = ""
    network: Text = ""
    regime: Text = ""
    seed: int | Text | None = None
    threats: Annotated[tuple[Text, ...], msgspec.Meta(max_length=50)] = ()
    status: Status = "missing"
    error: Text | None = None
    run: Text = ""

    @property
    def group(self) -> tuple[str, str, str]:
        """Data set, network and regime: what seeds are repetitions of."""
        return self.dataset, self.network, self.regime

    @property
    def title(self) -> str:
        """For headings: data set, network and regime, as far as they are known."""
        return " · ".join(part for part in self.group if part) or self.id or self.hash

    @property
    def name(self) -> str:
        """The title with the seed."""
        return self.title if self.seed in (None, "") else f"{self.title} · seed {self.seed}"


class PlotRecord(msgspec.Struct, frozen=True):
    """A PNG in the directory, with a title and what a reader who does not see it should know."""

    id: Text = ""
    title: Text = ""
    file: Text = ""
    alt: Text = ""


class StudyRecord(
    msgspec.Struct, frozen=True, kw_only=True, rename={"plots": "figures", "claims": "reading"}
):
    """All that a study reports; ``figures`` and ``reading`` are the file's names for plots and claims."""

    format: int
    name: Text = ""
    created: Text = ""
    updated: Text = ""
    seeds: list[int] = []
    versions: dict[str, Any] = {}
    machine: dict[str, Any] = {}
    config: dict[str, Any] = {}
    cells: Annotated[tuple[CellRecord, ...], msgspec.Meta(max_length=5_000)] = ()
    tables: Annotated[tuple[Table, ...], msgspec.Meta(max_length=200)] = ()
    plots: Annotated[tuple[PlotRecord, ...], msgspec.Meta(max_length=500)] = ()
    claims: Annotated[tuple[Text, ...], msgspec.Meta(max_length=20_000)] = ()

    def rows(self, id: str) -> tuple[Row, ...]:
        """Return the rows of the table of that name, () where there is none."""
        return next((table.rows for table in self.tables if table.id == id), ())

    def __post_init__(self) -> None:
        if (entries := sum(len(table.columns) * len(table.rows) for table in self.tables)) > MOST_ENTRIES:
            raise ValueError(f"the tables have {entries} entries; at most {MOST_ENTRIES} are read")


def columns(kind: Kind = "text", /, **labels: str) -> tuple[Column, ...]:
    """Return several columns of one kind, ``key="heading"`` each."""
    return tuple(Column(key, label, kind) for key, label in labels.items())


def measured(value: Value) -> Measured:
    """Return a value of a table with its interval, where it has one."""
    return value if isinstance(value, Measured) else Measured(value)


def over_seeds(values: Sequence[float], most: float = math.inf) -> Measured:
    """Return the mean with Student's 95 % t-interval, cut to [0, ``most``]; no interval for one value."""
    mean, interval, n = mean_interval(values)
    low, high = (None, None) if interval is None else (max(0.0, interval.low), min(most, interval.high))
    return Measured(mean, low, high, n)


def _texts(table: Table) -> list[list[str]]:
    """Return headings, then row by row every value as text."""
    rows = [[text(row.get(column.key), column.kind) for column in table.columns] for row in table.rows]
    return [[column.label for column in table.columns], *rows]


def markdown(table: Table) -> str:
    """Return the table in Markdown, with title and note."""
    head, *rows = _texts(table)
    rows = [[cell.replace("|", r"\|") for cell in row] for row in rows]
    lines = [f"| {' | '.join(row)} |" for row in (head, *rows)]
    rule = "|" + "".join("---|" if column.kind == "text" else "---:|" for column in table.columns)
    note = [table.note, ""] if table.note else []
    return "\n".join([f"### {table.title}", "", lines[0], rule, *lines[1:], "", *note])


def comma_separated(table: Table) -> str:
    """Return the table as CSV; bounds and sample size take columns of their own, where any row has them."""
    rows = [{column.key: measured(row.get(column.key)) for column in table.columns} for row in table.rows]
    parts = [
        (column.key, part)
        for column in table.columns
        for part in ("value", "low", "high", "n")
        if part == "value" or any(getattr(row[column.key], part) is not None for row in rows)
    ]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(key if part == "value" else f"{key}_{part}" for key, part in parts)
    writer.writerows([getattr(row[key], part) for key, part in parts] for row in rows)
    return buffer.getvalue()


def latex(table: Table) -> str:
    """Return the table for LaTeX with the package booktabs."""
    align = "".join("r" if column.is_number else "l" for column in table.columns)
    escaped = ([cell.translate(_LATEX) for cell in row] for row in _texts(table))
    head, *rows = (" & ".join(row) + r" \\" for row in escaped)
    lines = [r"\begin{table}", r"\centering", rf"\caption{{{table.title.translate(_LATEX)}}}"]
    lines += [rf"\begin{{tabular}}{{{align}}}", r"\toprule", head, r"\midrule", *rows]
    lines += [r"\bottomrule", r"\end{tabular}"]
    lines += [rf"\par\smallskip {{\footnotesize {table.note.translate(_LATEX)}}}"] if table.note else []
    return "\n".join([*lines, r"\end{table}", ""])


def text(item: Value, kind: Kind) -> str:
    """Return a value as tables in text show it."""
    found, bounds = measured(item), ""
    if found.low is not None and found.high is not None:
        shares = kind in ("percent", "interval")
        low, high = (f"{100 * end:.1f}" if shares else f"{end:.3g}" for end in (found.low, found.high))
        bounds = f"[{low}, {high}]"
    if kind == "interval":
        return bounds or "-"
    value = found.value
    if value is None or isinstance(value, str) or kind in ("text", "verdict"):
        shown = "-" if value is None else str(value)
    elif kind == "percent":
        shown = f"{100 * value:.1f} %"
    else:
        shown = f"{round(value):,}" if kind == "integer" else f"{value:.3g}"
    return f"{shown} {bounds}" if bounds else shown


WRITERS = {"md": markdown, "csv": comma_separated, "tex": latex}
