"""Accuracy against images and seconds for every algorithm, and whether the fast paths hold the slow paths' accuracy.

``python -m benchmarks.training.accuracy --data-root DIR`` trains on MNIST, prints two tables and writes
``docs/results/accuracy.{json,md,png}``. The fast path is the device-resident one; the slow path is stock
Stable-Baselines3 (or the same algorithm) over NumPy observations. Finished trainings are reused.
"""

import hashlib
import itertools
import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import stable_baselines3
import torch
import tyro
from rich.console import Console
from rich.progress import track
from stable_baselines3.common.callbacks import BaseCallback

from agents.config import TrainConfig
from agents.models.extraction import extract_classifier
from agents.models.image_network import ImageNetwork
from agents.training.factory import build_algorithm, build_env
from agents.training.resolve import resolve
from agents.training.validation import evaluate, to_pixels
from benchmarks.common import describe_machine, kept, write_results
from benchmarks.training.accuracy_page import (
    ALGORITHMS,
    BATCH,
    BUDGET_HEADINGS,
    GRADIENT_IMAGES,
    HEADINGS,
    LEARNING_RATE,
    NETWORK,
    cells_of,
    draw,
    mean,
    page,
    table,
)
from envs import ImageDataset, Splits, load_splits, sb3_env
from eval.mechanism.static_indicators import static_indicators

HYBRID = ("supervised", "reinforce")
# (how it is trained, its share of the images): the hybrid against what it is meant to replace
BUDGETS = (("supervised", 0.5), ("hybrid", 1.0), ("reinforce", 1.0), ("reinforce", 4.0))


class Curve(BaseCallback):
    """Records test accuracy every so many images, on a clock of CPU seconds that stands still meanwhile."""

    def __init__(self, test: ImageDataset, every: int) -> None:
        super().__init__()
        self.test, self.every = test, every
        self.points: list[dict[str, float]] = []
        self.seconds, self.due, self.since = 0.0, 0, time.process_time()

    def _on_rollout_start(self) -> None:
        if self.model.num_timesteps >= self.due:
            self.record()

    def record(self) -> None:
        self.seconds += time.process_time() - self.since
        accuracy = evaluate(extract_classifier(self.model.policy), self.test).accuracy
        images = self.model.num_timesteps
        self.points.append({"images": images, "seconds": self.seconds, "accuracy": accuracy})
        self.due = images + self.every
        self.since = time.process_time()

    def _on_step(self) -> bool:
        return True


def main(
    data_root: Path | None = None,
    dataset: str = "mnist",
    images: int = 160_000,
    seeds: int = 3,
    threads: int = 1,
    cache: Path | None = None,
) -> None:
    """Train everything and write the results.

    Args:
        data_root: where the data set lies.
        dataset: the data set.
        images: images that each training sees.
        seeds: trainings of each kind.
        threads: CPU threads.
        cache: folder of finished trainings; by default one in the temporary directory.
    """
    torch.set_num_threads(threads)
    splits = load_splits(dataset, data_root=data_root)
    folder = cache or Path(tempfile.gettempdir()) / "labelbandit-accuracy"
    kinds = [(path, name, 1.0) for name in ALGORITHMS for path in ("fast", "slow")]
    kinds += [kind for name, share in BUDGETS if (kind := ("fast", name, share)) not in kinds]
    runs = []
    for seed, (path, name, share) in track(list(itertools.product(range(seeds), kinds)), "training"):
        length = round(share * images)
        settings = [path, name, seed, length, dataset, BATCH, LEARNING_RATE, NETWORK, GRADIENT_IMAGES]
        key = json.dumps([*settings, splits.train.fingerprint])
        file = folder / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
        found = kept(file, partial(train_one, path, name, seed, length, splits))
        what = {"path": path, "algorithm": name, "seed": seed, "images": length, "share": share}
        runs.append(what | found)
    machine = describe_machine()
    whole = [run for run in runs if run["share"] == 1]
    rows, budgets = compare(whole), compare_budgets(runs)
    console = Console()
    console.print(
        table(HEADINGS, [cells_of(row) for row in rows], "test accuracy, mean and deviation over seeds")
    )
    console.print(table(BUDGET_HEADINGS, budgets, "the hybrid"))
    draw(whole, dataset)
    write_results(
        "accuracy",
        {"machine": machine, "images": images, "rows": rows, "runs": runs},
        page(rows, budgets, machine, images),
    )


def config_of(name: str, seed: int) -> TrainConfig:
    return TrainConfig(
        algo=name,
        network=NETWORK,
        batch_size=BATCH,
        learning_rate=LEARNING_RATE,
        seed=seed,
        lr_schedule="constant",
    )


