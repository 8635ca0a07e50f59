"""Our attacks beside the published ones on one GPU: time, robust accuracy, and how busy the GPU was.

``python -m benchmarks.attacks.gpu --dataset folder:DIR`` trains cnn6 plainly and by PGD, attacks 1,000 test
images of each, and writes ``docs/results/attacks-gpu.{json,md}``. DIR holds CIFAR-10 as an ImageFolder tree;
``--dataset cifar10`` downloads it. Trainings and rows are kept under ``runs/attacks-gpu``; a call that was cut
short is given again. Without ``--tf32`` all attacks compute in float32, as this project evaluates. On a machine without
a GPU the same code runs on the CPU, slowly.
"""

import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import torch
import tyro
from rich.console import Console
from torch import Tensor, nn

import attacks
from agents.adversarial_config import AdversarialConfig
from agents.common.precision import use_tf32
from agents.config import TrainConfig
from attacks.core.losses import misclassified
from benchmarks.attacks.cpu import STEPS, logits_of
from benchmarks.attacks.models import test_images, trained
from benchmarks.attacks.page import GOALS, against_goal, table
from benchmarks.attacks.peers import load_peers, pgd_peer, published_autoattack
from benchmarks.common import describe_machine, kept, machine_line, timed, write_results
from benchmarks.packages import version_of
from envs.errors import InputError

HEADINGS = ("classifier", "attack", "contestant", "seconds", "GPU busy", "ratio", "goal", "robust accuracy")
PEERS = ("torchattacks", "foolbox", "adv-lib")


def main(
    dataset: str = "cifar10",
    data_root: Path | None = None,
    network: str = "cnn6",
    passes: float = 30.0,
    n: int = 1000,
    eps: float = 8 / 255,
    norm: str = "Linf",
    peers: tuple[str, ...] = PEERS,
    runs: Path = Path("runs/attacks-gpu"),
    tf32: bool = False,
    write: bool = True,
) -> None:
    """Train what is not trained yet, attack, and print and write the page.

    Args:
        dataset: data set of images.
        data_root: where it lies.
        network: the network.
        passes: training passes over the data set.
        n: test images.
        eps: radius, in units of pixels.
        norm: of AutoAttack, Linf, L2 or L1; PGD is Linf.
        peers: of PGD: torchattacks, foolbox, adv-lib.
        runs: where trainings and rows are kept.
        tf32: let the GPU round products of float32 to TF32 in all attacks, as PyTorch does by default.
        write: write the results.
    """
    load_peers((*peers, "pyautoattack"))
    use_tf32(tf32)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    console = Console(stderr=True)
    x, y = (part.to(device) for part in test_images(dataset, n, data_root))
    rows = []
    for adversarial in (False, True):
        config = training(dataset, data_root, network, passes, eps, adversarial)
        kind = "adversarial" if adversarial else "fragile"
        config = replace(config, run_dir=runs / f"{network}-{kind}", device=device.type)
        model = trained(config, console).to(device)
        attacks.pgd(model, x, y, norm="Linf", eps=eps, steps=3)
        for attack, contestants in (
            ("pgd", pgd_contestants(model, x, y, eps, peers)),
            ("autoattack", autoattack_contestants(model, x, y, norm, eps)),
        ):
            for name, run in contestants.items():
                console.print(f"{kind}: {attack}, {name}")
                what = {"classifier": kind, "attack": attack, "contestant": name}
                at = f"{attack}-{norm}" if attack == "autoattack" else attack
                file = f"{network}-{kind}-{at}-{name}-{n}-{eps:.4g}{'-tf32' * tf32}-{device.type}.json"
                rows.append(what | kept(runs / "rows" / file, partial(measure, model, y, run)))
    machine = describe_machine()
    machine["versions"] |= {name: version_of(name) for name in (*peers, "pyautoattack")}
    text = page(rows, machine, f"{network} on {dataset}, {n:,} test images, {norm} {eps:.4g}")
    print(text)
    if write:
        write_results("attacks-gpu", {"machine": machine, "rows": rows}, text)


def training(
    dataset: str, data_root: Path | None, network: str, passes: float, eps: float, adversarial: bool
) -> TrainConfig:
    """Return the training of a classifier to attack: plain, or by PGD-7 in the ball."""
    ball = AdversarialConfig("pgd", eps=eps, norm="Linf", steps=7) if adversarial else AdversarialConfig()
    return TrainConfig(
        algo="supervised",
        dataset=dataset,
        data_root=data_root,
        network=network,
        passes=passes,
        adversarial=ball,
        attack=False,
    )


