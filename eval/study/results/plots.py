"""The plots of a study: accuracy by attack, trade-off, transfer matrices, robustness through training."""

import re
from itertools import product

import numpy as np
from matplotlib.figure import Figure

from eval.core.plot_style import INK, colour, heat_map, legend_below, marker, panels, tidy
from eval.study.results.overview import Group, Overview, outcome, survives
from eval.study.results.record import PlotRecord
from eval.study.results.statistics import rate_of
from eval.study.results.tables import transfer_rates
from eval.trajectory.outputs import trajectory_figure

Picture = tuple[PlotRecord, Figure]


def picture(kind: str, group: Group, title: str, alt: str, figure: Figure) -> Picture:
    """Return the figure with what ``study.json`` says of it."""
    name = re.sub(r"[^\w.+-]+", "-", f"{kind}-{group[0]}-{group[1]}")
    return PlotRecord(name, title, f"figures/{name}.png", alt), figure


def attacks_picture(overview: Overview, group: Group) -> Picture:
    """Draw robust accuracy by attack, one series per regime, one panel per threat model."""
    threats, regimes = overview.grid.threats, overview.regimes(group)
    names = [attack.name for attack in overview.grid.attacks]
    size = (5.6 * len(threats) + 0.4, 1.9 + 0.13 * (len(names) + 1) * max(3, len(regimes)))
    title = f"Robust accuracy by attack: {', '.join(group)}"
    note = "mean over seeds, 95 % over images"
    figure, (row,) = panels(1, len(threats), size, f"{title}\n({note})", sharey=True)
    for axes, threat in zip(row, threats, strict=True):
        tidy(axes, str(threat), "accuracy")
        measures = [*(outcome(threat, name) for name in names), survives(threat)]
        for (k, (regime, found)), (place, measure) in product(
            enumerate(regimes.items()), enumerate(measures)
        ):
            rate = rate_of(found, measure)
            if rate is not None:
                shift = 0.8 * ((k + 0.5) / len(regimes) - 0.5)
                bars = [[rate.mean - rate.images[0]], [rate.images[1] - rate.mean]]
                style = {"fmt": marker(k), "markersize": 4, "color": colour(k), "linewidth": 1}
                style["label"] = regime if place == len(names) else None
                axes.errorbar(rate.mean, place + shift, xerr=bars, **style)
        axes.axhspan(len(names) - 0.5, len(names) + 0.5, color=INK, alpha=0.07, linewidth=0)
        axes.set_yticks(range(len(names) + 1), [*names, "worst case"])
        axes.set(xlim=(-0.02, 1.02), ylim=(len(names) + 0.5, -0.5))
    legend_below(figure, row[0])
    alt = f"Robust accuracy of {len(regimes)} regimes under {len(names)} attacks; the table PGD has the numbers."
    return picture("attacks", group, title, alt, figure)


def tradeoff_picture(overview: Overview, group: Group) -> Picture:
    """Draw clean against worst-case accuracy: a small mark per seed, a large one at the mean."""
    threats = overview.grid.threats
    title = f"Clean-robust trade-off: {', '.join(group)}"
    size = (4.6 * len(threats) + 0.4, 4.2)
    figure, (row,) = panels(1, len(threats), size, f"{title}\n(small: seeds, large: mean)")
    for axes, threat in zip(row, threats, strict=True):
        tidy(axes, str(threat), "clean accuracy", "worst case of all attacks")
        for k, (regime, found) in enumerate(overview.regimes(group).items()):
            points = [(item.clean.mean(), item.worst[threat].robust_accuracy) for item in found]
            x, y = np.asarray(points).T
            axes.scatter(x, y, s=14, marker=marker(k), color=colour(k), alpha=0.45)
            axes.scatter(x.mean(), y.mean(), s=70, marker=marker(k), color=colour(k), label=regime)
    legend_below(figure, row[0])
    alt = "Clean accuracy against worst-case accuracy, one point per training; the tables have the numbers."
    return picture("tradeoff", group, title, alt, figure)


def transfer_picture(overview: Overview, group: Group) -> Picture | None:
    """Draw the transfer matrices as heat maps, a panel per craft and threat model."""
    regimes = list(overview.regimes(group))
    threats, crafts = overview.grid.threats, overview.grid.transfer.crafts
    maps = []
    for craft, threat in product(crafts, threats):
        rates = transfer_rates(overview, group, craft, threat)
        found = [rates[source, target][0] for source, target in product(regimes, repeat=2)]
        shares = np.array([np.nan if rate is None else rate.mean for rate in found])
        maps.append((shares.reshape(len(regimes), -1), f"{craft}, {threat}"))
    if not any(np.isfinite(shares).any() for shares, _ in maps):
        return None
    side, title = 0.5 * len(regimes) + 2.0, f"Transfer, source x target: {', '.join(group)}"
    size = (side * len(threats) + 0.6, side * len(crafts) + 0.6)
    figure, grid = panels(len(crafts), len(threats), size, f"{title}\n(accuracy in %; diagonal: white box)")
    for axes, (shares, name) in zip(grid.flat, maps, strict=True):
        heat_map(axes, shares, regimes, name)
    alt = "Accuracy of each regime (columns) on images made on each regime (rows); the transfer table has the numbers."
    return picture("transfer", group, title, alt, figure)


def trajectory_picture(overview: Overview, group: Group) -> Picture | None:
    """Draw what the paper's protocol reports through training against what is left, a panel per regime."""
    found = [item.trajectory for items in overview.regimes(group).values() for item in items]
    followed = [trajectory for trajectory in found if trajectory is not None]
    if not followed:
        return None
    title = f"Robustness through training: {', '.join(group)}"
    alt = "Clean, reported and remaining accuracy over images seen in training; the table has the numbers."
    return picture("trajectory", group, title, alt, trajectory_figure(followed))
