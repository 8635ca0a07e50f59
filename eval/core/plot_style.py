"""The common style of all plots, and how they are saved."""

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from envs.files import write_atomic

# Okabe and Ito (2008): distinguishable under every common form of colour blindness; yellow is left out (weak on white).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
INK = "#333333"
DPI = 150


def colour(k: int) -> str:
    """Return the colour of the k-th series."""
    return COLOURS[k % len(COLOURS)]


def marker(k: int) -> str:
    """Return the marker of the k-th series: a second cue beside colour."""
    return MARKERS[k % len(MARKERS)]


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of this size in inches; no global state, so threads and notebooks are safe."""
    return Figure(figsize=(width, height), layout="constrained")


def tidy(axes: Axes, title: str = "", xlabel: str = "", ylabel: str = "") -> None:
    """Give axes the common look: a light grid, no box, the title at the left."""
    axes.set_title(title, loc="left", fontsize=10, color=INK)
    axes.set_xlabel(xlabel, fontsize=9, color=INK)
    axes.set_ylabel(ylabel, fontsize=9, color=INK)
    axes.tick_params(labelsize=8, colors=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)


def legend_below(figure: Figure, axes: Axes) -> None:
    """Put one legend of the series in ``axes`` under all panels."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        style: dict[str, Any] = {"ncols": min(4, len(labels)), "frameon": False, "fontsize": 9}
        figure.legend(handles, labels, loc="outside lower center", **style)


def heat_map(axes: Axes, shares: np.ndarray, names: Sequence[str], title: str) -> AxesImage:
    """Draw shares in percent, (sources, targets), NaN where unknown: made on down, shown to across."""
    places = range(len(names))
    image = axes.imshow(100 * shares, cmap="cividis", vmin=0, vmax=100)
    for (i, j), share in np.ndenumerate(shares):
        if np.isfinite(share):
            shade = "black" if share > 0.55 else "white"
            axes.text(j, i, f"{100 * share:.1f}", ha="center", va="center", fontsize=7, color=shade)
    axes.set_xticks(places, names, rotation=30, ha="right", fontsize=8)
    axes.set_yticks(places, names, fontsize=8)
    axes.set_title(title, loc="left", fontsize=10, color=INK)
    axes.set_xlabel("shown to", fontsize=9, color=INK)
    axes.set_ylabel("made on", fontsize=9, color=INK)
    return image


def panels(
    rows: int, columns: int, size: tuple[float, float], title: str = "", **options: Any
) -> tuple[Figure, np.ndarray]:
    """Return a figure of ``size`` inches under its title, and its axes (rows, columns); options as of `subplots`."""
    figure = new_figure(*size)
    figure.suptitle(title, fontsize=11, color=INK)
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def shorten(names: Iterable[str], width: int = 34) -> list[str]:
    """Return names short enough for a legend, cut in the middle, still all different."""
    result: list[str] = []
    for name in names:
        text = name if len(name) <= width else f"{name[: width // 2]}…{name[-(width // 2 - 1) :]}"
        result.append(text if text not in result else f"{text} ({len(result) + 1})")
    return result


def save_figure(path: Path, figure: Figure) -> None:
    """Write the figure as PNG, atomically."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    write_atomic(path, buffer.getvalue())
