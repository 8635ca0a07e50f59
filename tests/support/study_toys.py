"""A study of seconds, and networks that misbehave, for tests."""

import math
import os
import signal
from pathlib import Path

from torch import nn

from eval.study.plan.cells import cells_of
from eval.study.plan.config import Grid, parse_grid
from eval.study.run.jobs import Place
from eval.study.run.scheduler import Study

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
