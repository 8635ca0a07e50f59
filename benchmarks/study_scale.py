"""What a study of 2,400 cells costs besides its trainings: ``python -m benchmarks.study_scale`` (needs Ray).

Cells that only write their record go through the scheduler and the engine: seconds per job, the driver's memory, bytes
per cell, and how often ``study.json`` was written while they ran.
"""

import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tyro

from agents.config import TrainConfig
from agents.training.run import train
from benchmarks.common import describe_machine, machine_line, write_results
from benchmarks.study_cost import gpu_hours, table
from eval.core.threats import Threat
from eval.study.plan.cells import CellFolder, cells_of
from eval.study.plan.config import Attack, Grid, Regime
from eval.study.results.record import STUDY_FILE
from eval.study.run.engines import Engine, InProcess, RayEngine, carry_out
from eval.study.run.jobs import Job, Outcome, Place, Study
from eval.study.run.stages import STAGES, steps_of

DATASETS = ("digits", "mnist", "fashion-mnist", "cifar10", "cifar100", "stl10")
NETWORKS = ("small", "strided", "mlp", "nature", "cnn4", "cnn6", "wrn16-4", "vit")

COST = """## What 2,400 cells would cost

Estimated, not measured: 10 data sets x 8 networks x 6 regimes x 5 seeds, 100 passes over the data each, the passes
counted as `eval.study --dry-run` does, on GPUs that are assumed to sustain 50 TFLOP/s in training and 15 in attacks.
Networks for small images are bound by launches and stay below that.""".splitlines()

PLACES = """Repeat with `python -m benchmarks.study_cost`. Ray gives each job the share of a GPU that `--gpus` names, at
most four jobs to one by default; a stage begins when the one before has ended, so the last and longest trainings decide
how long the other GPUs wait: begin with the large data sets apart.""".splitlines()


def fake(job: Job) -> Outcome:
    """Write what the stages of a real cell note, and nothing else."""
    folder = CellFolder.open(job.place.directory, job.cell.hash)
    folder.path.mkdir(parents=True, exist_ok=True)
    own = {"train": ("train",), "compare": steps_of(job.grid, job.cell)}.get(job.stage, ())
    if own:
        folder.steps |= {step: {"key": job.cell.hash, "seconds": 1.0} for step in own}
        folder.write(job.cell)
    return Outcome(seconds=0.01)


class InDriver(InProcess):
    """The fake jobs in this process: the scheduler's own share."""

    def outcomes(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, Outcome]]:
        """Yield each job as it ends."""
        for job in jobs:
            yield job, fake(job)


def main(cells: int = 2000, workers: int = 2, write: bool = True) -> None:
    """Carry out a study of fake cells in this process and on a local Ray cluster.

    Args:
        cells: how many at least; whole numbers of seeds are taken.
        workers: cores of the Ray cluster.
        write: write ``docs/results/study-scale.json`` and ``.md``.
    """
    rows = []
    for name in ("this process", "ray"):
        engine: Engine = InDriver()
        if name == "ray":
            ray = RayEngine(workers, gpus=0)
            ray.task = ray.ray.remote(num_cpus=1, num_gpus=0)(fake)
            ray.ray.get(ray.task.remote(first_job()))  # the workers have imported everything
            engine = ray
        rows += measure(name, engine, cells)
        engine.close()
    machine, hours, kept = describe_machine(), gpu_hours(), bytes_of_a_run()
    text = markdown(rows, hours, kept, machine)
    print(text)
    if write:
        write_results(
            "study-scale", {"machine": machine, "rows": rows, "gpu_hours": hours, "run_bytes": kept}, text
        )


def first_job() -> Job:
    """Return a job that warms a worker up."""
    folder = Path(tempfile.mkdtemp())
    grid = fake_grid(1)
    return Job("train", cells_of(grid)[0], grid, Place(folder))


def fake_grid(seeds: int) -> Grid:
    """Return a grid of 6 data sets, 8 networks, 6 regimes and these seeds."""
    regimes = tuple(Regime(f"r{k}", {"learning_rate": 0.001 * (k + 1)}) for k in range(6))
    attacks = (Attack("pgd", "pgd", {}), Attack("fast", "autoattack", {"version": "fast"}))
    threats = (Threat("Linf", 8 / 255), Threat("L2", 1.0))
    return Grid("scale", DATASETS, NETWORKS, regimes, threats, attacks, tuple(range(seeds)))


