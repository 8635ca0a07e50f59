"""What is done to one cell, step by step; a finished step is never done twice."""

import contextlib
import shutil
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial
from itertools import product
from typing import Any

import msgspec
import torch
from safetensors.torch import load_file, save

import attacks
from agents.common.precision import tf32
from agents.training.run import resume, train
from attacks.core.errors import AttackError
from envs.errors import InputError
from envs.files import read_json, write_atomic, write_json
from eval.attack.runner import AttackSpec, attack_rows, result_path, run_attack, stored_results
from eval.audit import audit
from eval.audit.command import write_evidence
from eval.core.threats import Threat
from eval.mechanism.analysis import AnalysisOptions, analyse
from eval.mechanism.command import write_mechanism
from eval.report.gallery import pack_gallery
from eval.robustness.suite import scaled
from eval.study.plan.cells import Cell, CellFolder
from eval.study.plan.config import Grid
from eval.study.run.jobs import Job, Outcome, TrainedModel, Work
from eval.trajectory.measure import follow, snapshots
from eval.trajectory.outputs import write_outputs
from eval.trajectory.record import SUFFIX
from eval.transfer.matrix import CRAFTS, defined, make_images, still_correct


@tf32(False)  # workers are processes of their own
def execute(job: Job) -> Outcome:
    """Do one job in this process; whatever goes wrong becomes an outcome, and its traceback goes to the cell's log.

    A KeyboardInterrupt ends it; what was done is kept.
    """
    start, failure, retry = time.perf_counter(), None, False
    bench = TrainedModel(job)
    bench.folder.path.mkdir(parents=True, exist_ok=True)
    with (
        open(bench.folder.path / "log.txt", "a", encoding="utf-8") as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
    ):
        try:
            STAGES[job.stage](bench)
        except Exception as error:  # a cell that fails, for whatever reason, must not end the study
            traceback.print_exc()
            retry = not isinstance(error, InputError | AttackError)
            reason = (str(error).splitlines() or ["no message"])[0]
            text = f"{type(error).__name__}: {reason}" if retry else " ".join(str(error).split())
            failure = f"{job.stage}: {text}"
    return Outcome(failure, retry, time.perf_counter() - start)


def steps_of(grid: Grid, cell: Cell) -> list[str]:
    """Return the steps after which a cell is finished."""
    wanted = {
        "train": True,
        "attacks": True,
        "gallery": grid.gallery,
        "craft": grid.transfer.crafts,
        "transfer": grid.transfer.crafts,
        "mechanism": grid.mechanism.images,
        "trajectory": grid.trajectory.snapshots,
        "audit": grid.audit.mode != "none" and cell.seed in grid.seeds[: grid.audit.seeds],
    }
    return [step for step, needed in wanted.items() if needed]


def _train(bench: TrainedModel) -> None:
    folder, run, cell = bench.folder, bench.folder.run, bench.cell
    if folder.has("train", cell.hash) and run.model_path.is_file():
        return
    kept = str(bench.grid.trajectory.snapshots or "") or None
    place: dict[str, Any] = {"device": bench.place.device, "data_root": bench.place.data_root}
    config = replace(cell.config, run_dir=run.path, snapshots=kept, **place)
    if run.config_path.is_file():
        resume(run.path, progress=False, network=config.network, algo=config.algo)
    else:
        shutil.rmtree(run.path, ignore_errors=True)  # cut short before there was anything to go on from
        train(config)
    summary = read_json(run.summary_path)
    names = ("images", "seconds", "device", "test_accuracy", "test_images", "val_accuracy", "adversarial")
    folder.note(cell, "train", cell.hash, **{name: summary.get(name) for name in names})


