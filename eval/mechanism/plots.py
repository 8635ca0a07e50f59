"""Pictures people keep: adversarial grids, security curves, indicator bands, entropies and distributions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from torch import Tensor

from agents.common.protocols import CLEVERHANS_BATCH
from attacks.gradient.pgd import STEP_FLOOR
from eval.core.plot_style import INK, colour, legend_below, marker, panels, shorten, tidy
from eval.core.stats import Interval, wilson
from eval.core.threats import Threat
from eval.mechanism.entropy import EntropySplit
from eval.mechanism.path_indicators import DynamicIndicators
from eval.mechanism.static_indicators import StaticIndicators


@dataclass(frozen=True)
class SecurityCurve:
    """Robust accuracy against the radius."""

    eps: Sequence[float]  #: radii, increasing; 0 stands for the clean images
    accuracy: Sequence[float]  #: one per radius
    intervals: Sequence[Interval]  #: 95 % intervals, one per radius


def nested_curve(radii: Sequence[float], clean: ArrayLike, robust: Sequence[ArrayLike]) -> SecurityCurve:
    """Return the curve of images right at 0, ``clean``, and at increasing radii, ``robust`` (each (n,) bool).

    Balls nest: what broke stays broken.
    """
    alive = np.logical_and.accumulate([np.asarray(mask, dtype=bool) for mask in (clean, *robust)])
    counts, n = alive.sum(1).tolist(), alive.shape[1]
    return SecurityCurve(
        [0.0, *radii], [count / n for count in counts], [wilson(count, n) for count in counts]
    )


def adversarial_grid(
    x: Tensor,
    adversarial: Tensor,
    labels: Tensor,
    clean_logits: Tensor,
    adversarial_logits: Tensor,
    classes: Sequence[str] = (),
    title: str = "",
) -> Figure:
    """Draw original, perturbation (magnified around grey) and attacked image, with predictions and confidences.

    A column for each of the images ``x`` in [0, 1], (N, C, H, W) with 1 or 3 channels; true ``labels`` (N,), logits
    (N, K) of clean and attacked images, and names of the classes.
    """
    n, change = len(x), adversarial - x
    figure, grid = panels(3, n, (1.35 * n + 1.1, 5.2), title)
    largest = change.flatten(1).abs().amax(1).clamp_min(1e-12)
    magnified = 0.5 + change / (2 * largest.view(-1, 1, 1, 1))
    for i in range(n):
        clean, attacked = (
            _prediction(logits[i], int(labels[i]), classes) for logits in (clean_logits, adversarial_logits)
        )
        _show(grid[0, i], x[i], *clean)
        _show(grid[1, i], magnified[i], f"×{0.5 / float(largest[i]):.3g}", INK)
        _show(grid[2, i], adversarial[i], *attacked)
    for axes, text in zip(grid[:, 0], ("original", "perturbation", "attacked"), strict=True):
        axes.set_ylabel(text, fontsize=9, color=INK)
    return figure


def _prediction(logits: Tensor, label: int, classes: Sequence[str]) -> tuple[str, str]:
    confidence, predicted = logits.float().softmax(0).max(0)
    name = classes[int(predicted)] if classes else str(int(predicted))
    right = int(predicted) == label
    return f"{'✓' if right else '✗'} {name} {100 * float(confidence):.0f} %", colour(0 if right else 1)


def _show(axes: Axes, image: Tensor, caption: str, shade: str) -> None:
    pixels = image.detach().float().cpu().clamp(0, 1).movedim(0, -1).numpy()
    axes.imshow(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels, cmap="gray", vmin=0, vmax=1)
    axes.set_title(caption, fontsize=8, color=shade)
    axes.set(xticks=[], yticks=[])


def security_figure(curves: Mapping[str, Mapping[str, SecurityCurve]], attack: str = "") -> Figure:
    """Draw robust accuracy against eps, a panel per norm, a line with its 95 % band per model.

    ``curves``: by norm, then by the model's name; ``attack``: what was run, for the title.
    """
    title = f"Robust accuracy against the radius {attack}".strip()
    figure, grid = panels(1, len(curves), (4.6 * len(curves) + 0.4, 4.0), title)
    for axes, (norm, models) in zip(grid[0], curves.items(), strict=True):
        tidy(axes, norm, f"eps ({norm}, pixels in [0, 1])", "accuracy")
        for k, (name, curve) in enumerate(zip(shorten(models), models.values(), strict=True)):
            axes.plot(curve.eps, curve.accuracy, marker=marker(k), markersize=4, color=colour(k), label=name)
            low, high = zip(*curve.intervals, strict=True)
            axes.fill_between(curve.eps, low, high, color=colour(k), alpha=0.18, linewidth=0)
        axes.set_ylim(-0.02, 1.02)
        axes.set_xlim(left=0)
    legend_below(figure, grid[0, 0])
    return figure


def dynamic_figure(models: Mapping[str, DynamicIndicators], threat: Threat, path: str = "PGD") -> Figure:
    """Draw the indicators along a path: medians over the images with quartile bands, per step.

    Indicators of directions by both definitions, see `Directions`; dotted: float64.
    """
    title = f"Gradients along the path of {path}, {threat} (median, band: quartiles; dotted: float64)"
    figure, grid = panels(3, 3, (12.5, 9.2), title)
    titles = (
        ("gradient_norm", "gradient norm", "L2, per pixel unit"),
        ("cosine", "cosine to the previous gradient", "cosine"),
        ("clamped_cosine", "the same, clamped as published", "cosine"),
        ("clamped", "gradients under the clamp of 1e-12", "share of images"),
        ("dispersion", "dispersion between images", "1 - mean cosine"),
        ("clamped_dispersion", "the same, clamped as published", "1 - mean cosine"),
        ("same_sign", "equal signs with the previous gradient", "share of pixels"),
        ("loss", "cross-entropy", "nats"),
        ("correct", "classified correctly", "share of images"),
    )
    for axes, (name, title, unit) in zip(grid.flat, titles, strict=True):
        tidy(axes, title, "step", unit)
        for k, (label, item) in enumerate(zip(shorten(models), models.values(), strict=True)):
            style: dict[str, Any] = {"linestyle": ("-", "--", "-.")[k % 3], "label": label}
            for found in (item, item.double):
                values = getattr(found, name, None)
                if values is not None:
                    shown = values.double().mean(1) if name == "clamped" else values
                    _curve(axes, shown, len(item.correct), banded=found is item, color=colour(k), **style)
                style = {"linestyle": ":"}
        if name == "gradient_norm" and any((item.gradient_norm > 0).any() for item in models.values()):
            axes.set_yscale("log")
        if name in ("same_sign", "correct", "clamped"):
            axes.set_ylim(-0.02, 1.02)
    legend_below(figure, grid[0, 0])
    return figure


def _curve(axes: Axes, values: Tensor, steps: int, *, banded: bool, **style: Any) -> None:
    """Draw values per step (T,), or medians and quartiles over images (T, N); those of step pairs begin at 1."""
    values = values.double()
    place = np.arange(steps - len(values), steps)
    if values.ndim == 2:
        points = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
        low, values, high = torch.nanquantile(values, points, dim=1)
        if banded:
            axes.fill_between(place, low.numpy(), high.numpy(), color=style["color"], alpha=0.18, linewidth=0)
    axes.plot(place, values.numpy(), **style)


def static_figure(models: Mapping[str, StaticIndicators]) -> Figure:
    """Draw the distribution of every static indicator over the images as cumulative shares."""
    title = "Input gradients at the clean images (cumulative share of images)"
    figure, grid = panels(2, 3, (12.5, 6.4), title)
    titles = (
        ("gradient_norm", "gradient norm (dotted: float64)", "L2, per pixel unit", True),
        ("stability", "direction under noise", "mean cosine", False),
        ("nonlinearity", "local nonlinearity", "nats", True),
        ("margin", "margin", "true logit - largest other", False),
        ("logit_scale", "logit scale", "standard deviation over classes", False),
        ("curvature", "input curvature", "|largest eigenvalue|, nats per pixel unit²", True),
    )
    for axes, (name, title, unit, logarithmic) in zip(grid.flat, titles, strict=True):
        tidy(axes, title, unit, "share of images")
        for k, (label, item) in enumerate(zip(shorten(models), models.values(), strict=True)):
            values = getattr(item, name).abs() if name == "curvature" else getattr(item, name)
            _cumulative(axes, values, logarithmic, color=colour(k), label=label)
            if name == "gradient_norm":
                _cumulative(axes, item.gradient_norm64, logarithmic, color=colour(k), linestyle=":")
        if logarithmic:
            axes.set_xscale("log")
        if name == "gradient_norm":
            floor = STEP_FLOOR * CLEVERHANS_BATCH
            axes.axvline(floor, color=INK, linewidth=1, linestyle="--")
            axes.annotate("cleverhans' floor ", (floor, 0.97), fontsize=7, color=INK, ha="right", va="top")
        axes.set_ylim(0, 1.02)
    legend_below(figure, grid[0, 0])
    return figure


def _cumulative(axes: Axes, values: Tensor, logarithmic: bool, **style: Any) -> None:
    """Draw the share of images up to each value; on a logarithmic axis exact zeros raise the curve's start."""
    values = values.double()
    finite = values[values.isfinite()].sort().values
    share = torch.arange(1, len(finite) + 1) / max(len(values), 1)
    if logarithmic:
        finite, share = finite[finite > 0], share[finite > 0]
    axes.step(finite.numpy(), share.numpy(), where="post", **style)


def entropy_figure(models: Mapping[str, tuple[EntropySplit, EntropySplit]], attack: str = "") -> Figure:
    """Draw histograms of the predictive entropy, clean and attacked, correct and wrong apart; a row per model."""
    title = f"Predictive entropy {attack}".strip()
    figure, grid = panels(len(models), 2, (9.5, 2.5 * len(models) + 0.8), title, sharex=True)
    for row, (name, splits) in enumerate(zip(shorten(models), models.values(), strict=True)):
        for axes, split, kind in zip(grid[row], splits, ("clean", "attacked"), strict=True):
            tidy(axes, f"{name}: {kind}", "entropy (bits)" if row == len(models) - 1 else "", "images")
            right, wrong = (split.bits[mask].numpy() for mask in (split.correct, ~split.correct))
            style = {"color": [colour(0), colour(1)], "bins": np.linspace(0, split.most, 25), "stacked": True}
            labels = [f"correct ({len(right)})", f"wrong ({len(wrong)})"]
            axes.hist([right, wrong], label=labels, **style)
            axes.legend(frameon=False, fontsize=8)
    return figure
