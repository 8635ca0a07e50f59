"""The course of a study: which jobs are left, stage by stage, and carrying them out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.study.plan.cells import Cell, CellFolder
from eval.study.plan.config import Grid
from eval.study.results.writer import StudyFile
from eval.study.run.engines import Engine
from eval.study.run.jobs import Job, Outcome, Place

STAGES = ("train", "shard", "examine", "compare")


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
        """Return the jobs of a stage for these cells."""
        parts = [(0, 1)]
        if stage == "shard":
            parts = [(k, self.shards) for k in range(self.shards)] if self.shards > 1 else []
        kin: dict[tuple[str, str], list[Cell]] = {}
        for cell in cells if stage == "compare" else ():
            kin.setdefault(cell.group[:2], []).append(cell)
        peers = {cell: self._peers(cell, kin.get(cell.group[:2], ())) for cell in cells}
        return [
            Job(stage, cell, self.grid, self.place, peers[cell], part) for cell in cells for part in parts
        ]

    def _peers(self, cell: Cell, kin: Sequence[Cell]) -> tuple[Cell, ...]:
        """Return those of ``kin`` whose images a cell is shown: its own seed's, and its regime's of the next seed."""
        seeds = self.grid.seeds
        sibling = (cell.regime, seeds[(seeds.index(cell.seed) + 1) % len(seeds)])
        return tuple(item for item in kin if item.seed == cell.seed or (item.regime, item.seed) == sibling)


def carry_out(study: Study, engine: Engine, tell: Callable[[str], None]) -> dict[str, int]:
    """Do everything that is left of a study; return the number of cells per status.

    A cell that fails in one stage is left out of the next ones, and the others go on. A KeyboardInterrupt stops the
    study; what was done is kept.
    """
    alive = list(study.cells)
    for cell in alive:  # forget earlier failures: such cells are tried again
        folder = CellFolder.open(study.directory, cell.hash)
        if folder.error is not None:
            folder.error = None
            folder.write(cell)
    file = StudyFile(study.grid, study.cells, study.directory)
    for stage in STAGES:
        jobs = study.jobs(stage, alive)
        progress = _Progress(study, file, stage, len(jobs), tell)
        failed = {job.cell for job, outcome in engine.run(jobs, progress).items() if outcome.error}
        alive = [cell for cell in alive if cell not in failed]
    return file.write()


@dataclass
class _Progress:
    """Tells how a stage goes on, and keeps ``study.json`` and the records of failures up to date."""

    study: Study
    file: StudyFile
    stage: str
    total: int
    tell: Callable[[str], None]
    done: int = 0

    def __call__(self, job: Job, outcome: Outcome, again: bool) -> None:
        self.done += not again
        head = f"[{self.stage} {self.done}/{self.total}] {job.label}"
        if outcome.error is not None:
            self.tell(f"{head}: {outcome.error}{'; once more' if again else ''}")
        elif outcome.seconds > 0.5:  # what was done before takes no time and no line
            self.tell(f"{head}: {outcome.seconds:.1f} s")
        if outcome.error is not None and not again:
            folder = CellFolder.open(self.study.directory, job.cell.hash)
            folder.path.mkdir(parents=True, exist_ok=True)
            folder.error = outcome.error
            folder.write(job.cell)
        self.file.update(job.cell)
