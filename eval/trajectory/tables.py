"""Trajectories as tables and TensorBoard scalars."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from torch.utils.tensorboard import SummaryWriter

from eval.core.formatting import count, make_table, percent, with_interval
from eval.core.records import interval, share
from eval.core.stats import wilson
from eval.trajectory.record import Point, Trajectory

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
