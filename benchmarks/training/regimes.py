"""The paper's regimes side by side: clean and robust accuracy on MNIST, over seeds.

``python -m benchmarks.training.regimes --data-root DIR`` trains every cell, attacks it, prints the table and writes
``docs/results/regimes.json`` and ``regimes.md``. Finished cells are reused when the command is run again, and a cell
that another process is training is left to it, so the command may run several times side by side.
"""

import dataclasses
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any, Literal

import torch
import tyro
from rich.console import Console
from rich.table import Table

import attacks
from agents.adversarial_config import AdversarialConfig
from agents.config import TrainConfig
from agents.models.classifier_files import load_classifier
from agents.training.validation import to_pixels
from benchmarks import trainings
from benchmarks.common import describe_machine, machine_line, write_results
from envs import ImageDataset, load_dataset
from envs.errors import InputError
from envs.files import read_json, write_json
from envs.sampling import choose_indices
from eval.core.stats import mean_interval, wilson

THREATS = {"Linf": 0.1, "L2": 1.5}
STEPS = 3
SHARED = "any"  # regimes whose training knows no threat are trained once and attacked under each


PLAIN = AdversarialConfig()
PAPER = AdversarialConfig("fgsm", eps=0.01, norm="Linf", weight=0.2)
PGD_AT = AdversarialConfig("pgd", steps=STEPS)


@dataclass(frozen=True)
class Regime:
    """A row of the table; ``passes`` over the training set, ``method`` with the threat's ball if ``threat`` is set."""

    name: str
    algo: str
    passes: float
    adversarial: AdversarialConfig = PLAIN
    threat: bool = False


REGIMES = (
    Regime("SL", "supervised", 2),
    Regime("SL-adv (PGD-AT)", "supervised", 2, PGD_AT, threat=True),
    Regime("RL", "reinforce", 2),
    Regime("RL-adv (paper's rule)", "reinforce", 2, PAPER),
    Regime("RL-adv (PGD-AT)", "reinforce", 2, PGD_AT, threat=True),
    Regime("EPG", "epg", 2),
    Regime("EPG-adv (PGD-AT)", "epg", 2, PGD_AT, threat=True),
)


@dataclass(frozen=True)
class Cell:
    """One trained classifier: a regime, the norm it was trained against (or ``any``), and a seed."""

    regime: Regime
    norm: str
    seed: int

    @property
    def folder(self) -> str:
        words = "".join(letter if letter.isalnum() else " " for letter in self.regime.name.lower())
        return f"{'-'.join(words.split())}-{self.norm.lower()}-s{self.seed}"

    def config(self, path: Path, data_root: Path | None) -> TrainConfig:
        adversarial = self.regime.adversarial
        if self.regime.threat:
            adversarial = dataclasses.replace(adversarial, norm=self.norm, eps=THREATS[self.norm])  # type: ignore[arg-type]
        return TrainConfig(
            algo=self.regime.algo,
            dataset="mnist",
            data_root=data_root,
            network="strided",
            seed=self.seed,
            passes=self.regime.passes,
            batch_size=128,
            learning_rate=2e-3,
            eval_every=27_000,
            select="robust" if self.regime.threat else "clean",
            adversarial=adversarial,
            attack=False,
            progress=False,
            threads=torch.get_num_threads(),
            run_dir=path,
        )


def main(
    data_root: Path | None = None,
    seeds: int = 3,
    images: int = 100,
    runs: Path = Path("runs/regimes"),
    threads: int = 2,
    attack: Literal["autoattack", "margin-pgd"] | None = None,
    train_only: bool = False,
    write: bool = True,
) -> None:
    """Train and attack every regime.

    Args:
        data_root: where MNIST lies.
        seeds: trainings of each cell.
        images: test images attacked per training.
        runs: where trainings and attacks are kept.
        threads: CPU threads.
        attack: AutoAttack (standard), or PGD on the margin (100 steps, 2 restarts), which takes a tenth of the time.
            Default: AutoAttack where this version has it.
        train_only: leave attacks and table to a later call.
        write: write ``docs/results/regimes.json`` and ``regimes.md``.
    """
    torch.set_num_threads(threads)
    if attack is not None and attack not in ATTACKS:
        raise InputError(f"this version has no {attack}; leave --attack out")
    console = Console()
    test = load_dataset("mnist", "test", data_root=data_root)
    found = []
    for cell in cells(seeds):
        summary = trained(cell, runs, data_root, console)
        if train_only:
            continue
        for norm in THREATS if cell.norm == SHARED else (cell.norm,):
            row = attacked(cell, norm, attack or strongest_attack(), runs, test, images, console)
            found.append(row | {"clean": summary["test_accuracy"], "train_seconds": summary["seconds"]})
    if train_only:
        return
    rows = [summarise(regime, norm, found) for norm in THREATS for regime in REGIMES]
    console.print(table(rows))
    if write:
        machine = describe_machine()
        payload = {"machine": machine, "rows": rows, "cells": found}
        data, text = write_results("regimes", payload, markdown(rows, found, machine))
        console.print(f"written: {data} and {text}")


