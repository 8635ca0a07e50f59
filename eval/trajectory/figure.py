"""The figure of followed runs, what is reported against what is left over the images seen; and their files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from envs.files import write_json
from eval.core.plot_style import INK, colour, legend_below, new_figure, save_figure, tidy
from eval.core.records import share
from eval.core.stats import wilson
from eval.trajectory.record import OUTSIDE, SUFFIX, Point, Trajectory, write_trajectories
from eval.trajectory.tables import alike, by_regime, scalars, summary_rows

_PER_ROW = 4


def claimed(point: Point) -> str:
    """Return the outcomes under the paper's protocol; where it was not run, under the cleverhans protocol."""
    outcome = point.attacks.get(OUTSIDE) or point.attacks.get("pgd-cleverhans")
    return point.clean if outcome is None else outcome.robust


_SERIES = (
    ("clean", lambda point: point.clean, INK, ":"),
    ("reported: the paper's protocol", claimed, colour(1), "-"),
    ("left: worst case of all attacks", lambda point: point.left, colour(0), "-"),
)


def trajectory_figure(trajectories: Sequence[Trajectory]) -> Figure:
    """Draw one panel per regime and a row or more per data set and threat model.

    Thick lines: means over seeds; thin: single seeds; bands: Wilson's 95 % over images at the mean. The space between
    the two is filled: robustness that is reported and not there.
    """
    rows = []
    for group in alike(trajectories):
        panels = list(by_regime(group).items())
        parts = [panels[start : start + _PER_ROW] for start in range(0, len(panels), _PER_ROW)]
        rows += [(group[0].title, part) for part in parts]
    columns = max(len(panels) for _, panels in rows)
    figure = new_figure(max(2.7 * columns + 0.5, 7.2), 2.5 * len(rows) + 0.6)
    grid = figure.subplots(len(rows), columns, squeeze=False, sharey=True)
    for line, (title, panels) in zip(grid, rows, strict=True):
        for axes, (regime, members) in zip(line, panels):  # noqa: B905 - the last row may be shorter
            _panel(axes, regime, members)
        for axes in line[len(panels) :]:
            axes.set_visible(False)
        line[0].set_ylabel(f"{title}\nrobust accuracy", fontsize=9, color=INK)
    legend_below(figure, grid[0][0])
    return figure


def _panel(axes: Axes, regime: str, members: Sequence[Trajectory]) -> None:
    n, seeds = len(members[0].indices), len(members)
    tidy(axes, f"{regime} ({seeds} seed{'s' if seeds > 1 else ''})", "images seen in training")
    runs = [{point.images: point for point in member.points} for member in members]
    images = sorted(set.intersection(*map(set, runs)))  # seeds may differ in their snapshots
    means = []
    for label, row_of, shade, style in _SERIES:
        curves = np.asarray([[share(row_of(points[step])) for step in images] for points in runs])
        mean = curves.mean(0)
        means.append(mean)
        axes.plot(images, mean, color=shade, linestyle=style, linewidth=2, label=label)
        if len(curves) > 1:
            axes.plot(images, curves.T, color=shade, linestyle=style, linewidth=0.6, alpha=0.6)
        if style != ":":
            low, high = zip(*(wilson(value * n, n) for value in mean), strict=True)
            axes.fill_between(images, low, high, color=shade, alpha=0.15, linewidth=0)
    hatched: dict[str, Any] = {"facecolor": "none", "edgecolor": colour(1), "hatch": "////", "alpha": 0.5}
    axes.fill_between(images, means[1], means[2], linewidth=0, **hatched)
    axes.set(xscale="log", ylim=(-0.02, 1.02))


def write_outputs(out: Path, trajectories: Sequence[Trajectory], outcomes: bool = True) -> None:
    """Write ``trajectory.json`` and ``.png`` into ``out``; ``outcomes``: also every outcome, as ``.json.xz``."""
    out.mkdir(parents=True, exist_ok=True)
    save_figure(out / "trajectory.png", trajectory_figure(trajectories))
    if outcomes:
        write_trajectories(out / f"trajectory{SUFFIX}", trajectories)
    rows = []
    for item in trajectories:
        about = {"name": item.name, "regime": item.regime, "seed": item.seed}
        about |= {"data": item.data | {"n": len(item.indices)}, "threat": item.threat}
        rows.append(about | {"points": [{"images": point.images} | scalars(point) for point in item.points]})
    ends = {group[0].title: summary_rows(group) for group in alike(trajectories)}
    write_json(out / "trajectory.json", {"format": 1, "trajectories": rows, "ends": ends})
