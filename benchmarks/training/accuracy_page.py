"""The tables, the page and the plot of `benchmarks.training.accuracy`."""

from collections.abc import Sequence
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from rich.table import Table

from benchmarks.common import RESULTS, machine_line

matplotlib.use("Agg")

ALGORITHMS = ("supervised", "reinforce", "epg", "ppo", "a2c", "dqn")
GRADIENT_IMAGES = 500
BATCH, LEARNING_RATE, NETWORK = 128, 1e-3, "mlp"
# Okabe and Ito's colours: distinguishable with any kind of colour vision.
COLOURS = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#D55E00", "#CC79A7", "#0072B2")


def mean(values: list[float] | None) -> str:
    """Return mean and deviation as text."""
    if values is None:
        return "-"
    return f"{np.mean(values):.2%} +- {np.std(values, ddof=min(1, len(values) - 1)):.2%}"


def cells_of(row: dict[str, Any]) -> tuple[str, ...]:
    points = "-" if row["points"] is None else f"{row['points']:+.2f}"
    slow_seconds = "-" if row["slow_seconds"] is None else f"{row['slow_seconds']:.0f}"
    return (
        row["algorithm"],
        mean(row["fast"]),
        mean(row["slow"]),
        points,
        f"{row['seconds']:.0f}",
        slow_seconds,
    )


HEADINGS = (
    "algorithm",
    "fast path",
    "slow path",
    "difference, points",
    "CPU seconds",
    "CPU seconds, slow path",
)


BUDGET_HEADINGS = (
    "training",
    "images",
    "test accuracy",
    "gradient norm",
    "under the floor",
    "direction stability",
    "margin",
)


def table(headings: Sequence[str], rows: Sequence[tuple[str, ...]], title: str) -> Table:
    made = Table(*headings, title=title)
    for row in rows:
        made.add_row(*row)
    return made


def markdown_table(headings: Sequence[str], rows: Sequence[tuple[str, ...]]) -> list[str]:
    lines = ["| " + " | ".join(headings) + " |", "|" + "---|" * len(headings)]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def page(
    rows: list[dict[str, Any]], budgets: list[tuple[str, ...]], machine: dict[str, Any], images: int
) -> str:
    lines = [
        "# Accuracy of the fast paths",
        "",
        f"`python -m benchmarks.training.accuracy --data-root DIR`; MNIST, `{NETWORK}`, {images:,} images,",
        f"batch {BATCH}, learning rate {LEARNING_RATE:g}. Test accuracy at the end, mean and deviation over seeds; CPU",
        "seconds.",
        "",
        machine_line(machine),
        "",
        *markdown_table(HEADINGS, [cells_of(row) for row in rows]),
        "",
        "## The hybrid",
        "",
        "A third of the images supervised, the rest REINFORCE, beside supervised learning on half as many images and",
        f"REINFORCE on as many and on four times as many. Medians over {GRADIENT_IMAGES} test images, mean of the",
        "seeds (and their range): length of the input gradient of the cross-entropy, cosine between the gradients",
        "at an image and at points of its L2 ball of 1.5, logit margin; and the share of images whose step the",
        "cleverhans protocol shortens.",
        "",
        *markdown_table(BUDGET_HEADINGS, budgets),
        "",
        "![Test accuracy against images and against seconds](accuracy.png)",
    ]
    return "\n".join(lines)


def draw(runs: list[dict[str, Any]], dataset: str) -> None:
    """Draw the plot: accuracy against images seen and against seconds, mean over seeds with its range."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), sharey=True, layout="constrained")
    for colour, name in zip(COLOURS, (*ALGORITHMS, "hybrid"), strict=True):
        curves = [run["points"] for run in runs if run["algorithm"] == name and run["path"] == "fast"]
        length = min(len(curve) for curve in curves)
        accuracy = np.array([[point["accuracy"] for point in curve[:length]] for curve in curves])
        for axis, by in zip(axes, ("images", "seconds"), strict=True):
            x = np.mean([[point[by] for point in curve[:length]] for curve in curves], axis=0)
            axis.plot(x, accuracy.mean(0), color=colour, label=name)
            axis.fill_between(x, accuracy.min(0), accuracy.max(0), color=colour, alpha=0.15, linewidth=0)
    axes[0].set(xlabel="images seen", ylabel="test accuracy", title=f"{dataset}: per image", ylim=(0.8, 1.0))
    axes[1].set(xlabel="CPU seconds of training", title="per second")
    for axis in axes:
        axis.grid(alpha=0.3)
    axes[1].legend(frameon=False, loc="lower right")
    RESULTS.mkdir(parents=True, exist_ok=True)
    figure.savefig(RESULTS / "accuracy.png", dpi=150)
    plt.close(figure)
