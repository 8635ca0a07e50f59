"""A study with its cells, the jobs that are left of it, their outcomes, and the trained model that a job works on."""

import time
from collections.abc import Callable, Mapping, Sequence
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
class Study:
    """A grid with its cells, and where they lie.

    ``shards``: parts into which the images of one model are divided among workers; 1 divides nothing.
    """

    grid: Grid
    cells: tuple[Cell, ...]
    place: Place
    shards: int = 1

    @property
    def directory(self) -> Path:
        """Where everything is written."""
        return self.place.directory

    def jobs(self, stage: str, cells: Sequence[Cell]) -> list[Job]:
        """Return the jobs of a stage for these cells.

        The peers of a cell, whose images it is shown, are those of its own seed, and its regime's of the next seed.
        """
        parts = [(0, 1)]
        if stage == "shard":
            parts = [(k, self.shards) for k in range(self.shards)] if self.shards > 1 else []
        kin: dict[tuple[str, str], list[Cell]] = {}
        for cell in cells if stage == "compare" else ():
            kin.setdefault(cell.group[:2], []).append(cell)
        jobs, seeds = [], self.grid.seeds
        for cell in cells:
            found = kin.get(cell.group[:2], ())
            sibling = (cell.regime, seeds[(seeds.index(cell.seed) + 1) % len(seeds)])
            peers = tuple(
                item for item in found if item.seed == cell.seed or (item.regime, item.seed) == sibling
            )
            jobs += [Job(stage, cell, self.grid, self.place, peers, part) for part in parts]
        return jobs


@dataclass(frozen=True)
class Outcome:
    """How a job ended, after how many seconds: with an error of one line, or None where it succeeded.

    ``retry`` says whether another attempt may succeed: the error is not the user's.
    """

    error: str | None = None
    retry: bool = False
    seconds: float = 0.0


# By the names of steps: what each depends on, beside the trained model, and what does it and returns what to note.
Work = Mapping[str, tuple[Any, Callable[[], dict[str, Any] | None]]]


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
        return load_target(str(folder.run.path), resolve_device(self.place.device), cell.import_path)

    @cached_property
    def samples(self) -> Samples:
        """The attacked images."""
        return self.images(self.grid.images)

    def images(self, n: int) -> Samples:
        """Return ``n`` test images, those of a smaller number being part of a larger one's."""
        return load_samples(self.target, n=n, data_root=self.place.data_root)

    def do(self, steps: Sequence[str], work: Work) -> None:
        """Do the work of those ``steps`` that are not done with the same key already, and note what it returns."""
        for step in steps:
            if step not in work:
                continue
            key, act = work[step]
            name = digest([self.folder.steps.get("train", {}).get("key"), key])
            if not self.folder.has(step, name):
                start = time.perf_counter()
                facts = act() or {}
                facts |= {"seconds": time.perf_counter() - start, "device": device_name(self.target.device)}
                self.folder.note(self.cell, step, name, **facts)
