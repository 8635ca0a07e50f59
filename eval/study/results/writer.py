"""Writing what a study leaves for readers: ``study.json``, tables, plots."""

import contextlib
import os
import platform
import time
from collections.abc import Callable, Iterator
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
from eval.study.results import tables
from eval.study.results.cell_results import cell_record, read_cells
from eval.study.results.claims import all_sentences
from eval.study.results.equal_accuracy import equal_accuracy_table, learning_picture
from eval.study.results.front import front_picture, front_table
from eval.study.results.overview import Overview
from eval.study.results.plots import attacks_picture, tradeoff_picture, trajectory_picture, transfer_picture
from eval.study.results.record import STUDY_FILE, WRITERS, PlotRecord, StudyRecord, Table
from eval.study.run.jobs import Study

_TABLES: tuple[Callable[[Overview], Table | None], ...] = (
    *(tables.clean_table, tables.pgd_table, tables.autoattack_table, tables.query_table, tables.other_table),
    *(tables.transfer_table, tables.mechanism_table, tables.trajectory_table, tables.audit_table),
    *(tables.tests_table, tables.cost_table, front_table, equal_accuracy_table),
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

    def __init__(self, study: Study) -> None:
        self.study = study
        self.cells = {cell.hash: cell_record(study, cell) for cell in study.cells}
        self.written, self.cost = 0.0, 0.0

    def update(self, cell: Cell) -> None:
        """Read one cell's folder again; write the file if it changed, at most a twentieth of the time."""
        before = self.cells[cell.hash]
        self.cells[cell.hash] = cell_record(self.study, cell)
        if self.cells[cell.hash] != before and time.monotonic() - self.written >= 20 * self.cost:
            self.write()

    def write(self, **found: Any) -> dict[str, int]:
        """Write the file, with the tables, plots and claims that were ``found``; return the number of cells per status.

        The date of creation, and what is not among those found, are as they were written before.
        """
        start = time.monotonic()
        now = datetime.now(UTC).isoformat(timespec="seconds")
        path, grid = self.study.directory / STUDY_FILE, self.study.grid
        old = StudyRecord(format=FORMAT)
        with contextlib.suppress(InputError):
            old = read_record(path, StudyRecord)
        state: dict[str, Any] = {"name": grid.name, "seeds": list(grid.seeds), "config": grid.to_dict()}
        state |= {"created": old.created or now, "updated": now, "cells": tuple(self.cells.values())}
        state |= {"versions": versions(), "machine": machine()}
        write_record(path, msgspec.structs.replace(old, **state, **found))
        self.written = time.monotonic()
        self.cost = self.written - start
        statuses = [cell.status for cell in self.cells.values()]
        return {status: statuses.count(status) for status in ("finished", "failed", "missing")}


def write_study(study: Study) -> list[Table]:
    """Make tables, plots and claims from what the cells left, and write everything; return the tables."""
    overview = Overview(study.grid, read_cells(study))
    made: list[Table] = []
    plots: list[PlotRecord] = []
    if overview.cells:
        found = filter(None, (make(overview) for make in _TABLES))
        made = [_write_table(table, study.directory) for table in found]
        plots = list(_write_plots(overview, study.directory))
    claims = tuple(all_sentences(overview))
    StudyFile(study).write(tables=tuple(made), plots=tuple(plots), claims=claims)
    return made


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
        drawn = (make(overview, group) for group in overview.groups for make in makers)
        for plot, figure in filter(None, drawn):
            save_figure(directory / plot.file, figure)
            yield plot
