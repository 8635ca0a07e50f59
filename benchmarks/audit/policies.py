"""The audit's verdict on the paper's policies at growing training lengths."""

import functools
import time
from pathlib import Path
from typing import Any

from torch import nn

from agents.common.run_dir import RunDir
from agents.config import TrainConfig
from agents.training.run import train
from attacks.gradient.apgd import apgd_targeted
from attacks.gradient.pgd import pgd
from envs.datasets import Splits, load_splits
from envs.sampling import choose_indices
from eval.audit import audit
from eval.audit.record import AttackRecord, Family
from eval.trajectory.measure import snapshots

ALGORITHMS = ("reinforce", "epg", "ppo")
PASSES = (1, 5, 20, 100, 300)
_POINTS = len(PASSES)  # snapshots of a run, spread from first to last
_GAP = 0.10  # what standard attacks must overstate for "masked" to be right: the audit's own limit
_NEAR = 0.04  # within this of the limit either verdict is right: four images of 100


def train_policies(folder: Path, seed: int) -> None:
    """Train one policy of each algorithm on the digits, with snapshots after the `PASSES`."""
    for algorithm in ALGORITHMS:
        config = TrainConfig(
            algo=algorithm, seed=seed, passes=PASSES[-1], snapshots=",".join(map(str, PASSES)),
            run_dir=folder / algorithm, device="cpu", progress=False,
        )  # fmt: skip
        train(config)


def policy_jobs(folder: Path) -> list[str]:
    """Names of all snapshots to be audited, of every run directory in ``folder``."""
    runs = sorted(path.parent for path in folder.glob("*/config.json"))
    return [f"{run.name}, passes {passes}" for run in runs for passes in trained(run)]


@functools.cache
def trained(path: Path) -> dict[str, nn.Module]:
    """The policies of one run, by passes over its training images."""
    run = RunDir(path)
    size = len(_data(run).train)
    return {f"{seen / size:.0f}": target.model for seen, target in snapshots(run, points=_POINTS).items()}


@functools.cache
def _data(run: RunDir) -> Splits:
    dataset = run.config["dataset"]
    return load_splits(dataset["name"], data_root=dataset.get("data_root"))


def measure_policy(name: str, seed: int, n: int, norm: str, eps: float, folder: Path) -> dict[str, Any]:
    """Audit one policy, and attack it by what saturation cannot silence; the row of the table."""
    run_name, passes = name.split(", passes ")
    run = RunDir(folder / run_name)
    part = _data(run).test
    rows = choose_indices(len(part), n)
    model, x, y = trained(folder / run_name)[passes], part.images[rows].float() / 255, part.labels[rows]
    start = time.process_time()
    report = audit(model, x, y, norm=norm, eps=eps, seed=seed)
    seconds = time.process_time() - start
    record = AttackRecord(model, x, y, norm, eps, seed=seed)
    for loss in ("mifpe", "margin"):
        record.run(loss, Family.GRADIENT, pgd, model, steps=100, restarts=3, loss=loss)
    record.run("targets", Family.GRADIENT, apgd_targeted, model, steps=100, num_targets=9)
    by_name = {outcome.name: outcome for outcome in report.attacks}
    overstated = min(by_name[each].accuracy for each in ("PGD, cross-entropy", "APGD, cross-entropy")) - min(
        record.accuracy, report.robust_accuracy
    )
    floored = by_name["PGD, cross-entropy, cleverhans"].accuracy - min(
        record.accuracy, report.robust_accuracy
    )
    gap = max(overstated, floored)
    expected = "masked" if gap > _GAP else "sound"
    return {
        "kind": "policy",
        "dataset": part.name,
        "algorithm": run.config["algo"],
        "passes": int(passes),
        "model": name,
        "seed": seed,
        "expected": expected,
        "verdict": str(report.verdict),
        "cause": None if report.cause is None else str(report.cause),
        "reason": report.reason,
        "right": str(report.verdict) == expected or abs(gap - _GAP) <= _NEAR,
        "clean": report.clean_accuracy,
        "claimed": report.claimed_accuracy,
        "paper": by_name["PGD, cross-entropy, cleverhans"].accuracy,
        "corrected": report.robust_accuracy,
        "ci95": list(report.interval),
        "truth": record.accuracy,
        "truth_by": "PGD (100 steps, 3 restarts; MIFPE, margin), targeted APGD (9 classes)",
        "gap": gap,
        "cpu_seconds": seconds,
    }
