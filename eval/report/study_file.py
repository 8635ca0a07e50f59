"""What a report shows: a study's cells, tables, figures and sentences, checked as they are read."""

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from envs.errors import InputError
from eval.report.safe_folder import Folder
from eval.report.schema import TEXT_LENGTH, Fields, describe, finite, plain

FORMAT = 1
STUDY_FILE = "study.json"
Kind = Literal["text", "percent", "number", "integer", "interval", "verdict"]
Status = Literal["finished", "failed", "missing"]
_MOST_CELLS = 5_000
_MOST_TABLES = 200
_MOST_ROWS = 20_000
_MOST_COLUMNS = 200
_MOST_ENTRIES = 200_000
_MOST_FIGURES = 500


@dataclass(frozen=True)
class Entry:
    """One cell of a table: a number or a text, with an interval and a sample size where there are such."""

    value: float | str | None = None
    low: float | None = None
    high: float | None = None
    n: int | None = None


@dataclass(frozen=True)
class Column:
    """A column of a table: where its values are, what it is called, how they are written.

    ``percent`` values are shares; of ``interval`` values, only the bounds are written, which are shares too.
    """

    key: str
    label: str
    kind: Kind = "text"


@dataclass(frozen=True)
class Table:
    """A table with its caption and a note; one entry per row and column."""

    id: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Entry, ...], ...]
    note: str = ""


@dataclass(frozen=True)
class Figure:
    """A PNG in the directory, with a title and what a reader who does not see it should know."""

    id: str
    title: str
    file: str
    alt: str


@dataclass(frozen=True)
class Cell:
    """One trained and attacked model of the grid.

    Attributes:
        id: as the study calls it.
        hash: of its configuration.
        group: data set, network and regime: what seeds are repetitions of.
        seed: of the training.
        threats: as text.
        status: finished, failed or missing.
        error: why it failed.
        run: relative path of the run directory.
        gallery: relative path of the adversarial images.
    """

    id: str
    hash: str
    group: tuple[str, str, str]
    seed: str
    threats: tuple[str, ...]
    status: Status
    error: str
    run: str
    gallery: str

    @property
    def title(self) -> str:
        """For headings: data set, network and regime, as far as they are known."""
        return " · ".join(part for part in self.group if part) or self.id

    @property
    def name(self) -> str:
        """The title with the seed."""
        return f"{self.title} · seed {self.seed}" if self.seed else self.title


@dataclass(frozen=True)
class Study:
    """All that a report is made of; every part may be empty."""

    name: str
    created: str = ""
    updated: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    machine: dict[str, str] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    cells: tuple[Cell, ...] = ()
    tables: tuple[Table, ...] = ()
    figures: tuple[Figure, ...] = ()
    reading: tuple[str, ...] = ()


def read_study(folder: Folder) -> Study:
    """Read and check ``study.json``.

    Raises:
        InputError: it is missing, damaged, of another format, or has values of wrong types.
    """
    fields = Fields(folder.json(STUDY_FILE), STUDY_FILE)
    if fields.value.get("format") != FORMAT:
        raise fields.error("format", f"{FORMAT}; the file was written by another version")
    machine = fields.value.get("machine")
    tables = tuple(_table(item) for item in fields.objects("tables", _MOST_TABLES))
    entries = sum(len(table.columns) * len(table.rows) for table in tables)
    if entries > _MOST_ENTRIES:
        raise InputError(
            f"{STUDY_FILE}: the tables have {entries} entries; at most {_MOST_ENTRIES} are shown"
        )
    return Study(
        name=fields.text("name", folder.path.resolve().name),
        created=fields.text("created"),
        updated=fields.text("updated"),
        versions=_words(fields.mapping("versions")),
        machine=_words(machine) if isinstance(machine, dict) else {"machine": plain(machine or "")},
        config=fields.mapping("config"),
        cells=tuple(_cell(item) for item in fields.objects("cells", _MOST_CELLS)),
        tables=tables,
        figures=tuple(_figure(item) for item in fields.objects("figures", _MOST_FIGURES)),
        reading=tuple(_sentence(item) for item in fields.items("reading", 200)),
    )


def _words(mapping: dict[str, Any]) -> dict[str, str]:
    return {str(key): plain(value) for key, value in mapping.items()}


def _sentence(value: Any) -> str:
    if not isinstance(value, str) or len(value) > TEXT_LENGTH:
        raise InputError(f"{STUDY_FILE}: reading holds {describe(value)}; expected sentences")
    return value


def _cell(fields: Fields) -> Cell:
    status = fields.text("status", "missing")
    if status not in get_args(Status):
        raise fields.error("status", " or ".join(get_args(Status)))
    digest = fields.text("hash")
    run = fields.text("run")
    return Cell(
        id=fields.text("id", digest),
        hash=digest,
        group=(fields.text("dataset"), fields.text("network"), fields.text("regime")),
        seed=fields.text("seed"),
        threats=tuple(plain(threat) for threat in fields.items("threats", 50)),
        status=status,  # type: ignore[arg-type]  # compared with all of them above
        error=fields.text("error"),
        run=run,
        gallery=f"{run.rstrip('/').rpartition('/')[0]}/gallery.npz".lstrip("/"),
    )


def _figure(fields: Fields) -> Figure:
    title = fields.text("title", fields.text("id", "figure"))
    return Figure(fields.text("id"), title, fields.text("file"), fields.text("alt", title))


def _table(fields: Fields) -> Table:
    columns = tuple(_column(item) for item in fields.objects("columns", _MOST_COLUMNS))
    if len({column.key for column in columns}) < len(columns):
        raise InputError(f"{fields.where}: two columns have one key; expected different ones")
    raw = fields.objects("rows", _MOST_ROWS)
    if len(raw) * len(columns) > _MOST_ENTRIES:
        raise InputError(
            f"{fields.where} has {len(raw) * len(columns)} entries; at most {_MOST_ENTRIES} are shown"
        )
    rows = tuple(tuple(_entry(row, column) for column in columns) for row in raw)
    title = fields.text("title", fields.text("id", "Table"))
    return Table(fields.text("id"), title, columns, rows, fields.text("note"))


def _column(fields: Fields) -> Column:
    key, kind = fields.text("key"), fields.text("kind", "text")
    if kind not in get_args(Kind):
        raise fields.error("kind", " or ".join(get_args(Kind)))
    return Column(key, fields.text("label", key), kind)  # type: ignore[arg-type]  # compared above


def _entry(row: Fields, column: Column) -> Entry:
    """Return what ``row`` has under the column; a number where its kind wants one."""
    found = row.value.get(column.key)
    if isinstance(found, dict):
        inner = Fields(found, f"{row.where}: {column.key}")
        size = inner.number("n")
        low, high = inner.number("low"), inner.number("high")
        if low is not None and high is not None and low > high:
            raise inner.error("low", f"at most {high}")
        return Entry(_scalar(inner, "value", column), low, high, None if size is None else int(size))
    return Entry(_scalar(row, column.key, column))


def _scalar(fields: Fields, key: str, column: Column) -> float | str | None:
    found = fields.value.get(key)
    if column.kind in ("text", "verdict"):
        return plain(found) if isinstance(found, bool | list) else fields.text(key) or None
    if found is None or isinstance(found, str):  # such as "not run", in words
        return fields.text(key) or None
    number = finite(found)
    if number is None:
        raise fields.error(key, "a finite number, a text or null")
    return number