def train_one(path: str, name: str, seed: int, images: int, splits: Splits) -> dict[str, Any]:
    """Train once and return the curve, and how input gradients look at the end."""
    torch.manual_seed(seed)
    curve = Curve(splits.test, images // 16)
    if name == "hybrid":
        _hybrid(seed, images, splits, curve)
        return {"points": curve.points, "gradients": gradients_of(curve)}
    if path == "fast":
        settings = resolve(config_of(name, seed), splits.train)
        model = build_algorithm(settings, build_env(settings, splits.train), splits.train)
    else:
        model = slow(name, seed, splits.train)
    model.learn(images, callback=curve, log_interval=None)  # type: ignore[arg-type]
    curve.record()
    return {"points": curve.points, "gradients": gradients_of(curve)}


def gradients_of(curve: Curve) -> dict[str, float]:
    """Return what the input gradients of the cross-entropy are like on test images."""
    test = curve.test.take(torch.arange(GRADIENT_IMAGES))
    model = extract_classifier(curve.model.policy).eval()
    found = static_indicators(model, to_pixels(test.images), test.labels, eps=1.5, power_iterations=1)
    return {
        "gradient_norm": float(found.gradient_norm.median()),
        "under_floor": float(found.under_floor.float().mean()),
        "stability": float(found.stability.nanmedian()),
        "margin": float(found.margin.median()),
    }


def _hybrid(seed: int, images: int, splits: Splits, curve: Curve) -> None:
    """Spend a third of the images on supervised learning and the rest on REINFORCE, with one network."""
    settings = [resolve(config_of(name, seed), splits.train) for name in HYBRID]
    env = build_env(settings[0], splits.train)
    first, second = (build_algorithm(each, env, splits.train) for each in settings)
    first.learn(images // 3, callback=curve, log_interval=None)  # type: ignore[arg-type]
    second.policy.load_state_dict(first.policy.state_dict())
    second.policy.optimizer.load_state_dict(first.policy.optimizer.state_dict())
    second.num_timesteps, second._last_obs = first.num_timesteps, first._last_obs
    second.learn(images - images // 3, callback=curve, log_interval=None, reset_num_timesteps=False)  # type: ignore[arg-type]
    curve.record()


def slow(name: str, seed: int, dataset: ImageDataset) -> Any:
    """Return the algorithm over NumPy observations: stock SB3 where SB3 has it."""
    env = sb3_env(dataset, BATCH, seed=seed, order="epoch")
    fast = build_algorithm(resolve(config_of(name, seed), dataset), env, dataset)
    if name not in ("ppo", "a2c", "dqn"):
        return fast
    mean, std = (tuple(values.tolist()) for values in dataset.channel_stats())
    policy_kwargs = {
        "features_extractor_class": ImageNetwork,
        "features_extractor_kwargs": {"network": NETWORK, "mean": mean, "std": std},
        "net_arch": [],
        "optimizer_class": torch.optim.AdamW,
    }
    shared: dict[str, Any] = {
        "learning_rate": LEARNING_RATE,
        "gamma": 0.0,
        "seed": seed,
        "policy_kwargs": policy_kwargs,
    }
    kinds: dict[str, Callable[..., Any]] = {
        "ppo": lambda: stable_baselines3.PPO(
            "CnnPolicy", env, n_steps=fast.n_steps, batch_size=BATCH, n_epochs=4, max_grad_norm=1.0, **shared
        ),
        "a2c": lambda: stable_baselines3.A2C(
            "CnnPolicy", env, n_steps=1, use_rms_prop=False, normalize_advantage=True, ent_coef=0.1, **shared
        ),
        "dqn": lambda: stable_baselines3.DQN(
            "CnnPolicy",
            env,
            buffer_size=50_000,
            learning_starts=1000,
            batch_size=BATCH,
            train_freq=1,
            target_update_interval=1000,
            exploration_fraction=0.2,
            max_grad_norm=1.0,
            **shared,
        ),
    }
    return kinds[name]()


def compare(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return, per algorithm, final accuracies by path and the difference of their means in points."""
    final: dict[tuple[str, str], list[float]] = {}
    seconds: dict[tuple[str, str], list[float]] = {}
    for run in runs:
        key = (run["algorithm"], run["path"])
        final.setdefault(key, []).append(run["points"][-1]["accuracy"])
        seconds.setdefault(key, []).append(run["points"][-1]["seconds"])
    rows = []
    for name in (*ALGORITHMS, "hybrid"):
        fast, slow_runs = final[name, "fast"], final.get((name, "slow"))
        rows.append(
            {
                "algorithm": name,
                "fast": fast,
                "slow": slow_runs,
                "points": None
                if slow_runs is None
                else 100 * (float(np.mean(fast)) - float(np.mean(slow_runs))),
                "seconds": float(np.mean(seconds[name, "fast"])),
                "slow_seconds": None if slow_runs is None else float(np.mean(seconds[name, "slow"])),
            }
        )
    return rows


def compare_budgets(runs: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Return a row of text for each of ``BUDGETS``."""
    rows = []
    for name, share in BUDGETS:
        chosen = [
            run for run in runs if (run["path"], run["algorithm"], run["share"]) == ("fast", name, share)
        ]
        accuracy = mean([run["points"][-1]["accuracy"] for run in chosen])
        gradients = {key: [run["gradients"][key] for run in chosen] for key in chosen[0]["gradients"]}
        rows.append(
            (
                name,
                f"{chosen[0]['images']:,}",
                accuracy,
                f"{np.mean(gradients['gradient_norm']):.2g} ({min(gradients['gradient_norm']):.2g} to "
                f"{max(gradients['gradient_norm']):.2g})",
                f"{np.mean(gradients['under_floor']):.1%}",
                f"{np.mean(gradients['stability']):.2f}",
                f"{np.mean(gradients['margin']):.1f}",
            )
        )
    return rows


if __name__ == "__main__":
    tyro.cli(main)
