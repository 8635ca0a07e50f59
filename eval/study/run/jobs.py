"""Jobs of a study, their outcomes, and the trained model that a job works on."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from agents.common.run_dir import device_name, resolve_device
from eval.core.targets import Samples, Target, load_samples, load_target
from eval.study.plan.cells import Cell, CellFolder, digest
from eval.study.plan.config import Grid


@dataclass(frozen=True)
class Place:
    """Where a study works: a ``directory`` on a file system that all workers share, and where data sets lie.

    ``device``: auto, cpu, cuda or cuda:N; ``batch_size``: most images at once in attacks, None chooses.
    """

    directory: Path
    device: str = "auto"
    data_root: Path | None = None
    batch_size: int | None = None


@dataclass(frozen=True, eq=False)
class Job:
    """One piece of work for an engine: a stage (``train``, ``shard``, ``examine`` or ``compare``) of a cell.

    ``peers`` are the cells that ``compare`` may look at; with ``shard`` (k, n), that stage attacks the k-th of n parts
    of the images.
    """

    stage: str
    cell: Cell
    grid: Grid
    place: Place
    peers: tuple[Cell, ...] = ()
    shard: tuple[int, int] = (0, 1)

    @property
    def label(self) -> str:
        """For progress lines."""
        part = f" {self.shard[0] + 1}/{self.shard[1]}" if self.stage == "shard" else ""
        return f"{self.cell.id}: {self.stage}{part}"


@dataclass(frozen=True)
class Outcome:
    """How a job ended, after how many seconds: with an error of one line, or None where it succeeded.

    ``retry`` says whether another attempt may succeed: the error is not the user's.
    """

    error: str | None = None
    retry: bool = False
    seconds: float = 0.0


class TrainedModel:
    """A trained cell on the device, with its images, loaded when first asked for."""

    def __init__(self, job: Job) -> None:
        self.job, self.cell, self.grid, self.place = job, job.cell, job.grid, job.place
        self.folder = CellFolder.open(job.place.directory, job.cell.hash)

    @cached_property
    def target(self) -> Target:
        """The classifier of the run."""
        return self.load(self.cell, self.folder)

    def load(self, cell: Cell, folder: CellFolder) -> Target:
        """Return the classifier of any cell, on the device."""
        network = import_path(cell)
        return load_target(str(folder.run.path), resolve_device(self.place.device), network)

    @cached_property
    def samples(self) -> Samples:
        """The attacked images."""
        return self.images(self.grid.images)

    def images(self, n: int) -> Samples:
        """Return ``n`` test images, those of a smaller number being part of a larger one's."""
        return load_samples(self.target, n=n, data_root=self.place.data_root)

    def do(self, step: str, key: Any, work: Callable[[], dict[str, Any] | None]) -> None:
        """Do ``work`` and note what it returns, unless it is done with this ``key`` already."""
        name = digest([self.folder.steps.get("train", {}).get("key"), key])
        if not self.folder.has(step, name):
            start = time.perf_counter()
            facts = work() or {}
            facts |= {"seconds": time.perf_counter() - start, "device": device_name(self.target.device)}
            self.folder.note(self.cell, step, name, **facts)


def import_path(cell: Cell) -> str | None:
    """Return the import path of a cell's network, None for one that is built in."""
    return cell.network if ":" in cell.network else None