def _shard(bench: TrainedModel) -> None:
    """Attack one part of the images; the parts lie where `run_attack` looks for those of an interrupted call."""
    (k, n), images = bench.job.shard, len(bench.samples)
    _attack(bench, partial(attack_rows, rows=slice(images * k // n, images * (k + 1) // n)))


def _attack(bench: TrainedModel, run: Callable[..., Any] = run_attack) -> dict[str, Any]:
    """Run every attack that is not stored; note the files by the attack's name and threat model."""
    target, samples, files = bench.target, bench.samples, []
    target.results_dir.mkdir(parents=True, exist_ok=True)
    place: dict[str, Any] = {"results_dir": target.results_dir, "batch_size": bench.place.batch_size}
    for name, spec in specs(bench.grid):
        path = result_path(target, samples, spec, target.results_dir)
        if stored_results(path) is None:
            print(f"attack {name}, {spec.threat}", flush=True)
            run(target, samples, spec, **place)
        files.append({"name": name, **vars(spec.threat), "file": path.name})
    return {"files": files}


def specs(grid: Grid) -> list[tuple[str, AttackSpec]]:
    """Return every attack of the study by its name; L1 has no cleverhans protocol and is left out there."""
    return [
        (
            item.name,
            AttackSpec(item.attack, threat, scaled(item.name, dict(item.options), threat), grid.attack_seed),
        )
        for threat, item in product(grid.threats, grid.attacks)
        if not item.cleverhans or threat.norm != "L1"
    ]


def _examine(bench: TrainedModel) -> None:
    """Attacks, gallery, transfer images and indicators of one model, for which no other is needed."""
    grid = bench.grid
    of_l2 = (threat for threat in grid.threats if threat.norm == "L2")  # the paper's norm
    threat = next(of_l2, grid.threats[0])
    attacked = [[name, spec.record(), spec.seed] for name, spec in specs(grid)]
    place = [*vars(threat).values(), grid.attack_seed]
    work: Work = {
        "attacks": ([grid.images, attacked], lambda: _attack(bench)),
        "gallery": ([grid.gallery, *place[:2]], lambda: _write_gallery(bench, threat)),
        "craft": (_craft_key(grid), lambda: _craft_images(bench)),
        "mechanism": ([asdict(grid.mechanism), *place], lambda: _measure_mechanism(bench, threat)),
        "trajectory": ([asdict(grid.trajectory), *place], lambda: _measure_trajectory(bench, threat)),
    }
    bench.do(steps_of(grid, bench.cell), work)


def _compare(bench: TrainedModel) -> None:
    """What needs the other models: images made on them, and the audit with them as surrogates."""
    job, grid = bench.job, bench.grid
    peers = {cell: CellFolder.open(job.place.directory, cell.hash) for cell in job.peers}
    crafts = {cell.hash: folder.steps.get("craft") for cell, folder in peers.items()}
    made = [[name, step["key"]] for name, step in crafts.items() if step]
    twins = {
        cell: folder for cell, folder in peers.items() if cell.seed == job.cell.seed and cell != job.cell
    }
    threats = [[threat.norm, threat.eps] for threat in grid.threats]
    audited = [asdict(grid.audit), threats, grid.attack_seed, [cell.hash for cell in twins]]
    work: Work = {
        "transfer": ([made, _craft_key(grid)], lambda: _compare_cell(bench, peers)),
        "audit": (audited, lambda: _audit_cell(bench, twins)),
    }
    bench.do(steps_of(grid, job.cell), work)


# In this order, each for all cells before the next.
STAGES = {"train": _train, "shard": _shard, "examine": _examine, "compare": _compare}


def _craft_key(grid: Grid) -> Any:
    """Return what the transfer images depend on, beside the model."""
    threats = [[threat.norm, threat.eps] for threat in grid.threats]
    crafts = [CRAFTS[craft] for craft in grid.transfer.crafts]
    return [asdict(grid.transfer), crafts, threats, grid.images, grid.attack_seed]


def _craft_images(bench: TrainedModel) -> None:
    """Make the transfer images on this model: ``transfer/CRAFT-THREAT.safetensors`` in the cell's folder."""
    folder = bench.folder.path / "transfer"
    folder.mkdir(exist_ok=True)
    grid, samples, model = bench.grid, bench.samples, bench.target.model
    x, y = samples.batch(slice(None), bench.target.device)
    options: dict[str, Any] = {"steps": grid.transfer.steps, "seed": grid.attack_seed}
    options |= {"ids": samples.indices.to(x.device), "batch_size": bench.place.batch_size}
    for threat, craft in product(grid.threats, grid.transfer.crafts):
        if defined(craft, threat):
            images = make_images(craft, model, x, y, threat, **options)
            content = save({"adversarial": images.cpu(), "indices": samples.indices})
            write_atomic(folder / f"{craft}-{threat.slug}.safetensors", content)


def _compare_cell(bench: TrainedModel, peers: Mapping[Cell, CellFolder]) -> None:
    """Show this model the images made on every peer and on itself: ``transfer.json`` in the cell's folder.

    The file has, by source hash, craft and threat model, whether each image is still classified correctly.
    """
    samples, device = bench.samples, bench.target.device
    _, y = samples.batch(slice(None), device)
    found: dict[str, dict[str, list[bool]]] = {cell.hash: {} for cell in peers}
    for cell, folder in peers.items():
        for path in sorted((folder.path / "transfer").glob("*.safetensors")):
            content = load_file(path)
            if content["indices"].tolist() == samples.indices.tolist():
                correct = still_correct(bench.target.model, content["adversarial"].to(device), y)
                found[cell.hash][path.stem] = correct
    write_json(bench.folder.path / "transfer.json", {"format": 1, "correct": found})


def _measure_mechanism(bench: TrainedModel, threat: Threat) -> dict[str, Any]:
    """Measure the indicators: ``run/results/mechanism`` with JSON and pictures."""
    plan, samples = bench.grid.mechanism, bench.images(bench.grid.mechanism.images)
    points = plan.resolution
    options = AnalysisOptions(steps=plan.steps, resolution=points, average_resolution=points // 2 + 1)
    analysis = analyse(bench.target, samples, threat, options, seed=bench.grid.attack_seed)
    out = bench.target.results_dir / "mechanism"
    out.mkdir(parents=True, exist_ok=True)
    write_mechanism(out, [analysis], samples)
    return {"file": "mechanism/mechanism.json", **vars(threat)}


def _measure_trajectory(bench: TrainedModel, threat: Threat) -> dict[str, Any]:
    """Attack every snapshot: ``run/results/trajectory`` with JSON, picture, and outcomes per image."""
    plan, run = bench.grid.trajectory, bench.folder.run
    targets = snapshots(run, bench.target.device, bench.cell.import_path)
    samples, seed = bench.images(plan.images), bench.grid.attack_seed
    found = follow(run, targets, samples, threat, seed=seed, batch_size=bench.place.batch_size)
    write_outputs(run.results_dir / "trajectory", [msgspec.structs.replace(found, regime=bench.cell.regime)])
    return {"file": f"trajectory/trajectory{SUFFIX}", **vars(threat)}


def _audit_cell(bench: TrainedModel, twins: Mapping[Cell, CellFolder]) -> dict[str, Any]:
    """Audit the model under every threat model, the other regimes of its seed being surrogates."""
    plan, cell, target = bench.grid.audit, bench.cell, bench.target
    samples = bench.images(plan.images)
    x, y = samples.batch(slice(None), target.device)
    surrogates = {twin.regime: bench.load(twin, folder).model for twin, folder in twins.items()}
    files, about = [], {"surrogates": list(surrogates), "seed": bench.grid.attack_seed}
    options: dict[str, Any] = {"quick": plan.mode == "quick", "seed": bench.grid.attack_seed}
    for threat in bench.grid.threats:
        report = audit(target.model, x, y, **vars(threat), surrogates=surrogates, **options)
        place = (target.results_dir, replace(target, name=cell.id), samples)
        files.append({"file": write_evidence(*place, report, about).name, **vars(threat)})
    return {"files": files}


def _write_gallery(bench: TrainedModel, threat: Threat) -> None:
    """Write ``gallery.npz``: a few images, clean and attacked by PGD on the margin, with the model's answers.

    Arrays, no pickles, see `eval.report.gallery`: answers are those to the images as they are stored, in 8 bits.
    """
    samples, model = bench.images(bench.grid.gallery), bench.target.model
    x, y = samples.batch(slice(None), bench.target.device)
    options: dict[str, Any] = {**vars(threat), "loss": "margin", "keep": "loss", "early_stop": False}
    options |= {"sample_ids": samples.indices.to(x.device), "seed": bench.grid.attack_seed}
    attacked = attacks.pgd(model, x, y, **options).adversarial
    clean, attacked = ((images * 255).round() / 255 for images in (x, attacked))
    with torch.inference_mode():
        packed = pack_gallery(clean, attacked, y, model(clean), model(attacked), indices=samples.indices)
    write_atomic(bench.folder.path / "gallery.npz", packed)