def pgd_contestants(
    model: nn.Module, x: Tensor, y: Tensor, eps: float, peers: tuple[str, ...]
) -> dict[str, Callable[[], Tensor]]:
    """PGD-100 at Linf on all images, as functions that return adversarial images."""
    step = eps / 8
    options = {"norm": "Linf", "eps": eps, "steps": STEPS, "step_size": step}
    ours = {"ours": lambda: attacks.pgd(model, x, y, **options).adversarial}  # type: ignore[arg-type]
    return ours | {name: pgd_peer(name, model, x, y, eps, step, STEPS) for name in peers}


def autoattack_contestants(
    model: nn.Module, x: Tensor, y: Tensor, norm: str, eps: float
) -> dict[str, Callable[[], Tensor]]:
    """AutoAttack, published and ours, as functions that return adversarial images."""

    def ours(version: str) -> Tensor:
        return attacks.autoattack(model, x, y, norm=norm, eps=eps, version=version).adversarial

    versions = {version: partial(ours, version) for version in ("standard", "fast")}
    return {"published": published_autoattack(model, x, y, norm, eps, batch_size=len(x)), **versions}


def measure(model: nn.Module, y: Tensor, run: Callable[[], Tensor]) -> dict[str, Any]:
    """Seconds that ``run`` takes, the share of them that the GPU was busy, and the accuracy on what it returns."""
    found: list[Tensor] = []
    with utilisation() as samples:
        seconds = timed(lambda: found.append(run()))
    survived = ~misclassified(logits_of(model, found[0]), y)
    return {
        "seconds": seconds,
        "utilisation": mean(samples) if samples else None,
        "robust_accuracy": survived.double().mean().item(),
    }


@contextmanager
def utilisation() -> Iterator[list[float]]:
    """Fill the list, at the end, with how busy the GPU was every 200 ms, in per cent; empty without nvidia-smi."""
    samples: list[float] = []
    query = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "--loop-ms=200"]
    program = shutil.which(query[0]) if torch.cuda.is_available() else None
    if program is None:
        yield samples
        return
    with subprocess.Popen(query, stdout=subprocess.PIPE, text=True) as watcher:
        try:
            yield samples
        finally:
            watcher.terminate()
            lines = watcher.communicate()[0].split()
            samples.extend(float(line) for line in lines if line.isdigit())


def page(rows: list[dict[str, Any]], machine: dict[str, Any], what: str) -> str:
    """Return the Markdown page."""
    lines = [
        "# Attacks on one GPU",
        "",
        f"`python -m benchmarks.attacks.gpu`: {what}. PGD takes 100 steps. Wall-clock seconds, the device waited for, "
        "one turn each after a short attack for warming up; busy is the mean of nvidia-smi's samples. A ratio is the "
        "other's time by ours; its goal stands behind it. Robust accuracy is verified on the images that an attack "
        "returned.",
        "",
        machine_line(machine),
        "",
    ]
    return "\n".join([*lines, *table(HEADINGS, _rows(rows))])


def _rows(rows: list[dict[str, Any]]) -> Iterator[tuple[str, ...]]:
    seconds = {(row["classifier"], row["attack"], row["contestant"]): row["seconds"] for row in rows}
    for row in rows:
        kind, attack, name = row["classifier"], row["attack"], row["contestant"]
        ratio, goal = "", ""
        if attack == "autoattack" and name != "published":
            value = seconds[kind, attack, "published"] / row["seconds"]
            ratio, goal = f"{value:.1f}", against_goal(value, GOALS[name][kind == "fragile"])
        elif attack == "pgd" and name != "ours":
            value = row["seconds"] / seconds[kind, attack, "ours"]
            ratio = f"{value:.2f}"
            goal = against_goal(value, GOALS["pgd"][1]) if kind == "fragile" else ""
        busy = "-" if row["utilisation"] is None else f"{row['utilisation']:.0f} %"
        yield kind, attack, name, f"{row['seconds']:.2f}", busy, ratio, goal, f"{row['robust_accuracy']:.1%}"


if __name__ == "__main__":
    try:
        tyro.cli(main)
    except InputError as error:
        raise SystemExit(str(error)) from None
