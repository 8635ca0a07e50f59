"""The file ``study.json``: one definition for the study, which writes it, and the report, which reads it."""

from typing import Annotated, Any, Literal

import msgspec

from eval.core.records import Text
from eval.study.results.table import MOST_ENTRIES, Table, Value

STUDY_FILE = "study.json"
Status = Literal["finished", "failed", "missing"]


class CellRecord(msgspec.Struct, frozen=True):
    """One trained and attacked model of the grid.

    Attributes:
        id: a name for people; hash: of its configuration.
        dataset, network, regime: what seeds are repetitions of.
        threats: as text.
        status: finished, failed or missing; error: why it failed.
        run: path of the run directory relative to the study; "" where the directory is the run itself.
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
        """Data set, network and regime."""
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


class StudyRecord(msgspec.Struct, frozen=True, kw_only=True):
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
    plots: Annotated[tuple[PlotRecord, ...], msgspec.Meta(max_length=500)] = msgspec.field(
        default=(), name="figures"
    )
    claims: Annotated[tuple[Text, ...], msgspec.Meta(max_length=200)] = msgspec.field(
        default=(), name="reading"
    )

    def table(self, id: str) -> Table | None:
        """Return the table of that name, None where there is none."""
        return next((table for table in self.tables if table.id == id), None)

    def rows(self, id: str) -> tuple[dict[str, Value], ...]:
        """Return the rows of a table, () where there is none."""
        table = self.table(id)
        return () if table is None else table.rows

    def __post_init__(self) -> None:
        if (entries := sum(len(table.columns) * len(table.rows) for table in self.tables)) > MOST_ENTRIES:
            raise ValueError(f"the tables have {entries} entries; at most {MOST_ENTRIES} are read")
