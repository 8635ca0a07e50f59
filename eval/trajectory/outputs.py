"""How followed runs are shown: tables, TensorBoard scalars, and the figure of what is reported against what is left."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.table import Table
from torch.utils.tensorboard import SummaryWriter

from envs.files import write_json
from eval.core.formatting import count, make_table, percent, with_interval
from eval.core.plot_style import INK, colour, legend_below, new_figure, save_figure, tidy
from eval.core.records import interval, share
from eval.core.stats import wilson
from eval.trajectory.record import OUTSIDE, SUFFIX, Point, Trajectory, write_trajectories

_PER_ROW = 4  # panels
# Indicators by column: how images are summarised, heading, format.
_INDICATORS = {
    "gradient_norm": ("median", "|gradient|", ".1e"),
    "cosine": ("mean", "cosine", ".3f"),
    "clamped_cosine": ("mean", "cosine, clamped", ".3f"),
    "margin": ("median", "logit margin", ".1f"),
    "entropy": ("mean", "entropy (bits)", ".1e"),
}


def scalars(point: Point) -> dict[str, float]:
    """Return every figure of a snapshot by name, shares in [0, 1]."""
    figures: dict[str, float | None] = {"clean": share(point.clean), "left": share(point.left)}
    figures |= {name: share(outcome.robust) for name, outcome in point.attacks.items()}
    figures |= {f"shortened/{name}": point.shortened(name) for name in point.attacks}
    figures |= {name: point.indicator(name, how) for name, (how, _, _) in _INDICATORS.items()}
    figures["clamped"] = point.indicator("clamped", "mean")
    return {name: value for name, value in figures.items() if value is not None}


def trajectory_tables(trajectory: Trajectory) -> tuple[Table, Table]:
    """Return what attacks leave and what gradients are like, one row per snapshot."""
    names = list(dict.fromkeys(name for point in trajectory.points for name in point.attacks))
    title = f"{trajectory.name}: {trajectory.title}, n = {len(trajectory.indices)}"
    attacked = make_table(title, ("images",), ("clean", *names, "left [95 %]", "steps shortened"))
    headings = [heading for _, heading, _ in _INDICATORS.values()]
    measured = make_table(f"{trajectory.name}: indicators", ("images",), headings)
    for point in trajectory.points:
        seen, found = count(point.images), point.attacks
        shares = [percent(share(found[name].robust)) if name in found else "-" for name in names]
        left = with_interval(share(point.left), interval(point.left))
        shortened = percent(point.shortened("pgd-cleverhans"))
        attacked.add_row(seen, percent(share(point.clean)), *shares, left, shortened)
        values = ((point.indicator(name, how), form) for name, (how, _, form) in _INDICATORS.items())
        measured.add_row(seen, *("-" if value is None else f"{value:{form}}" for value, form in values))
    return attacked, measured


def summary_rows(trajectories: Sequence[Trajectory]) -> list[dict[str, Any]]:
    """Return, per regime, the last snapshots' means over seeds and the range of the seeds, as plain JSON."""
    rows = []
    for regime, members in by_regime(trajectories).items():
        last = [scalars(member.points[-1]) for member in members]
        names = [name for name in last[0] if all(name in row for row in last)]
        means = {name: statistics.fmean(row[name] for row in last) for name in names}
        spans = {name: [min(row[name] for row in last), max(row[name] for row in last)] for name in names}
        seeds = [member.seed for member in members]
        images = [member.points[-1].images for member in members]
        rows.append({"regime": regime, "seeds": seeds, "images": images, "mean": means, "range": spans})
    return rows


def by_regime(trajectories: Sequence[Trajectory]) -> dict[str, list[Trajectory]]:
    """Return trajectories by regime, in the order in which regimes come first."""
    regimes = dict.fromkeys(item.regime for item in trajectories)
    return {regime: [item for item in trajectories if item.regime == regime] for regime in regimes}


def alike(trajectories: Sequence[Trajectory]) -> list[list[Trajectory]]:
    """Return those of one data set, network and threat model together."""
    titles = dict.fromkeys(item.title for item in trajectories)
    return [[item for item in trajectories if item.title == title] for title in titles]


def summary_table(trajectories: Sequence[Trajectory]) -> Table:
    """Return one row per regime: the end of training, means over seeds, Wilson's interval over images at the mean."""
    n = len(trajectories[0].indices)
    attacks = list(dict.fromkeys(name for row in trajectories for name in row.points[-1].attacks))
    title = f"{trajectories[0].title}: end of training, mean over seeds [95 % over {n} images]"
    table = make_table(title, ("regime", "seeds", "images seen"), ("clean", *attacks, "left", "shortened"))
    for row in summary_rows(trajectories):
        means = row["mean"]
        shown = [percent(means.get(name)) for name in ("clean", *attacks)]
        shown.append(with_interval(means["left"], wilson(means["left"] * n, n)))
        seen = "-".join(count(images) for images in sorted(set(row["images"])))
        shortened = percent(means.get("shortened/pgd-cleverhans"))
        table.add_row(row["regime"], str(len(row["seeds"])), seen, *shown, shortened)
    return table


def write_events(folder: Path, trajectory: Trajectory) -> None:
    """Write the figures as TensorBoard scalars, at the steps of training; events of an earlier call are replaced."""
    for path in folder.glob("events.out.tfevents.*"):
        path.unlink()
    with SummaryWriter(log_dir=str(folder)) as writer:
        for point in trajectory.points:
            for name, value in scalars(point).items():
                writer.add_scalar(f"trajectory/{name}", value, point.images)


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
