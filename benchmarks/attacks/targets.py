"""Which targets to choose among 99 wrong classes: by logit, or by distance to the boundary as MALT does.

``python -m benchmarks.attacks.targets`` trains classifiers of pairs of digits side by side (100 classes, 8x16 pixels)
by PGD, attacks each by APGD-T with few targets in either order, and writes ``docs/results/attack-targets.{md,json}``.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
import tyro
from rich.console import Console
from torch import Tensor, nn

import attacks
from agents.models.architectures import small
from agents.training.validation import to_pixels
from attacks.core.inputs import validate_inputs
from attacks.core.model_state import frozen
from attacks.gradient.apgd import run_apgd
from attacks.gradient.target_order import Order, by_distance, by_logit
from benchmarks.attacks.page import table
from benchmarks.common import describe_machine, machine_line, write_results
from envs import load_dataset

EPS = {"Linf": 0.12, "L2": 0.6}
HEADINGS = ("threat", "targets", "order", "robust accuracy by seed", "mean", "passes per image")
ORDERS: dict[str, Order] = {
    "logit": by_logit,
    "MALT": partial(by_distance, candidates=99),
    "MALT, 20 candidates": by_distance,
}
_TEXT = (
    "Classifiers `small` of pairs of scikit-learn's digits side by side, 100 classes, trained by PGD in the Linf ball; "
    "APGD-T with as many targets as said, 100 iterations each, none before it, on test pairs that never share an image "
    "with training. Order: by clean logit, as published, or by logit difference over the norm of its gradient, as MALT "
    "(arXiv 2407.02240), among all 99 wrong classes or the 20 of largest logit. Lower is stronger. Passes are forward "
    "passes, those of the ranking included."
)


def main(seeds: int = 2, images: int = 80, passes: int = 8, pairs: int = 2500, write: bool = True) -> None:
    """Train, attack, and print and write the page.

    Args:
        seeds: classifiers.
        images: test pairs attacked.
        passes: of training over the pairs.
        pairs: for training.
        write: write ``docs/results/attack-targets.json`` and ``attack-targets.md``.
    """
    torch.set_num_threads(1)
    console, rows = Console(stderr=True), []
    for seed in range(seeds):
        model = trained(*digit_pairs("train", pairs, seed), passes, seed)
        x, y = digit_pairs("test", images, seed)
        for norm, eps in EPS.items():
            for targets in (1, 3):
                rows += [
                    measured(model, x, y, norm, eps, targets, order) | {"seed": seed} for order in ORDERS
                ]
                console.print(*summary(rows[-len(ORDERS) :]))
    payload: dict[str, Any] = {"machine": describe_machine(), "rows": rows}
    lines = ["# Choosing targets among 100 classes", "", _TEXT, "", *table(HEADINGS, summary(rows)), ""]
    text = "\n".join(
        [*lines, machine_line(payload["machine"]), "", "Repeat with `python -m benchmarks.attacks.targets`."]
    )
    print(text)
    if write:
        data, markdown = write_results("attack-targets", payload, text)
        console.print(f"written: {data} and {markdown}")


def digit_pairs(split: str, n: int, seed: int) -> tuple[Tensor, Tensor]:
    """``n`` random pairs of digits of a split as images (n, 1, 8, 16) in [0, 1], and labels 10 a + b."""
    data = load_dataset("digits", split)
    images, generator = to_pixels(data.images), torch.Generator().manual_seed(seed)
    left, right = torch.randint(len(images), (2, n), generator=generator)
    return torch.cat([images[left], images[right]], 3), 10 * data.labels[left] + data.labels[right]


def trained(x: Tensor, y: Tensor, passes: int, seed: int) -> nn.Module:
    """A classifier of 100 classes, trained by PGD of three steps."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(small((1, 8, 16)), nn.Linear(128, 100))
        optimizer = torch.optim.Adam(model.parameters(), 2e-3)
        for index in range(passes):
            eps = EPS["Linf"] * min(1, (index + 1) / (passes / 2))
            for part in torch.randperm(len(x)).split(128):
                near = attacks.pgd(
                    model.eval(),
                    x[part],
                    y[part],
                    norm="Linf",
                    eps=eps,
                    steps=3,
                    step_size=eps / 2,
                    keep="last",
                )
                optimizer.zero_grad()
                F.cross_entropy(model.train()(near.adversarial), y[part]).backward()
                optimizer.step()
    return model.eval()


def measured(
    model: nn.Module, x: Tensor, y: Tensor, norm: str, eps: float, targets: int, order: str
) -> dict[str, Any]:
    """Attack by APGD-T with the best ``targets`` of an order; what survived and what it took."""
    problem = validate_inputs(x, y, norm=norm, eps=eps)
    with frozen(model):
        found = run_apgd(model, problem, 0, loss="dlr", num_targets=targets, order=ORDERS[order])
    return {
        "norm": norm,
        "eps": eps,
        "targets": targets,
        "order": order,
        "survived": (~found.success).nonzero().squeeze(1).tolist(),
        "robust_accuracy": (~found.success).double().mean().item(),
        "passes": found.queries.double().mean().item(),
    }


def summary(rows: Sequence[Mapping[str, Any]]) -> Iterator[Sequence[str]]:
    """Lines of the table, over seeds."""
    keys = dict.fromkeys((row["norm"], row["eps"], row["targets"], row["order"]) for row in rows)
    for key in keys:
        same = [row for row in rows if (row["norm"], row["eps"], row["targets"], row["order"]) == key]
        accuracy = [row["robust_accuracy"] for row in same]
        yield (
            f"{key[0]} {key[1]:g}",
            str(key[2]),
            key[3],
            ", ".join(f"{value:.1%}" for value in accuracy),
            f"{_mean(accuracy):.1%}",
            f"{_mean([row['passes'] for row in same]):.0f}",
        )


def _mean(values: Iterable[float]) -> float:
    return torch.tensor(list(values)).double().mean().item()


if __name__ == "__main__":
    tyro.cli(main)
