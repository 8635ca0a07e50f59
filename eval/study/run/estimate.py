"""The plan of a study with its estimated cost, before anything is done."""

import time
from typing import Any, NamedTuple

import torch
from rich.console import Console

from agents.common.run_dir import resolve_device
from agents.models.classifier import new_classifier
from agents.models.image_network import resolve_network
from envs.datasets import load_splits
from envs.errors import InputError
from eval.attack.registry import resolve_options
from eval.core.formatting import count, duration, make_table, print_table
from eval.study.plan.cells import BACKWARD, Cell, training_passes
from eval.study.results.cell_results import cell_record
from eval.study.run.jobs import Study
from eval.study.run.stages import specs, steps_of

# Forward passes per image that AutoAttack takes of a model that resists it, measured on small networks; a backward
# pass counts as two. Attacks that are not listed count by their own steps or queries.
_PASSES = {"fast": 1_500.0, "standard": 12_000.0, "plus": 40_000.0, "rand": 20_000.0}
_TRAJECTORY_PASSES = 3_000.0  # of its attacks and of the path, for an image that survives most of them
_AUDIT_PASSES = {"none": 0.0, "quick": 9_000.0, "full": 90_000.0}
_PROBE_IMAGES = 64


class Estimate(NamedTuple):
    """Forward passes of one image that training and examination of a cell take, and the seconds of both.

    ``training`` and ``seconds`` are None where the data set is not at hand.
    """

    training: float | None
    examination: float
    seconds: float | None


def print_plan(study: Study) -> None:
    """Print every cell with its state and estimated cost, and the sum of what is left."""
    speeds: dict[tuple[str, str], tuple[int, float] | tuple[None, None]] = {}
    title = f"study {study.grid.name}: {len(study.cells)} cells in {study.directory}"
    table = make_table(title, ("cell", "hash", "state"), ("passes, training", "passes, rest", "time"))
    left, unknown = 0.0, False
    for cell in study.cells:
        kind = cell.group[:2]
        if kind not in speeds:
            speeds[kind] = _speed(study, cell)
        found = estimate(study, cell, *speeds[kind])
        state = cell_record(study, cell).status
        if state != "finished":
            left += found.seconds or 0.0
            unknown |= found.seconds is None
        training = "-" if found.training is None else count(found.training)
        shown = "-" if found.seconds is None else duration(found.seconds)
        table.add_row(cell.id, cell.hash, state, training, count(found.examination), shown)
    print_table(table)
    known = f"about {duration(left)} on this device, one job at a time"
    rest = "unknown: a data set is not at hand" if unknown else known
    Console(soft_wrap=True, highlight=False).print(f"left: {rest}")


def _speed(study: Study, cell: Cell) -> tuple[int, float] | tuple[None, None]:
    """Return the size of the training set and the measured seconds of one pass in a batch; None: no data."""
    try:
        data = load_splits(cell.dataset, data_root=study.place.data_root, image_size=cell.config.image_size)
    except InputError:
        return None, None
    build = resolve_network(cell.network, allow_import=True)
    device = resolve_device(study.place.device)
    model = new_classifier(data.train.shape, data.train.num_classes, build).to(device).eval()
    images = torch.rand(_PROBE_IMAGES, *data.train.shape, device=device)
    with torch.inference_mode():
        model(images)
        start = time.perf_counter()
        float(model(images).sum())  # reading the value waits for a GPU
    return len(data.train), (time.perf_counter() - start) / _PROBE_IMAGES


def estimate(study: Study, cell: Cell, train_images: int | None, seconds_each: float | None) -> Estimate:
    """Return the estimated cost of a cell; ``train_images`` is the size of its training set, None if unknown."""
    grid = study.grid
    passes = sum(_attack_passes(spec.name, spec.options) for _, spec in specs(grid)) * grid.images
    crafted = len(grid.transfer.crafts) * len(grid.threats) * grid.images
    passes += grid.transfer.steps * BACKWARD * crafted
    passes += (grid.mechanism.steps + 60) * BACKWARD * grid.mechanism.images
    passes += grid.trajectory.snapshots * _TRAJECTORY_PASSES * grid.trajectory.images
    if "audit" in steps_of(grid, cell):
        passes += _AUDIT_PASSES[grid.audit.mode] * grid.audit.images * len(grid.threats)
    training = None if train_images is None else training_passes(cell.config, train_images)
    if training is None or seconds_each is None:
        return Estimate(training, passes, None)
    return Estimate(training, passes, (training + passes) * seconds_each)


def _attack_passes(name: str, options: dict[str, Any]) -> float:
    resolved = resolve_options(name, options)
    if name == "autoattack":
        version = resolved["version"]
        return _PASSES.get(version if isinstance(version, str) else "standard", 12_000.0)
    if isinstance(resolved.get("queries"), int):
        return float(resolved["queries"])
    steps = resolved.get("steps")
    return BACKWARD * float(steps if isinstance(steps, int) else 100) * float(resolved.get("restarts") or 1)
