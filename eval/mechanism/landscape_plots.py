"""Pictures of loss landscapes: contours, the decision region beside them, and the surfaces in 3-D."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, ListedColormap, TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Patch
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from eval.core.plot_style import COLOURS, INK, new_figure, shorten, tidy
from eval.core.threats import Threat
from eval.mechanism.landscape import Landscape

_MOST_SURFACE_POINTS = 100  # per axis: more triangles take long to draw and show nothing
_UNKNOWN = "#d0d0d0"  # where the model gives no finite answer
_OTHERS = (*(COLOURS[k] for k in (1, 5, 3, 2, 4)), "#F0E442", "#999999", "#8C510A", "#5E3C99", COLOURS[6])


def landscape_figure(landscapes: Mapping[str, Landscape], classes: Sequence[str] = ()) -> Figure:
    """Draw landscapes side by side, one row per model, with the same colour scale in every row.

    Columns: cross-entropy, margin, decision region (share correct for an average; its legend names the classes), and
    both losses in 3-D.
    """
    figure = new_figure(17, 3.7 * len(landscapes) + 0.4)
    first = next(iter(landscapes.values()))
    kind = "one image" if first.images == 1 else f"mean of {first.images} images"
    figure.suptitle(f"Loss landscape, {kind}, {Threat(first.norm, first.eps)}", fontsize=12, color=INK)
    for row, (name, item) in enumerate(zip(shorten(landscapes), landscapes.values(), strict=True)):
        place = partial(figure.add_subplot, len(landscapes), 5)
        captions = {"cross_entropy": f"{name}\ncross-entropy (nats)", "margin": "\nmargin (logits)"}
        for k, (loss, caption) in enumerate(captions.items(), 5 * row + 1):
            limits = _limits([getattr(item, loss) for item in landscapes.values()])
            _contour(figure, place(k), item, loss, limits, caption)
            _surface(place(k + 3, projection="3d"), item, loss, limits)
        _region(figure, place(5 * row + 3), item, classes)
    return figure


def shared_figure(names: Sequence[str], planes: Sequence[Sequence[Landscape]]) -> Figure:
    """Draw every model (row) on the plane of every model (pair of columns): cross-entropy, and correct or wrong.

    All cross-entropies have one colour scale. ``planes``: by owner of the plane, then by model.
    """
    n, (first, *_) = len(names), planes[0]
    figure = new_figure(max(7.0 * n, 8.0), 3.5 * n + 0.6)
    kind = f"One image on the same planes, {Threat(first.norm, first.eps)}"
    figure.suptitle(f"{kind} (cross: the image attacked on the published path)", fontsize=12, color=INK)
    panels = figure.subplots(n, 2 * n, squeeze=False)
    limits = _limits([item.cross_entropy for owned in planes for item in owned])
    short = shorten(names, 26)
    for column, (owner, owned) in enumerate(zip(short, planes, strict=True)):
        for row, (name, item) in enumerate(zip(short, owned, strict=True)):
            left, right = panels[row, 2 * column : 2 * column + 2]
            title = f"{name}\non the plane of {owner}\ncross-entropy (nats)"
            _contour(figure, left, item, "cross_entropy", limits, title)
            line, unknown = np.asarray(item.coordinates), ~np.asarray(item.cross_entropy.isfinite())
            right_or_wrong = np.ma.masked_array(np.asarray(item.correct), mask=unknown)
            right.pcolormesh(line, line, right_or_wrong, cmap=ListedColormap(COLOURS[1::-1]), vmin=0, vmax=1)
            _frame(right, item, "\ncorrect or wrong", {"correct": COLOURS[0], "wrong": COLOURS[1]})
            for axes in (left, right):
                axes.plot(item.reach or 0, 0, "X", color=COLOURS[1], markersize=7, markeredgecolor="white")
    return figure


def _limits(values: Sequence[Tensor]) -> tuple[float, float]:
    """Return the least and largest finite value of all."""
    known = torch.cat([v[v.isfinite()] for v in values])
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
    return low, high if high > low else low + 1e-6


def _colours(loss: str, limits: tuple[float, float]) -> dict[str, Any]:
    if loss == "margin" and limits[0] < 0 < limits[1]:
        return {"cmap": "PuOr_r", "norm": TwoSlopeNorm(0, *limits)}
    return {"cmap": "cividis", "vmin": limits[0], "vmax": limits[1]}


def _contour(
    figure: Figure, axes: Axes, item: Landscape, loss: str, limits: tuple[float, float], title: str
) -> None:
    line, values = np.asarray(item.coordinates), np.ma.masked_invalid(np.asarray(getattr(item, loss)))
    levels = np.linspace(*limits, 25)
    drawn = axes.contourf(line, line, values, levels=levels, **_colours(loss, limits))
    if values.min() < 0 < values.max() and loss == "margin":
        axes.contour(line, line, values, levels=[0], colors=INK, linewidths=1.2)
    bar = figure.colorbar(drawn, ax=axes, shrink=0.85, ticks=MaxNLocator(7))
    bar.ax.tick_params(labelsize=7)
    _frame(axes, item, title)


def _region(figure: Figure, axes: Axes, item: Landscape, classes: Sequence[str]) -> None:
    line = np.asarray(item.coordinates)
    if item.predicted is None:
        drawn = axes.pcolormesh(line, line, np.asarray(item.correct), cmap="cividis", vmin=0, vmax=1)
        figure.colorbar(drawn, ax=axes, shrink=0.85).ax.tick_params(labelsize=7)
        _frame(axes, item, "\nshare classified correctly")
        return
    predicted = np.asarray(item.predicted)
    present = sorted(set(predicted.ravel().tolist()), key=lambda k: (k != item.label, k))
    wrong = iter(_OTHERS * (len(present) // len(_OTHERS) + 1))
    colours = [COLOURS[0] if k == item.label else _UNKNOWN if k < 0 else next(wrong) for k in present]
    place = np.zeros(max(present) + 2, dtype=int)  # -1, no answer, is the last entry
    place[present] = range(len(present))
    norm = BoundaryNorm(np.arange(len(present) + 1) - 0.5, len(present))
    axes.pcolormesh(line, line, place[predicted], cmap=ListedColormap(colours), norm=norm)
    shown = {
        "no answer" if k < 0 else (classes[k] if classes else str(k)) + " (true)" * (k == item.label): shade
        for k, shade in zip(present[:8], colours, strict=False)
    }
    _frame(axes, item, "\npredicted class", shown)


def _frame(axes: Axes, item: Landscape, title: str, shown: Mapping[str, str] | None = None) -> None:
    """Label the axes, mark the image and the radius eps, and explain the colours ``shown``, where there are any."""
    if shown:
        patches = [Patch(color=shade, label=label) for label, shade in shown.items()]
        axes.legend(handles=patches, fontsize=6.5, loc="upper right", framealpha=0.85)
    tidy(axes, title, f"adversarial direction ({item.norm})", f"random direction ({item.norm})")
    axes.grid(visible=False)
    axes.set_facecolor(_UNKNOWN)
    axes.set_aspect("equal")
    halo = [withStroke(linewidth=3, foreground="white")]  # dark on white is seen on any colour
    axes.plot(0, 0, "o", color=INK, markersize=4, path_effects=halo)
    if item.norm == "L2":  # the axes are orthonormal, so the ball cuts the plane in a circle
        for shade, width, style in (("white", 2.6, "-"), (INK, 1.2, "--")):
            circle = Circle((0, 0), item.eps, fill=False, edgecolor=shade, linewidth=width, linestyle=style)
            axes.add_patch(circle)
    else:
        axes.plot([-item.eps, item.eps], [0, 0], "|", color=INK, markersize=9, path_effects=halo)


def _surface(axes: Axes, item: Landscape, loss: str, limits: tuple[float, float]) -> None:
    step = max(1, len(item.coordinates) // _MOST_SURFACE_POINTS)
    line = np.asarray(item.coordinates)[::step]
    across, along = np.meshgrid(line, line, indexing="ij")
    values = np.asarray(getattr(item, loss))[::step, ::step]
    style = {"linewidth": 0, "antialiased": False, "rcount": len(line), "ccount": len(line)}
    axes.plot_surface(along, across, values, **_colours(loss, limits), **style)  # type: ignore[attr-defined]
    axes.set_zlim(*limits)  # type: ignore[attr-defined]
    axes.view_init(elev=28, azim=-60)  # type: ignore[attr-defined]
    axes.set_xlabel("adversarial", fontsize=8, color=INK)
    axes.set_ylabel("random", fontsize=8, color=INK)
    axes.set_title(loss.replace("_", "-"), loc="left", fontsize=10, color=INK)
    axes.tick_params(labelsize=6)