def measure(name: str, engine: Engine, least: int) -> list[dict[str, Any]]:
    """Return one row per half of the seeds: memory and time must not grow with what is done."""
    per_seed = len(DATASETS) * len(NETWORKS) * 6
    rows = []
    for cells in (least // 4, least):
        grid = fake_grid(-(-cells // per_seed))
        with tempfile.TemporaryDirectory() as folder:
            study = Study(grid, tuple(cells_of(grid)), Place(Path(folder)))
            written: list[int] = []

            def seen(line: str, path: Path = Path(folder) / STUDY_FILE, written: list[int] = written) -> None:
                if path.exists() and (stamp := path.stat().st_mtime_ns) not in written:
                    written.append(stamp)

            study = Study(grid, study.cells, study.place)
            before, start, cpu = memory(), time.perf_counter(), time.process_time()
            with timed_fsync() as flushes:
                counts = carry_out(study, _telling(engine, seen), seen)
            seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
            jobs = len(study.cells) * (len(STAGES) - 1)
            size = sum(path.stat().st_size for path in (Path(folder) / "cells").rglob("*") if path.is_file())
            rows.append(
                {
                    "engine": name,
                    "cells": len(study.cells),
                    "finished": counts["finished"],
                    "milliseconds_per_job": 1000 * seconds / jobs,
                    "driver_milliseconds_per_job": 1000 * cpu / jobs,
                    "fsync_milliseconds_per_job": 1000 * sum(flushes) / jobs,
                    "mebibytes_grown": memory() - before,
                    "bytes_per_record": size // len(study.cells),
                    "study_json_bytes": (Path(folder) / STUDY_FILE).stat().st_size,
                    "study_json_written": len(written),
                }
            )
    return rows


def _telling(engine: Engine, seen: Any) -> Engine:
    """Return the engine, which looks at ``study.json`` after every job."""
    outcomes = engine.outcomes

    def watched(jobs: Sequence[Job]) -> Iterator[tuple[Job, Outcome]]:
        for found in outcomes(jobs):
            yield found
            seen("")

    engine.outcomes = watched  # type: ignore[method-assign]
    return engine


def memory() -> float:
    """Return this process's resident memory in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@contextmanager
def timed_fsync() -> Iterator[list[float]]:
    """Within, the seconds of every `os.fsync` of this process are noted in the list."""
    real, seconds = os.fsync, []

    def fsync(descriptor: int) -> None:
        start = time.perf_counter()
        real(descriptor)
        seconds.append(time.perf_counter() - start)

    os.fsync = fsync
    try:
        yield seconds
    finally:
        os.fsync = real


def bytes_of_a_run() -> dict[str, int]:
    """Train one small cell with 12 snapshots; return the bytes that it keeps, the largest kinds apart."""
    with tempfile.TemporaryDirectory() as folder:
        run = train(
            TrainConfig(
                algo="supervised",
                passes=12,
                snapshots="12",
                attack=False,
                progress=False,
                run_dir=Path(folder) / "run",
            )
        )
        sizes = {
            path.relative_to(run.path): path.stat().st_size for path in run.path.rglob("*") if path.is_file()
        }
    kept = {name: sizes[Path(name)] for name in ("checkpoint.pt", "policy.zip")}
    kept["snapshots"] = sum(size for path, size in sizes.items() if path.parts[0] == "snapshots")
    return kept | {"all": sum(sizes.values())}


def markdown(
    rows: list[dict[str, Any]],
    hours: dict[str, tuple[float, float]],
    kept: dict[str, int],
    machine: dict[str, Any],
) -> str:
    """Return the results as a Markdown page."""
    lines = [
        "# Studies of thousands of cells: the cost of scheduling",
        "",
        "Cells that train nothing and only write their record, three jobs each (train, examine, compare); what is left "
        "is the scheduler, the engine and the file system.",
        "",
        "| engine | cells | ms per job | of it in the driver: processor | flushing files | MiB grown "
        "| bytes per record | "
        "`study.json`, bytes | written |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        *(
            f"| {row['engine']} | {row['cells']:,} | {row['milliseconds_per_job']:.1f} "
            f"| {row['driver_milliseconds_per_job']:.1f} | {row['fsync_milliseconds_per_job']:.1f} "
            f"| {row['mebibytes_grown']:.1f} "
            f"| {row['bytes_per_record']:,} | {row['study_json_bytes']:,} | {row['study_json_written']}x |"
            for row in rows
        ),
        "",
        machine_line(machine),
        "",
        "Every record is flushed to disk (`fsync`) on the file system that all nodes share. `study.json` is written "
        "whole: it takes at most a twentieth of the time, and more than 5,000 cells are refused.",
        "",
        f"A run of `small` on the digits with 12 snapshots keeps {kept['all'] / 1e6:.1f} MB: "
        f"snapshots {kept['snapshots'] / 1e6:.1f}, checkpoint {kept['checkpoint.pt'] / 1e6:.1f}, "
        f"`policy.zip` {kept['policy.zip'] / 1e6:.1f}; larger networks keep more in proportion to their weights.",
        "",
        *COST,
        "",
        *table(hours),
        "",
        *PLACES,
        "",
        "Repeat with `python -m benchmarks.study_scale`.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    tyro.cli(main)
