"""Our APGD and FAB beside the published ones at a small budget: ten adversarially trained classifiers, paired.

``python -m benchmarks.attacks.small_budget`` trains classifiers of several seeds on digits, attacks each by ours and by
pyautoattack with the same seed, and prints a Markdown table. Trainings are kept under ``runs/attacks``.
"""

import importlib
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev

import torch
import tyro
from rich.console import Console
from torch import Tensor, nn

import attacks
from attacks.core.losses import misclassified
from benchmarks.attacks.models import Setting, test_images, trained
from benchmarks.attacks.page import table
from benchmarks.attacks.peers import load_peer

HEADINGS = ("attack", "ours", "published", "difference", "weaker, equal, stronger")
Attack = Callable[[nn.Module, Tensor, Tensor, int], Tensor]


def main(seeds: int = 10, steps: int = 50, eps: float = 0.2, passes: float = 15, images: int = 359) -> None:
    """Measure and print.

    Args:
        seeds: classifiers, and seeds of the attacks.
        steps: iterations of every attack.
        eps: Linf radius of training and attack.
        passes: over the training set.
        images: test images attacked.
    """
    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)
    console, x_y = Console(stderr=True), test_images("digits", images, None)
    accuracy: dict[str, list[tuple[float, float]]] = {}
    for seed in range(seeds):
        path = Path(f"runs/attacks/small-budget-eps{eps:g}-p{passes:g}-s{seed}")
        config = Setting("digits", True).config(path, None)
        ball = replace(config.adversarial, eps=eps)
        model = trained(replace(config, seed=seed, passes=passes, adversarial=ball), console)
        for name, pair in contestants(eps, steps).items():
            found = [robust_accuracy(model, *x_y, attack, seed) for attack in pair]
            accuracy.setdefault(name, []).append((found[0], found[1]))
            console.print(f"seed {seed} {name}: ours {found[0]:.1%}, published {found[1]:.1%}")
    print("\n".join(table(HEADINGS, [row(name, pairs) for name, pairs in accuracy.items()])))


def contestants(eps: float, steps: int) -> dict[str, tuple[Attack, Attack]]:
    """Ours and the published, by name; each returns adversarial images."""
    load_peer("pyautoattack")  # which says what to do where it is not installed
    apgd, fab = (importlib.import_module(f"pyautoattack.{name}") for name in ("autopgd_base", "fab_pt"))
    ball = {"norm": "Linf", "eps": eps}

    def ours(function: Callable[..., attacks.AttackResult], **options: object) -> Attack:
        return lambda model, x, y, seed: (
            function(model, x, y, **ball, steps=steps, seed=seed, **options).adversarial
        )

    def published(kind: Callable[..., object], **options: object) -> Attack:
        def run(model: nn.Module, x: Tensor, y: Tensor, seed: int) -> Tensor:
            with torch.random.fork_rng(devices=[]):
                attack = kind(model, **ball, n_iter=steps, seed=seed, device="cpu", **options)
                return attack.perturb(x, y)  # type: ignore[attr-defined]

        return run

    silent = {"logger": logging.getLogger("silent")}
    return {
        "APGD-CE": (ours(attacks.apgd), published(apgd.APGDAttack, loss="ce", **silent)),
        "APGD-DLR": (ours(attacks.apgd, loss="dlr"), published(apgd.APGDAttack, loss="dlr", **silent)),
        "APGD-T": (ours(attacks.apgd_targeted), published(apgd.APGDAttack_targeted, **silent)),
        "FAB-T": (ours(attacks.fab_targeted), published(fab.FABAttack_PT, targeted=True)),
    }


def robust_accuracy(model: nn.Module, x: Tensor, y: Tensor, attack: Attack, seed: int) -> float:
    """The share of images that the classifier has right after the attack."""
    with torch.no_grad():
        return (~misclassified(model(attack(model, x, y, seed)), y)).double().mean().item()


def row(name: str, pairs: list[tuple[float, float]]) -> tuple[str, ...]:
    """A line of the table: mean accuracies in percent, and the paired difference with its standard error."""
    ours, published = ([100 * value for value in side] for side in zip(*pairs, strict=True))
    apart = [mine - other for mine, other in zip(ours, published, strict=True)]
    error = stdev(apart) / len(apart) ** 0.5 if len(apart) > 1 else float("nan")
    counts = (sum(one > 1e-9 for one in apart), sum(abs(one) <= 1e-9 for one in apart))
    return (
        name,
        f"{mean(ours):.2f}",
        f"{mean(published):.2f}",
        f"{mean(apart):+.2f} +- {error:.2f}",
        f"{counts[0]}, {counts[1]}, {len(apart) - sum(counts)}",
    )


if __name__ == "__main__":
    tyro.cli(main)
