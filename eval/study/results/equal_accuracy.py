"""What regimes cost until their validation accuracy reaches a common level: images, seconds, FLOPs."""

from collections.abc import Sequence
from functools import lru_cache
from statistics import mean
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from agents.config import TrainConfig
from agents.models.classifier import new_classifier
from envs.errors import InputError
from eval.core.plot_style import INK, colour, legend_below, panels, tidy
from eval.study.plan.cells import training_passes
from eval.study.results.cell_results import CellResult, Validation
from eval.study.results.overview import Group, Overview
from eval.study.results.plots import Picture, picture
from eval.study.results.record import Row, Table, columns, over_seeds

NOTE = (
    "The level is the lowest of all trainings' best validation accuracies, per data set and network; what it took to "
    "reach it first. Seconds: of training, without validation. FLOPs: of one forward pass on the network, times the "
    "passes of training (forward and backward count as three). Brackets: Student's 95 % t-interval over seeds."
)


def common_level(found: Sequence[CellResult]) -> float | None:
    """Return the highest validation accuracy that every training reached; None where a curve is missing."""
    if not found or not all(item.curve for item in found):
        return None
    return min(max(point.accuracy for point in item.curve) for item in found)


def reached(curve: Sequence[Validation], level: float) -> Validation | None:
    """Return the first validation with at least this accuracy; None where there is none."""
    return next((point for point in curve if point.accuracy >= level), None)


@lru_cache(maxsize=64)
def forward_flops(network: str, shape: tuple[int, int, int], classes: int) -> int | None:
    """Return the floating-point operations of one forward pass of one image, a multiply-add being two.

    None for a network that is not built in or cannot be built without memory.
    """
    try:
        with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
            model = new_classifier(shape, classes, network).eval()
            before = counter.get_total_flops()  # building a network passes one image already
            model(torch.zeros(1, *shape))
    except (InputError, RuntimeError, NotImplementedError):
        return None
    return counter.get_total_flops() - before


def training_flops(config: TrainConfig, train: dict[str, Any], images: int) -> float | None:
    """Return the operations of a training up to so many ``images``, ``train`` being its facts as `CellResult` has them.

    None where the network or the data's size is unknown.
    """
    shape = train.get("shape")
    each = forward_flops(config.network, tuple(shape), train["classes"]) if shape else None
    passes = [length for _, length in config.phases() if length]
    if each is None or (not passes and config.adversarial.start):
        return None
    size = round(train["images"] / sum(passes)) if passes else images
    return each * training_passes(config, size, images)


def equal_accuracy_table(overview: Overview) -> Table | None:
    """Return the cost of every regime until the common level; None where no group has learning curves."""
    rows: list[Row] = []
    for group in overview.groups:
        regimes = overview.regimes(group)
        level = common_level([item for found in regimes.values() for item in found])
        if level is None:
            continue
        baseline: float | None = None
        for regime, found in regimes.items():
            points = [point for item in found if (point := reached(item.curve, level)) is not None]
            pairs = zip(found, points, strict=True)
            flops = [training_flops(item.cell.config, item.train, point.images) for item, point in pairs]
            images = [float(point.images) for point in points]
            baseline = baseline or mean(images)
            known = [value for value in flops if value is not None]
            rows.append(
                overview.place(group)
                | {"regime": regime, "level": level, "seeds": len(found), "ratio": mean(images) / baseline}
                | {"images": over_seeds(images), "seconds": over_seeds([point.seconds for point in points])}
                | {"flops": over_seeds(known) if len(known) == len(flops) else None}
            )
    first = overview.grid.regimes[0].name
    shown = (
        *columns(regime="regime"),
        *columns("percent", level="validation accuracy"),
        *columns("integer", images="images"),
        *columns("number", ratio=f"times those of {first}", seconds="seconds", flops="FLOPs"),
        *columns("integer", seeds="seeds"),
    )
    return overview.table("equal_accuracy", "Cost to equal accuracy", NOTE, shown, rows)


def learning_picture(overview: Overview, group: Group) -> Picture | None:
    """Draw validation accuracy over images, a line per training, and the common level."""
    regimes = overview.regimes(group)
    level = common_level([item for found in regimes.values() for item in found])
    if level is None:
        return None
    title = f"Validation accuracy over training: {', '.join(group)}"
    figure, ((axes,),) = panels(1, 1, (6.4, 4.2), f"{title}\n(dashed: the common level)")
    tidy(axes, "", "images seen", "validation accuracy")
    for k, (regime, found) in enumerate(regimes.items()):
        for item in found:
            images, _, accuracy = zip(*item.curve, strict=True)
            label = regime if item is found[0] else None
            axes.plot(images, accuracy, color=colour(k), linewidth=1, label=label)
    axes.axhline(level, color=INK, linewidth=0.8, linestyle="--")
    axes.set_xscale("log")
    legend_below(figure, axes)
    alt = "Validation accuracy over images, a line per training; the table of cost to equal accuracy has the numbers."
    return picture("learning", group, title, alt, figure)
