"""What is done to one cell, step by step; a finished step is never done twice."""

import contextlib
import dataclasses
import shutil
import time
import traceback
from collections.abc import Callable
from typing import Any

from agents.common.precision import tf32
from agents.training.run import resume, train
from attacks.core.errors import AttackError
from envs.errors import InputError
from envs.files import read_json
from eval.attack.runner import AttackSpec, attack_rows, result_path, run_attack, stored_results
from eval.core.threats import Threat
from eval.robustness.suite import scaled
from eval.study.plan.cells import Cell, CellFolder
from eval.study.plan.config import Grid
from eval.study.run.jobs import Job, Outcome, TrainedModel
from eval.study.run.measure import (
    audit_cell,
    compare_cell,
    craft_images,
    measure_mechanism,
    measure_trajectory,
    write_gallery,
)
from eval.transfer.craft import CRAFTS


@tf32(False)  # workers are processes of their own
def execute(job: Job) -> Outcome:
    """Do one job in this process; whatever goes wrong becomes an outcome, and its traceback goes to the cell's log.

    Raises:
        KeyboardInterrupt: it was stopped; what was done is kept.
    """
    start, failure, retry = time.perf_counter(), None, False
    folder = CellFolder.open(job.place.directory, job.cell.hash)
    folder.path.mkdir(parents=True, exist_ok=True)
    with (
        open(folder.path / "log.txt", "a", encoding="utf-8") as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
    ):
        try:
            _STAGES[job.stage](job)
        except Exception as error:  # a cell that fails, for whatever reason, must not end the study
            traceback.print_exc()
            retry = not isinstance(error, InputError | AttackError)
            reason = (str(error).splitlines() or ["no message"])[0]
            text = f"{type(error).__name__}: {reason}" if retry else " ".join(str(error).split())
            failure = f"{job.stage}: {text}"
    return Outcome(failure, retry, time.perf_counter() - start)


def _train(job: Job) -> None:
    bench = TrainedModel(job)
    folder, run = bench.folder, bench.folder.run
    if folder.has("train", job.cell.hash) and run.model_path.is_file():
        return
    count = job.grid.trajectory.snapshots
    place: dict[str, Any] = {
        "run_dir": run.path,
        "device": job.place.device,
        "data_root": job.place.data_root,
    }
    config = dataclasses.replace(job.cell.config, **place, snapshots=str(count) if count else None)
    if run.config_path.is_file():
        resume(run.path, progress=False, network=config.network, algo=config.algo)
    else:
        shutil.rmtree(run.path, ignore_errors=True)  # cut short before there was anything to go on from
        train(config)
    summary = read_json(run.summary_path)
    names = ("images", "seconds", "device", "test_accuracy", "test_images", "val_accuracy", "adversarial")
    folder.note(job.cell, "train", job.cell.hash, **{name: summary.get(name) for name in names})


