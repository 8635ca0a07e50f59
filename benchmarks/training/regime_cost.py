"""What adversarial training costs: images per second of each regime over plain training, beside the arithmetic.

The arithmetic counts forward-backwards, as papers do: one of plain training is 1, PGD-AT with k steps k + 1. A step of
the attack needs no gradients of weights, so it may cost less than a whole one.

``python -m benchmarks.training.regime_cost`` prints the rows; ``measure`` returns them.
"""

from collections.abc import Callable
from dataclasses import replace
from statistics import median
from typing import Any

import torch
import tyro
from rich.console import Console
from rich.table import Table

from agents.adversarial_config import AdversarialConfig
from agents.config import PPOConfig, TrainConfig
from agents.training.factory import build_algorithm, build_env, check_names
from agents.training.resolve import resolve
from benchmarks.common import interleave
from envs import ImageDataset

STEPS = 7
EPOCHS = 4
_PLAIN = AdversarialConfig()
# Forward-backwards per image over plain training. FGSM added to the clean loss: the step, the clean and the attacked
# pass. TRADES: k steps, both passes, and a clean forward, which is a third. PPO trains E times on what it has seen once
# in a forward pass: (1 + 3 E) forwards of plain training, and 3 more for each step.
REGIMES: dict[str, tuple[str, AdversarialConfig, float]] = {
    "supervised": ("supervised", _PLAIN, 1),
    "supervised, FGSM added": ("supervised", AdversarialConfig("fgsm"), 3),
    f"supervised, PGD-{STEPS}": ("supervised", AdversarialConfig("pgd", steps=STEPS), STEPS + 1),
    f"supervised, PGD-{STEPS} at L2": ("supervised", AdversarialConfig("pgd", steps=STEPS, norm="L2"), STEPS + 1),
    f"supervised, TRADES-{STEPS}": ("supervised", AdversarialConfig("trades", steps=STEPS), STEPS + 2 + 1 / 3),
    "reinforce": ("reinforce", _PLAIN, 1),
    "reinforce, FGSM added (the paper's rule)": ("reinforce", AdversarialConfig("fgsm"), 3),
    f"reinforce, PGD-{STEPS}": ("reinforce", AdversarialConfig("pgd", steps=STEPS), STEPS + 1),
    "epg": ("epg", _PLAIN, 1),
    f"epg, PGD-{STEPS}": ("epg", AdversarialConfig("pgd", steps=STEPS), STEPS + 1),
    "ppo": ("ppo", _PLAIN, 1),
    f"ppo, PGD-{STEPS} shown": (
        "ppo",
        AdversarialConfig("pgd", steps=STEPS),
        (1 + 3 * EPOCHS + 3 * STEPS) / (1 + 3 * EPOCHS),
    ),
}  # fmt: skip


def measure(
    dataset: ImageDataset,
    *,
    network: str = "small",
    batch: int = 128,
    images: int = 1024,
    repeats: int = 5,
    precision: str = "fp32",
) -> list[dict[str, Any]]:
    """Time every regime on ``images`` images of ``dataset``, in turns.

    Returns:
        Rows with ``regime``, ``images_per_second``, ``ratio`` (plain images/s over the regime's, of the same
        algorithm), ``arithmetic`` (forward-backwards over plain's) and ``over_arithmetic`` (ratio / arithmetic).
    """
    work = {name: _training(name, dataset, network, batch, images, precision) for name in REGIMES}
    seconds = {name: median(times) for name, times in interleave(work, repeats).items()}
    rows = []
    for name, (algo, _, arithmetic) in REGIMES.items():
        ratio = seconds[name] / seconds[algo]
        rows.append(
            {
                "regime": name,
                "network": network,
                "precision": precision,
                "images_per_second": images / seconds[name],
                "ratio": ratio,
                "arithmetic": arithmetic,
                "over_arithmetic": ratio / arithmetic,
            }
        )
    return rows


def _training(
    name: str, dataset: ImageDataset, network: str, batch: int, images: int, precision: str
) -> Callable[[], object]:
    """Return a function that trains on ``images`` more images."""
    algo, adversarial, _ = REGIMES[name]
    config = TrainConfig(
        algo=algo,
        network=network,
        batch_size=batch,
        precision=precision,  # type: ignore[arg-type]
        lr_schedule="constant",
        ppo=PPOConfig(rollout=max(images // 2 // batch, 1) * batch, epochs=EPOCHS),
    )
    config = replace(config, adversarial=adversarial)
    config.validate()
    check_names(config)
    settings = resolve(config, dataset)
    model = build_algorithm(settings, build_env(settings, dataset), dataset)
    model.learn(batch)
    return lambda: model.learn(images, log_interval=None, reset_num_timesteps=False)  # type: ignore[arg-type]


HEADINGS = ("regime", "images/s", "times plain", "arithmetic", "over arithmetic")


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    """Return a row as text."""
    numbers = (row[name] for name in ("ratio", "arithmetic", "over_arithmetic"))
    return row["regime"], f"{row['images_per_second']:,.0f}", *(f"{number:.2f}" for number in numbers)


def table(rows: list[dict[str, Any]]) -> Table:
    """Return the rows for the terminal."""
    grid = Table(title="cost of adversarial training, in forward-backwards of plain training")
    for index, heading in enumerate(HEADINGS):
        grid.add_column(heading, justify="right" if index else "left")
    for row in rows:
        grid.add_row(*cells(row))
    return grid


def markdown(rows: list[dict[str, Any]]) -> list[str]:
    """Return the rows as lines of a Markdown table, with a line on what they count."""
    return [
        f"Network `{rows[0]['network']}`, 1x28x28; times and arithmetic in forward-backwards of plain training.",
        "",
        "| " + " | ".join(HEADINGS) + " |",
        "|" + "---|" * len(HEADINGS),
        *("| " + " | ".join(cells(row)) + " |" for row in rows),
    ]


def main(
    network: str = "small",
    side: int = 28,
    channels: int = 1,
    batch: int = 128,
    images: int = 1024,
    repeats: int = 5,
    precision: str = "fp32",
) -> None:
    """Time adversarial training on random images and print the rows."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    generator = torch.Generator().manual_seed(0)
    shown = torch.randint(0, 256, (4096, channels, side, side), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 10, (4096,), generator=generator)
    data = ImageDataset("synthetic", "train", shown, labels, tuple("0123456789")).to(device)
    rows = measure(data, network=network, batch=batch, images=images, repeats=repeats, precision=precision)
    Console().print(table(rows))


if __name__ == "__main__":
    tyro.cli(main)
