"""What a study of 10 data sets x 8 networks x 6 regimes x 5 seeds would cost: ``python -m benchmarks.study_cost``.

An estimate, not a measurement: forward passes as `eval.study --dry-run` counts them, times the operations of a pass,
over an assumed sustained rate of the GPU.
"""

import torch
import tyro
from torch.utils.flop_counter import FlopCounterMode

from agents.config import TrainConfig
from agents.models.classifier import new_classifier
from agents.models.image_network import resolve_network
from eval.core.threats import Threat
from eval.study.plan.cells import Cell, training_passes
from eval.study.plan.config import Attack, Grid, Regime
from eval.study.run.estimate import estimate
from eval.study.run.jobs import Place, Study

# Training images, channels, pixels a side, classes; three folders stand for data of the user's own.
DATA = {
    "digits": (1_437, 1, 8, 10),
    "mnist": (60_000, 1, 28, 10),
    "fashion-mnist": (60_000, 1, 28, 10),
    "cifar10": (50_000, 3, 32, 10),
    "cifar100": (50_000, 3, 32, 100),
    "stl10": (5_000, 3, 96, 10),
    "imagenet100 at 64": (126_000, 3, 64, 100),
    "three folders at 64": (150_000, 3, 64, 20),  # of 50,000 images each
}
NETWORKS = ("small", "strided", "mlp", "cnn4", "cnn6", "wrn16-4", "vit", "resnet18")
SEEDS = 5


def main(passes: float = 100.0, training_teraflops: float = 50.0, attack_teraflops: float = 15.0) -> None:
    """Print hours of one GPU by data set.

    Args:
        passes: of every training over its data.
        training_teraflops: assumed sustained rate of training, in bf16 or TF32.
        attack_teraflops: assumed sustained rate of attacks, in float32.
    """
    print(*table(gpu_hours(passes, training_teraflops, attack_teraflops)), sep="\n")


def table(hours: dict[str, tuple[float, float]]) -> list[str]:
    """Return the lines of a Markdown table, the sum last."""
    total = tuple(map(sum, zip(*hours.values(), strict=True)))
    return [
        "| data set | hours of one GPU, training | attacks and the rest |",
        "| --- | ---: | ---: |",
        *(f"| {name} | {one:,.1f} | {rest:,.1f} |" for name, (one, rest) in (hours | {"all": total}).items()),
    ]


def gpu_hours(
    passes: float = 100.0, training_teraflops: float = 50.0, attack_teraflops: float = 15.0
) -> dict[str, tuple[float, float]]:
    """Return the hours of training and of the rest by data set; arguments as of `main`."""
    found = {}
    for name, (images, channels, side, classes) in DATA.items():
        hours = [0.0, 0.0]
        folders = 3 if name.startswith("three") else 1
        for network in NETWORKS:
            flops = forward_flops(network, (channels, side, side), classes)
            for training, rest in cells(network, images // folders, passes):
                hours[0] += SEEDS * folders * training * flops / training_teraflops / 1e12 / 3600
                hours[1] += SEEDS * folders * rest * flops / attack_teraflops / 1e12 / 3600
        found[name] = (hours[0], hours[1])
    return found


def forward_flops(network: str, shape: tuple[int, int, int], classes: int) -> float:
    """Return the operations of one image's forward pass, a multiplication and an addition being two."""
    model = new_classifier(shape, classes, resolve_network(network)).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, *shape))
    return counter.get_total_flops()


def cells(network: str, images: int, passes: float) -> list[tuple[float, float]]:
    """Return the forward passes of training and of the rest, per regime of one seed."""
    pgd = {"adversarial": {"method": "pgd"}}
    regimes = [
        Regime(f"{algo}{'-adv' if more else ''}", {"algo": algo, "passes": passes, **more})
        for algo in ("supervised", "reinforce", "ppo")
        for more in ({}, pgd)
    ]
    attacks = (Attack("pgd", "pgd", {}), Attack("fast", "autoattack", {"version": "fast"}))
    grid = Grid(
        "cost",
        ("cifar10",),
        (network,),
        tuple(regimes),
        (Threat("Linf", 8 / 255), Threat("L2", 1.0)),
        attacks,
    )
    found = []
    for regime in regimes:
        config: TrainConfig = regime.config("cifar10", network, 0, {}, None)
        cell = Cell("cifar10", network, regime.name, 0, config)
        study = Study(grid, (cell,), Place(None))  # type: ignore[arg-type]
        found.append((training_passes(config, images), estimate(study, cell, None, None).examination))
    return found


if __name__ == "__main__":
    tyro.cli(main)