def _shard(job: Job) -> None:
    """Attack one part of the images; the parts lie where `run_attack` looks for those of an interrupted call."""
    bench = TrainedModel(job)
    target, samples, (k, n) = bench.target, bench.samples, job.shard
    rows = slice(len(samples) * k // n, len(samples) * (k + 1) // n)
    target.results_dir.mkdir(parents=True, exist_ok=True)
    place: dict[str, Any] = {"results_dir": target.results_dir, "batch_size": job.place.batch_size}
    for _, spec in specs(job.grid):
        if stored_results(result_path(target, samples, spec, target.results_dir)) is None:
            attack_rows(target, samples, spec, rows, **place)


def _examine(job: Job) -> None:
    """Attacks, gallery, transfer images and indicators of one model, for which no other is needed."""
    bench, grid, threat = TrainedModel(job), job.grid, lead_threat(job.grid.threats)
    attacked = [grid.images, [[name, spec.record(), spec.seed] for name, spec in specs(grid)]]
    place = [*vars(threat).values(), grid.attack_seed]
    bench.do("attacks", attacked, lambda: _attack(bench))
    if grid.gallery:
        bench.do("gallery", [grid.gallery, *place[:2]], lambda: write_gallery(bench, threat))
    if grid.transfer.crafts:
        bench.do("craft", craft_key(grid), lambda: craft_images(bench))
    if grid.mechanism.images:
        key = [dataclasses.asdict(grid.mechanism), *place]
        bench.do("mechanism", key, lambda: measure_mechanism(bench, threat))
    if grid.trajectory.snapshots:
        key = [dataclasses.asdict(grid.trajectory), *place]
        bench.do("trajectory", key, lambda: measure_trajectory(bench, threat))


def _compare(job: Job) -> None:
    """What needs the other models: images made on them, and the audit with them as surrogates."""
    bench, grid = TrainedModel(job), job.grid
    peers = {cell: CellFolder.open(job.place.directory, cell.hash) for cell in job.peers}
    if grid.transfer.crafts:
        crafts = {cell.hash: folder.steps.get("craft") for cell, folder in peers.items()}
        made = [[name, step["key"]] for name, step in crafts.items() if step]
        bench.do("transfer", [made, craft_key(grid)], lambda: compare_cell(bench, peers))
    if grid.audit.mode != "none" and job.cell.seed in grid.seeds[: grid.audit.seeds]:
        twins = [cell.hash for cell in job.peers if cell.seed == job.cell.seed and cell != job.cell]
        threats = [[threat.norm, threat.eps] for threat in grid.threats]
        key = [dataclasses.asdict(grid.audit), threats, grid.attack_seed, twins]
        bench.do("audit", key, lambda: audit_cell(bench, peers))


_STAGES: dict[str, Callable[[Job], None]] = {
    "train": _train,
    "shard": _shard,
    "examine": _examine,
    "compare": _compare,
}


def specs(grid: Grid) -> list[tuple[str, AttackSpec]]:
    """Return every attack of the study by its name; L1 has no cleverhans protocol and is left out there."""
    found = []
    for threat in grid.threats:
        for attack in grid.attacks:
            options = dict(attack.options)
            if options.get("protocol") == "cleverhans" and threat.norm == "L1":
                continue
            options = scaled(attack.name, options, threat)
            found.append((attack.name, AttackSpec(attack.attack, threat, options, grid.attack_seed)))
    return found


def _attack(bench: TrainedModel) -> dict[str, Any]:
    """Run every attack that is not stored; note the files by the attack's name and threat model."""
    target, samples, files = bench.target, bench.samples, []
    target.results_dir.mkdir(parents=True, exist_ok=True)
    for name, spec in specs(bench.grid):
        path = result_path(target, samples, spec, target.results_dir)
        if stored_results(path) is None:
            print(f"attack {name}, {spec.threat}", flush=True)
            place: dict[str, Any] = {"results_dir": target.results_dir, "batch_size": bench.place.batch_size}
            run_attack(target, samples, spec, **place)
        files.append({"name": name, **vars(spec.threat), "file": path.name})
    return {"files": files}


def craft_key(grid: Grid) -> Any:
    """Return what the transfer images depend on, beside the model."""
    threats = [[threat.norm, threat.eps] for threat in grid.threats]
    crafts = [CRAFTS[craft] for craft in grid.transfer.crafts]
    return [dataclasses.asdict(grid.transfer), crafts, threats, grid.images, grid.attack_seed]


def lead_threat(threats: tuple[Threat, ...]) -> Threat:
    """Return the first L2 threat model, the paper's norm; the first of all where there is none."""
    return next((threat for threat in threats if threat.norm == "L2"), threats[0])


def steps_of(grid: Grid, cell: Cell) -> list[str]:
    """Return the steps after which a cell is finished."""
    wanted = ["train", "attacks"]
    wanted += ["gallery"] if grid.gallery else []
    wanted += ["craft", "transfer"] if grid.transfer.crafts else []
    wanted += ["mechanism"] if grid.mechanism.images else []
    wanted += ["trajectory"] if grid.trajectory.snapshots else []
    audited = grid.audit.mode != "none" and cell.seed in grid.seeds[: grid.audit.seeds]
    return wanted + (["audit"] if audited else [])
