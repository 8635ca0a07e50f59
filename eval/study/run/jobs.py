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
    """Where a study works.

    Attributes:
        directory: of the study, on a file system that all workers share.
        device: auto, cpu, cuda or cuda:N.
        data_root: where data sets lie.
        batch_size: most images at once in attacks; None chooses.
    """

    directory: Path
    device: str = "auto"
    data_root: Path | None = None
    batch_size: int | None = None


@dataclass(frozen=True, eq=False)
class Job:
    """One piece of work for an engine.

    Attributes:
        stage: ``train``, ``shard``, ``examine`` or ``compare``.
        cell: the cell.
        grid: the study.
        place: where.
        peers: the cells that ``compare`` may look at.
        shard: (k, n): ``shard`` attacks the k-th of n parts of the images.
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
    """How a job ended.

    Attributes:
        error: one line, or None where it succeeded.
        retry: whether another attempt may succeed: the error is not the user's.
        seconds: that it took.
    """

    error: str | None = None
    retry: bool = False
    seconds: float = 0.0


def import_path(cell: Cell) -> str | None:
    """Return the import path of a cell's network, None for one that is built in."""
    return cell.network if ":" in cell.network else None


class TrainedModel:
    """A trained cell on the device, with its images, loaded when first asked for."""

    def __init__(self, job: Job) -> None:
        self.job, self.cell, self.grid, self.place = job, job.cell, job.grid, job.place
        self.folder = CellFolder.open(job.place.directory, job.cell.hash)

    @cached_property
    def target(self) -> Target:
        """The classifier of the run."""
        device = resolve_device(self.place.device)
        return load_target(str(self.folder.run.path), device, import_path(self.cell))

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
        if self.folder.has(step, name):
            return
        start = time.perf_counter()
        facts = work() or {}
        facts |= {"seconds": time.perf_counter() - start, "device": device_name(self.target.device)}
        self.folder.note(self.cell, step, name, **facts)
