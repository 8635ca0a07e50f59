"""Writing what a study leaves for readers: ``study.json``, tables, plots."""

import contextlib
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import torch

from agents.common.run_dir import RunDir, versions
from envs.errors import InputError
from envs.files import write_atomic
from eval.core.plot_style import save_figure
from eval.core.records import FORMAT, read_record, write_record
from eval.study.plan.cells import Cell
from eval.study.plan.config import Grid
from eval.study.results import accuracy_tables as accuracies
from eval.study.results import model_tables as models
from eval.study.results.cell_results import read_cells, status_of
from eval.study.results.claims import all_sentences
from eval.study.results.equal_accuracy import equal_accuracy_table, learning_picture
from eval.study.results.front import front_picture, front_table
from eval.study.results.overview import Overview
from eval.study.results.plots import attacks_picture, tradeoff_picture, trajectory_picture, transfer_picture
from eval.study.results.record import STUDY_FILE, WRITERS, CellRecord, PlotRecord, StudyRecord, Table

_TABLES: tuple[Callable[[Overview], Table | None], ...] = (
    *(accuracies.clean_table, accuracies.pgd_table, accuracies.autoattack_table, accuracies.query_table),
    *(accuracies.other_table, models.transfer_table, models.mechanism_table, models.trajectory_table),
    *(models.audit_table, accuracies.tests_table, accuracies.cost_table, front_table, equal_accuracy_table),
)
_PICTURES = (attacks_picture, tradeoff_picture, transfer_picture, trajectory_picture)


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold a study's directory, made where it is missing, for this process alone.

    Raises InputError where another process works on it, or it cannot be made.
    """
    try:
        (directory / "cells").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make {directory}: {error.strerror}; choose another --out") from None
    with RunDir(directory).lock():
        yield


class StudyFile:
    """The cells in ``study.json``, held in memory, so that one that ends does not cost a reading of all.

    Tables and plots in the file stay as they are.
    """

    def __init__(self, grid: Grid, cells: Sequence[Cell], directory: Path) -> None:
        self.grid, self.directory = grid, directory
        self.cells = {cell.hash: _cell(grid, cell, directory) for cell in cells}
        self.written, self.cost = 0.0, 0.0

    def update(self, cell: Cell) -> None:
        """Read one cell's folder again; write the file if it changed, at most a twentieth of the time."""
        before = self.cells[cell.hash]
        self.cells[cell.hash] = _cell(self.grid, cell, self.directory)
        if self.cells[cell.hash] != before and time.monotonic() - self.written >= 20 * self.cost:
            self.write()

    def write(self) -> dict[str, int]:
        """Write the file; return the number of cells per status."""
        start = time.monotonic()
        write_record(self.directory / STUDY_FILE, _record(self.grid, self.cells.values(), self.directory))
        self.written = time.monotonic()
        self.cost = self.written - start
        found = [cell.status for cell in self.cells.values()]
        return {status: found.count(status) for status in ("finished", "failed", "missing")}


def write_study(grid: Grid, cells: Sequence[Cell], directory: Path) -> list[Table]:
    """Make tables, plots and claims from what the cells left, and write everything; return the tables."""
    overview = Overview(grid, read_cells(grid, cells, directory))
    tables: list[Table] = []
    plots: list[PlotRecord] = []
    if overview.cells:
        made = filter(None, (make(overview) for make in _TABLES))
        tables = [_write_table(table, directory) for table in made]
        plots = list(_write_plots(overview, directory))
    record = _record(grid, [_cell(grid, cell, directory) for cell in cells], directory)
    found: dict[str, Any] = {"tables": tables, "plots": plots, "claims": all_sentences(overview)}
    found = {name: tuple(items) for name, items in found.items()}
    write_record(directory / STUDY_FILE, msgspec.structs.replace(record, **found))
    return tables


def _record(grid: Grid, cells: Iterable[CellRecord], directory: Path) -> StudyRecord:
    """Return the content of ``study.json``; date of creation, tables, plots and claims are those written before."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    old = StudyRecord(format=FORMAT)
    with contextlib.suppress(InputError):
        old = read_record(directory / STUDY_FILE, StudyRecord)
    state: dict[str, Any] = {"name": grid.name, "seeds": list(grid.seeds), "config": grid.to_dict()}
    state |= {"created": old.created or now, "updated": now, "cells": tuple(cells)}
    return msgspec.structs.replace(old, versions=versions(), machine=machine(), **state)


def machine() -> dict[str, Any]:
    """Return processor, cores, GPU and system, as plain JSON."""
    processor = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return {
        "cpu": processor,
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": f"{platform.system()} {platform.machine()}",
    }


def _cell(grid: Grid, cell: Cell, directory: Path) -> CellRecord:
    place = {name: getattr(cell, name) for name in ("id", "hash", "dataset", "network", "regime", "seed")}
    threats = tuple(str(threat) for threat in grid.threats)
    state = status_of(grid, cell, directory)._asdict()
    return CellRecord(**place, threats=threats, **state, run=f"cells/{cell.hash}/run")


def _write_table(table: Table, directory: Path) -> Table:
    """Write one table in every form; return it with the names of its files."""
    folder = directory / "tables"
    folder.mkdir(exist_ok=True)
    for kind, write in WRITERS.items():
        write_atomic(folder / f"{table.id}.{kind}", write(table))
    written = msgspec.structs.replace(table, files={kind: f"tables/{table.id}.{kind}" for kind in WRITERS})
    write_record(folder / f"{table.id}.json", written)
    return written


def _write_plots(overview: Overview, directory: Path) -> Iterator[PlotRecord]:
    (directory / "figures").mkdir(exist_ok=True)
    for makers in (_PICTURES, (front_picture, learning_picture)):
        for picture in (make(overview, group) for group in overview.groups for make in makers):
            if picture is not None:
                file = f"figures/{picture.id}.png"
                save_figure(directory / file, picture.figure)
                yield PlotRecord(picture.id, picture.title, file, picture.alt)
