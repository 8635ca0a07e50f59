"""Attacks and indicators at every snapshot of a run; what is stored already is not done again."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agents.common.plain_numbers import takes_numbers
from agents.common.run_dir import RunDir, versions
from agents.models.classifier_files import load_classifier
from agents.training.snapshots import snapshot_paths
from attacks.core.losses import margin
from envs.errors import InputError
from envs.files import read_json, write_json
from eval.attack.results import configuration_hash
from eval.core.records import bits
from eval.core.targets import Samples, Target, model_sha256
from eval.core.threats import Threat
from eval.mechanism.entropy import entropy_bits
from eval.mechanism.gradients import input_gradient, lengths
from eval.mechanism.path_indicators import dynamic_indicators
from eval.robustness.suite import BarFactory, battery, run_battery
from eval.trajectory.options import ATTACKS
from eval.trajectory.record import Outcome, Point, Trajectory, rounded

_STEPS = 100
_PLACES = {"dataset", "run_dir", "resume", "data_root", "device"}
_PLACES |= {"preset", "list_presets", "hyperparameters", "progress", "attack"}


@takes_numbers
def snapshots(
    run: RunDir, device: torch.device | str = "cpu", network: str | None = None, points: int | None = None
) -> dict[int, Target]:
    """Return the snapshots of a run as targets, by images seen; of many, ``points`` spread from first to last.

    Raises InputError where the run kept none.
    """
    paths = snapshot_paths(run)
    if points is not None and points < len(paths):
        kept, steps = list(paths), np.linspace(len(paths) - 1, 0, points).round()
        paths = {kept[int(step)]: paths[kept[int(step)]] for step in steps[::-1]}
    if not paths:
        remedy = "train with --snapshots 12, or name passes such as 1,5,20"
        raise InputError(f"{run.path} has no snapshots; {remedy}")
    name, place = run.path.resolve().name, (run.results_dir / "trajectory", run.config.get("dataset"))
    targets = {}
    for images, path in paths.items():
        model = load_classifier(path, device, network)
        targets[images] = Target(f"{name} at {images:,}", model, model_sha256(model), *place)
    return targets


@takes_numbers
def follow(
    run: RunDir,
    targets: dict[int, Target],
    samples: Samples,
    threat: Threat,
    attacks: Sequence[str] = ATTACKS,
    *,
    seed: int = 0,
    batch_size: int | None = None,
    force: bool = False,
    bar: BarFactory | None = None,
) -> Trajectory:
    """Attack every snapshot (``targets``, from `snapshots`) on the same images and measure its indicators.

    ``attacks`` and the options are those of `eval.robustness.suite.run_battery`; ``force``: also what is stored.
    InputError and AttackError tell of a wrong name or option, or of a model that cannot be attacked.
    """
    common: dict[str, Any] = {"seed": seed, "batch_size": batch_size, "force": force, "bar": bar}
    battery(attacks, [threat], seed)  # wrong names and options end here
    points = []
    for images, target in targets.items():
        target.results_dir.mkdir(parents=True, exist_ok=True)
        report = run_battery(target, samples, attacks, [threat], results_dir=target.results_dir, **common)
        found, outcomes = report.results[threat], {}
        for name, result in found.items():
            shares = result.extra.get("shortened")
            kept = None if shares is None else [float(f"{value:.3g}") for value in shares]
            outcomes[name] = Outcome(bits(result.robust), result.attack, kept)
        clean = bits(next(iter(found.values())).clean_correct)
        measured = _stored_indicators(target, samples, threat, seed, force)
        points.append(Point(images, target.sha256, clean, outcomes, measured))
    stored = run.config["config"]
    config = {key: value for key, value in stored.items() if key not in _PLACES and value is not None}
    data = samples.record() | {"dataset": Path(samples.name.partition(":")[2] or samples.name).name}
    who = (run.path.resolve().name, regime_name(stored), stored["seed"], str(threat))
    return Trajectory(*who, data, samples.indices.tolist(), config, versions(), points)


def regime_name(config: dict[str, Any]) -> str:
    """Return what tables call a way of training: SL, RL, EPG, the phases of a schedule; -adv, -PGD or -TRADES after it.

    "adv" is the rule of arXiv 2606.12251: FGSM added to the loss.
    """
    short = {"supervised": "SL", "reinforce": "RL"}
    names = [part.partition(":")[0].strip() for part in (config.get("schedule") or config["algo"]).split(",")]
    regime = "+".join(short.get(name, name.upper()) for name in names)
    method = config["adversarial"]["method"]
    return regime if method == "none" else f"{regime}-{'adv' if method == 'fgsm' else method.upper()}"


def _stored_indicators(
    target: Target, samples: Samples, threat: Threat, seed: int, force: bool
) -> dict[str, list[float | None]]:
    """Return the indicators of a snapshot, from its file where that is there."""
    what = {"name": "indicators", **vars(threat), "steps": _STEPS}
    images = {"fingerprint": samples.fingerprint, "indices": samples.indices.tolist()}
    digest = configuration_hash(what, images, target.sha256, seed)
    path: Path = target.results_dir / f"indicators-{digest}.json"
    if path.is_file() and not force:
        return read_json(path)["indicators"]
    found = indicators(target, samples, threat, seed)
    write_json(path, what | {"model": target.sha256, "indicators": found})
    return found


def indicators(
    target: Target, samples: Samples, threat: Threat, seed: int = 0
) -> dict[str, list[float | None]]:
    """Measure a model at its images, and along the path of PGD by the cleverhans protocol.

    Per image: ``gradient_norm`` (L2 length of the input gradient of its cross-entropy), ``margin`` (true logit minus
    the largest other), ``entropy`` (bits); and along the path ``cosine`` (mean cosine of successive gradients),
    ``clamped_cosine`` (the same with directions by the authors' definition) and ``clamped`` (share of gradients whose
    direction the clamp shortens).
    """
    x, y = samples.batch(slice(None), target.device)
    at = input_gradient(target.model, x, y)
    about: dict[str, Any] = {**vars(threat), "steps": _STEPS, "protocol": "cleverhans", "seed": seed}
    path = dynamic_indicators(target.model, x, y, **about, sample_ids=samples.indices.to(x.device))
    columns = {
        "gradient_norm": lengths(at.grad).masked_fill(at.logits.isnan().any(1), torch.nan),
        "margin": -margin(at.logits, y),
        "entropy": entropy_bits(at.logits),
        "cosine": path.cosine.nanmean(0),
        "clamped_cosine": path.clamped_cosine.mean(0),
        "clamped": path.clamped.float().mean(0),
    }
    return {name: rounded(values.tolist()) for name, values in columns.items()}
