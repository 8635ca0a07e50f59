"""Writing what a study leaves for readers: ``study.json``, tables, figures."""

import contextlib
import os
import platform
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from agents.common.run_dir import RunDir, versions
from envs.errors import InputError
from envs.files import read_json, write_atomic, write_json
from eval.core.plot_style import save_figure
from eval.study.plan.cells import Cell
from eval.study.plan.config import Grid
from eval.study.results.accuracy_tables import all_tables
from eval.study.results.cell_results import observe, status_of
from eval.study.results.claims import all_sentences
from eval.study.results.figures import all_pictures
from eval.study.results.overview import Board
from eval.study.results.table import WRITERS, Table

FORMAT = 1
STUDY_FILE = "study.json"


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold a study's directory, made where it is missing, for this process alone.

    Raises:
        InputError: another process works on it, or it cannot be made.
    """
    try:
        (directory / "cells").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make {directory}: {error.strerror}; choose another --out") from None
    with RunDir(directory).lock():
        yield


def write_cells(grid: Grid, cells: Sequence[Cell], directory: Path) -> dict[str, int]:
    """Bring the cells in ``study.json`` up to date, tables and figures as they are; return the number per status."""
    content = _head(grid, directory)
    content["cells"] = [_cell(grid, cell, directory) for cell in cells]
    for key in ("tables", "figures", "reading"):
        content.setdefault(key, [])
    write_json(directory / STUDY_FILE, content)
    found = [cell["status"] for cell in content["cells"]]
    return {status: found.count(status) for status in ("finished", "failed", "missing")}


def write_study(grid: Grid, cells: Sequence[Cell], directory: Path) -> list[Table]:
    """Make tables, figures and reading from what the cells left, and write everything; return the tables."""
    board = Board(grid, observe(grid, cells, directory))
    content = _head(grid, directory)
    content["cells"] = [_cell(grid, cell, directory) for cell in cells]
    tables: list[Table] = []
    content |= {"tables": [], "figures": [], "reading": []}
    if board.observations:
        tables = all_tables(board)
        content["tables"] = [_write_table(table, directory) for table in tables]
        content["figures"] = _write_figures(board, directory)
        content["reading"] = all_sentences(board)
    write_json(directory / STUDY_FILE, content)
    return tables


def _head(grid: Grid, directory: Path) -> dict[str, Any]:
    """Return everything of ``study.json`` but cells and figures; the date of creation and old figures are kept."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    old: dict[str, Any] = {}
    with contextlib.suppress(InputError):
        found = read_json(directory / STUDY_FILE)
        old = found if isinstance(found, dict) and found.get("format") == FORMAT else {}
    kept: dict[str, Any] = {key: old[key] for key in ("tables", "figures", "reading") if key in old}
    head = {
        "format": FORMAT,
        "name": grid.name,
        "created": old.get("created", now),
        "updated": now,
        "seeds": list(grid.seeds),
        "versions": versions(),
        "machine": machine(),
        "config": grid.to_dict(),
    }
    return head | kept


def machine() -> dict[str, Any]:
    """Return processor, cores, GPU and system, as plain JSON."""
    return {
        "cpu": _processor(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": f"{platform.system()} {platform.machine()}",
    }


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _cell(grid: Grid, cell: Cell, directory: Path) -> dict[str, Any]:
    state = status_of(grid, cell, directory)
    return {
        "id": cell.id,
        "hash": cell.hash,
        "dataset": cell.dataset,
        "network": cell.network,
        "regime": cell.regime,
        "seed": cell.seed,
        "threats": [str(threat) for threat in grid.threats],
        "status": state.status,
        "error": state.error,
        "run": f"cells/{cell.hash}/run",
    }


def _write_table(table: Table, directory: Path) -> dict[str, Any]:
    folder = directory / "tables"
    folder.mkdir(exist_ok=True)
    for kind, write in WRITERS.items():
        write_atomic(folder / f"{table.id}.{kind}", write(table))
    content = table.to_json()
    write_json(folder / f"{table.id}.json", content)
    return content


def _write_figures(board: Board, directory: Path) -> list[dict[str, str]]:
    folder = directory / "figures"
    folder.mkdir(exist_ok=True)
    written = []
    for picture in all_pictures(board):
        file = f"figures/{picture.id}.png"
        save_figure(directory / file, picture.figure)
        written.append({"id": picture.id, "title": picture.title, "file": file, "alt": picture.alt})
    return written