def cells(seeds: int) -> Iterator[Cell]:
    """Yield every training, whole tables first: an interrupted command has finished some seeds."""
    for seed in range(seeds):
        for regime in REGIMES:
            for norm in THREATS if regime.threat else (SHARED,):
                yield Cell(regime, norm, seed)


def trained(cell: Cell, runs: Path, data_root: Path | None, console: Console) -> dict[str, Any]:
    """Return the summary of the cell's training, trained first if it is missing."""
    path = runs / cell.folder
    while not (path / "summary.json").is_file():
        console.print(f"training {cell.folder}")
        try:
            trainings.trained(cell.config(path, data_root))
        except InputError:
            if not path.exists():
                raise
            time.sleep(10)  # another process trains this cell
    return read_json(path / "summary.json")


def attacked(
    cell: Cell, norm: str, attack: str, runs: Path, test: ImageDataset, images: int, console: Console
) -> dict[str, Any]:
    """Return the outcome of ``attack`` on the cell's classifier, attacked first if it is missing."""
    path = runs / cell.folder / f"{attack}-{norm}-{images}.json"
    if not path.is_file():
        console.print(f"attacking {cell.folder} by {attack} at {norm}")
        classifier = load_classifier(runs / cell.folder)
        start = time.perf_counter()
        rows = choose_indices(len(test), images)
        broken = ATTACKS[attack](
            classifier, to_pixels(test.images[rows]), test.labels[rows], norm=norm, eps=THREATS[norm]
        ).success
        write_json(
            path,
            {
                "regime": cell.regime.name,
                "norm": norm,
                "seed": cell.seed,
                "attack": attack,
                "survived": (~broken).tolist(),
                "seconds": time.perf_counter() - start,
            },
        )
    return read_json(path)


def strongest_attack() -> str:
    """Return AutoAttack, or PGD on the margin where this version has none."""
    return next(reversed(ATTACKS))


ATTACKS: dict[str, Any] = {"margin-pgd": partial(attacks.pgd, loss="margin", steps=100, restarts=2)}
if hasattr(attacks, "autoattack"):
    ATTACKS["autoattack"] = attacks.autoattack


def summarise(regime: Regime, norm: str, found: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a row: means over seeds, Student's interval over seeds, Wilson's over images at the mean."""
    mine = [row for row in found if row["regime"] == regime.name and row["norm"] == norm]
    clean = mean_interval([row["clean"] for row in mine])
    robust = mean_interval([mean(row["survived"]) for row in mine])
    images = len(mine[0]["survived"])
    return {
        "regime": regime.name,
        "norm": norm,
        "eps": THREATS[norm],
        "attack": mine[0]["attack"],
        "seeds": len(mine),
        "images": images,
        "clean": clean.mean,
        "clean_over_seeds": clean.interval,
        "robust": robust.mean,
        "robust_over_seeds": robust.interval,
        "robust_over_images": wilson(round(robust.mean * images), images),
        "train_seconds": mean(row["train_seconds"] for row in mine),
    }


HEADINGS = (
    "regime",
    "threat",
    "clean",
    "robust",
    "95 % over seeds",
    "95 % over images",
    "seeds",
)


def _texts(row: dict[str, Any]) -> list[str]:
    return [
        row["regime"],
        f"{row['norm']} {row['eps']:g}",
        f"{row['clean']:.1%}",
        f"{row['robust']:.1%}",
        _interval(row["robust_over_seeds"]),
        _interval(row["robust_over_images"]),
        str(row["seeds"]),
    ]


def _interval(interval: Any) -> str:
    if interval is None:
        return "-"
    low, high = (min(max(bound, 0.0), 1.0) for bound in interval)
    return f"{low:.1%} to {high:.1%}"


def table(rows: list[dict[str, Any]]) -> Table:
    grid = Table(title=f"MNIST, robust accuracy under {rows[0]['attack']}, {rows[0]['images']} images")
    for index, heading in enumerate(HEADINGS):
        grid.add_column(heading, justify="left" if index < 2 else "right")
    for row in rows:
        grid.add_row(*_texts(row))
    return grid


def markdown(rows: list[dict[str, Any]], found: list[dict[str, Any]], machine: dict[str, Any]) -> str:
    attack, images = rows[0]["attack"], rows[0]["images"]
    command = f"python -m benchmarks.training.regimes --data-root DIR --attack {attack} --images {images}"
    lines = [
        "# Regimes on MNIST",
        "",
        f"Robust accuracy under {attack} on the first {images} test images; clean accuracy on all 10,000. Made by "
        f"`{command}`; finished cells are reused.",
        "",
        "| " + " | ".join(HEADINGS) + " |",
        "|" + "---|" * len(HEADINGS),
        *("| " + " | ".join(_texts(row)) + " |" for row in rows),
        "",
        f"Network: `strided`; batch 128, AdamW at 2e-3 falling linearly; {REGIMES[0].passes:g} passes. "
        f"PGD-AT: {STEPS} steps from a random start in the threat's ball on cross-entropy, attacked images alone, kept "
        "by robust validation accuracy. Paper's rule: FGSM of Linf .01 on the policy-gradient loss, weight .2. Regimes "
        "that know no threat are trained once per seed and attacked under both. Intervals: Student's t over seeds; "
        "Wilson over images at the mean.",
        "",
        machine_line(machine),
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    tyro.cli(main)
