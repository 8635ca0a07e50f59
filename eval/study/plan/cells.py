"""The cells of a study: one trained model each, in a folder named by the hash of what made it."""

import contextlib
import hashlib
import json
import re
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

from agents.algorithms.registry import find_algorithm
from agents.common.run_dir import RunDir
from agents.config import TrainConfig
from agents.training.schedule import phase_ends
from envs.errors import InputError
from envs.files import read_json, write_json
from eval.study.plan.config import Grid, training_key

FORMAT = 1
BACKWARD = 3.0  # forward and backward together, in forwards


@dataclass(frozen=True)
class Cell:
    """One training of the grid, by its place in it.

    Run directory, device and data root of its ``config`` are filled in when it runs.
    """

    dataset: str
    network: str
    regime: str
    seed: int
    config: TrainConfig

    @property
    def id(self) -> str:
        """A name for people, such as ``digits-small-RL-adv-s0``."""
        return re.sub(r"[^\w.+-]+", "-", f"{self.dataset}-{self.network}-{self.regime}-s{self.seed}")

    @cached_property
    def hash(self) -> str:
        """16 hex digits of everything that decides over the trained weights."""
        return digest(training_key(self.config))

    @property
    def import_path(self) -> str | None:
        """Where the network is imported from, None for one that is built in."""
        return self.network if ":" in self.network else None

    @property
    def group(self) -> tuple[str, str, str]:
        """Data set, network and regime: what seeds are repetitions of."""
        return self.dataset, self.network, self.regime


def digest(value: Any) -> str:
    """Return 16 hex digits that name a JSON value."""
    text = json.dumps(value, sort_keys=True, allow_nan=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def cells_of(grid: Grid) -> list[Cell]:
    """Return every cell, whole tables first: an interrupted study has finished some seeds.

    Raises InputError where a configuration is wrong, or two cells are the same.
    """
    cells: dict[str, Cell] = {}
    for seed, dataset, network, regime in product(grid.seeds, grid.datasets, grid.networks, grid.regimes):
        config = regime.config(dataset, network, seed, grid.train, grid.image_size)
        cell = Cell(dataset, network, regime.name, seed, config)
        twin = cells.setdefault(cell.hash, cell)
        if twin is not cell:
            problem = f"{twin.id} and {cell.id} are the same training"
            raise InputError(f"{problem}; change a setting of one regime or remove it")
    return list(cells.values())


def training_passes(config: TrainConfig, train_images: int, until: int | None = None) -> float:
    """Return a training's cost in forward passes of one image: 3 an image, PPO 1 + 3 per epoch, 3 per attack step.

    ``train_images`` is the size of the training set; ``until`` counts the images trained on, None to the end.
    """
    total, begin, adversarial = 0.0, 0, config.adversarial
    for (name, _), end in zip(config.phases(), phase_ends(config, train_images), strict=True):
        last = end if until is None else min(end, until)
        total += max(0, last - begin) * find_algorithm(name).forward_passes(config)
        if adversarial.method != "none":
            extra = adversarial.full_steps() + (0 if adversarial.rule == "replace" else 1)
            attacked = max(0.0, last - max(begin, (adversarial.start or 0.0) * train_images))
            total += attacked * extra * BACKWARD
        begin = end
    return total


@dataclass
class CellFolder:
    """The folder ``DIR/cells/HASH`` of a cell, and the record of what is done in it.

    ``steps``, by name: ``key`` (hash of what the step did), ``seconds``, and what the step noted; ``error``: why the
    last attempt failed, or None.
    """

    path: Path
    steps: dict[str, dict[str, Any]] = field(default_factory=dict)
    error: str | None = None

    @classmethod
    def open(cls, study: Path, cell_hash: str) -> "CellFolder":
        """Read the record of a cell; an empty one where there is none or it is damaged."""
        folder = cls(study / "cells" / cell_hash)
        with contextlib.suppress(InputError, KeyError, TypeError, AttributeError):
            content = read_json(folder.record_path)
            if content["format"] == FORMAT:
                folder.steps, folder.error = dict(content["steps"]), content.get("error")
        return folder

    @property
    def record_path(self) -> Path:
        """``cell.json``."""
        return self.path / "cell.json"

    @property
    def run(self) -> RunDir:
        """The run directory of the training."""
        return RunDir(self.path / "run")

    def has(self, step: str, key: str) -> bool:
        """Return whether the step is done with this key."""
        return self.steps.get(step, {}).get("key") == key

    def note(self, cell: Cell, step: str, key: str, **facts: Any) -> None:
        """Record a finished step."""
        self.steps[step] = {"key": key, **facts}
        self.write(cell)

    def write(self, cell: Cell) -> None:
        """Write ``cell.json``, atomically."""
        content = {"format": FORMAT, "id": cell.id, "hash": cell.hash, "config": training_key(cell.config)}
        write_json(self.record_path, content | {"steps": self.steps, "error": self.error})
