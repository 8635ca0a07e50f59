"""A study of seconds, and networks that misbehave, for tests."""

import dataclasses
import math
import os
import signal
from pathlib import Path

import numpy as np
from torch import nn

from eval.study.plan.cells import cells_of
from eval.study.plan.config import Attack, AuditPlan, Grid, MechanismPlan, Regime, TransferPlan, parse_grid
from eval.study.run.jobs import Place, Study

TINY = {
    "name": "tiny",
    "datasets": ["digits"],
    "networks": ["mlp"],
    "regimes": {"SL": {"algo": "supervised"}, "RL": {"algo": "reinforce"}},
    "threats": ["L2 0.5"],
    "attacks": ["pgd", "pgd-cleverhans"],
    "attack": {
        "pgd": {"steps": 5},
        "pgd-cleverhans": {"attack": "pgd", "protocol": "cleverhans", "steps": 5},
    },
    "images": 24,
    "train": {"total_images": 1200, "batch_size": 50, "eval_every": 300, "threads": 1},
    "transfer": {"steps": 3},
    "mechanism": {"images": 0},
    "audit": {"mode": "none"},
    "gallery": 4,
}


def tiny(**changes) -> Grid:
    return parse_grid(TINY | changes)


def shrunk(grid: Grid, folder: Path) -> Grid:
    """The study on 60 random images of 8x8 pixels, every regime, few networks, a few steps of everything."""
    channels = 1 if grid.datasets[0] in ("digits", "mnist") else 3
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (60, 8, 8, channels), dtype=np.uint8)
    labels = np.arange(60) % 3
    np.savez(
        folder / "few.npz", x_train=images[:48], y_train=labels[:48], x_test=images[48:], y_test=labels[48:]
    )
    regimes = []
    for k, regime in enumerate(grid.regimes):
        config = regime.config(grid.datasets[0], grid.networks[0], 0, grid.train, grid.image_size)
        options = config.to_dict()
        options |= {
            "precision": "fp32",
            "batch_size": 12,
            "total_images": 24,
            "passes": None,
            "lr_warmup": 0.0,
        }
        options |= {"threads": 1, "eval_every": 24, "probe_images": 4 if config.select == "robust" else None}
        if config.schedule is not None:
            phases = ",".join(f"{name}:0.5" for name, _ in config.phases())
            options |= {"schedule": phases, "total_images": None}
        options["learning_rate"] = 1e-3 + 1e-5 * k  # regimes that differ in length alone stay different
        options["adversarial"] |= {"start": None if config.adversarial.start is None else 0.5}
        own = ("preset", "dataset", "network", "seed", "image_size", "run_dir", "resume", "list_presets")
        own = (*own, "device", "data_root", "progress", "attack")
        regimes.append(Regime(regime.name, {key: item for key, item in options.items() if key not in own}))
    pgd = Attack("pgd", "pgd", {"steps": 2})
    networks = ("mlp",) if grid.networks == ("cnn6",) else grid.networks[:1]
    return dataclasses.replace(
        grid, datasets=(f"npz:{folder / 'few.npz'}",), networks=networks, regimes=tuple(regimes), seeds=(0,),
        image_size=None, images=6, attacks=(pgd,), train={}, gallery=0, transfer=TransferPlan(()),
        mechanism=MechanismPlan(0), audit=AuditPlan("none"),
    )  # fmt: skip


def study(grid: Grid, directory: Path, shards: int = 1) -> Study:
    return Study(grid, tuple(cells_of(grid)), Place(directory, "cpu"), shards)


class Bomb(nn.Module):
    """The first of all processes that passes it so many times is killed; ``STUDY_BOMB`` names the file that says so."""

    fuse = 15

    def forward(self, x):
        self.fuse -= 1
        marker = Path(os.environ["STUDY_BOMB"])
        if self.fuse < 0 and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return x


def bomb(shape: tuple[int, int, int]) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), 16), nn.ReLU(), Bomb())


def broken(shape: tuple[int, int, int]) -> nn.Module:
    raise RuntimeError("no such luck")
