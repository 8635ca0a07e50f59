"""The single examinations of a trained model: transfer, indicators, audit, gallery."""

from collections.abc import Mapping
from datetime import UTC, datetime
from itertools import product
from typing import Any

import msgspec
import torch
from safetensors.torch import load_file, save

import attacks
from agents.common.run_dir import device_name, versions
from envs.files import write_atomic, write_json
from eval.audit import audit
from eval.core.targets import load_target
from eval.core.threats import Threat
from eval.mechanism.analysis import AnalysisOptions, analyse
from eval.mechanism.command import write_mechanism
from eval.report.gallery import pack_gallery
from eval.study.plan.cells import Cell, CellFolder
from eval.study.run.jobs import TrainedModel, import_path
from eval.trajectory.measure import follow, snapshots
from eval.trajectory.outputs import write_outputs
from eval.trajectory.record import SUFFIX
from eval.transfer.craft import defined, make_images, still_correct


def threat_slug(threat: Threat) -> str:
    """Return a threat model as part of a file's name."""
    return f"{threat.norm}-{threat.eps:.4g}"


def craft_images(bench: TrainedModel) -> None:
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
            write_atomic(folder / f"{craft}-{threat_slug(threat)}.safetensors", content)


def compare_cell(bench: TrainedModel, peers: Mapping[Cell, CellFolder]) -> None:
    """Show this model the images made on every peer and on itself: ``transfer.json`` in the cell's folder.

    The file has, by source hash, craft and threat model, whether each image is still classified correctly.
    """
    samples, device = bench.samples, bench.target.device
    _, y = samples.batch(slice(None), device)
    found: dict[str, dict[str, list[bool]]] = {}
    for cell, folder in peers.items():
        rows = {}
        for path in sorted((folder.path / "transfer").glob("*.safetensors")):
            content = load_file(path)
            if content["indices"].tolist() == samples.indices.tolist():
                rows[path.stem] = still_correct(bench.target.model, content["adversarial"].to(device), y)
        found[cell.hash] = rows
    write_json(bench.folder.path / "transfer.json", {"format": 1, "correct": found})


def measure_mechanism(bench: TrainedModel, threat: Threat) -> dict[str, Any]:
    """Measure the indicators: ``run/results/mechanism`` with JSON and pictures."""
    plan = bench.grid.mechanism
    options = AnalysisOptions(
        steps=plan.steps, resolution=plan.resolution, average_resolution=plan.resolution // 2 + 1
    )
    samples = bench.images(plan.images)
    analysis = analyse(bench.target, samples, threat, options, seed=bench.grid.attack_seed)
    out = bench.target.results_dir / "mechanism"
    out.mkdir(parents=True, exist_ok=True)
    write_mechanism(out, [analysis], samples)
    return {"file": "mechanism/mechanism.json", **vars(threat)}


def measure_trajectory(bench: TrainedModel, threat: Threat) -> dict[str, Any]:
    """Attack every snapshot: ``run/results/trajectory`` with JSON, picture, and outcomes per image."""
    plan, run = bench.grid.trajectory, bench.folder.run
    targets = snapshots(run, bench.target.device, import_path(bench.cell))
    samples, seed = bench.images(plan.images), bench.grid.attack_seed
    found = follow(run, targets, samples, threat, seed=seed, batch_size=bench.place.batch_size)
    write_outputs(run.results_dir / "trajectory", [msgspec.structs.replace(found, regime=bench.cell.regime)])
    return {"file": f"trajectory/trajectory{SUFFIX}", **vars(threat)}


def audit_cell(bench: TrainedModel, peers: Mapping[Cell, CellFolder]) -> dict[str, Any]:
    """Audit the model under every threat model, the other regimes of its seed being surrogates."""
    plan, cell = bench.grid.audit, bench.cell
    samples = bench.images(plan.images)
    x, y = samples.batch(slice(None), bench.target.device)
    surrogates = {
        peer.regime: load_target(str(folder.run.path), bench.target.device, import_path(peer)).model
        for peer, folder in peers.items()
        if peer.seed == cell.seed and peer != cell
    }
    files, seed = [], bench.grid.attack_seed
    options: dict[str, Any] = {"quick": plan.mode == "quick", "surrogates": surrogates, "seed": seed}
    for threat in bench.grid.threats:
        report = audit(bench.target.model, x, y, **vars(threat), **options)
        content = report.to_json() | {
            "format": 1,
            "model": {"name": cell.id, "sha256": bench.target.sha256},
            "data": samples.record() | {"n": len(samples), "indices": samples.indices.tolist()},
            "surrogates": list(surrogates),
            "seed": seed,
            "versions": versions(),
            "device": device_name(bench.target.device),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        bench.target.results_dir.mkdir(parents=True, exist_ok=True)
        name = f"audit-{threat_slug(threat)}-{plan.mode}.json"
        write_json(bench.target.results_dir / name, content)
        files.append({"file": name, **vars(threat)})
    return {"files": files}


def write_gallery(bench: TrainedModel, threat: Threat) -> None:
    """Write ``gallery.npz``: a few images, clean and attacked by PGD on the margin, with the model's answers.

    Arrays: ``clean`` and ``adversarial`` (n, C, H, W) uint8; ``labels`` and ``indices`` (n,) int64; ``predicted``
    (n, 2) int64 and ``confidences`` (n, 2) float32, of the clean and of the attacked image as it is stored. No
    pickles.
    """
    samples = bench.images(bench.grid.gallery)
    x, y = samples.batch(slice(None), bench.target.device)
    options: dict[str, Any] = {**vars(threat), "loss": "margin", "keep": "loss", "early_stop": False}
    options |= {"sample_ids": samples.indices.to(x.device), "seed": bench.grid.attack_seed}
    attacked = attacks.pgd(bench.target.model, x, y, **options).adversarial
    clean, attacked = ((images * 255).round() / 255 for images in (x, attacked))
    with torch.inference_mode():
        logits = bench.target.model(clean), bench.target.model(attacked)
    packed = pack_gallery(clean, attacked, y, *logits, indices=samples.indices)
    write_atomic(bench.folder.path / "gallery.npz", packed)
