"""The plots of a study: accuracy by attack, trade-off, transfer matrices, robustness through training."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from eval.core.plot_style import INK, colour, legend_below, marker, new_figure, tidy
from eval.core.threats import Threat
from eval.study.results.model_tables import transfer_rates
from eval.study.results.overview import Group, Overview, outcome, survives
from eval.study.results.statistics import rate_of
from eval.trajectory.figure import trajectory_figure


@dataclass(frozen=True)
class Picture:
    """A plot with its name, title and description for those who do not see it."""

    id: str
    title: str
    alt: str
    figure: Figure


def all_pictures(overview: Overview) -> Iterator[Picture]:
    """Yield every plot that the study has results for."""
    for group in overview.groups:
        yield attacks_picture(overview, group)
        yield tradeoff_picture(overview, group)
        found = transfer_picture(overview, group)
        if found is not None:
            yield found
        found = trajectory_picture(overview, group)
        if found is not None:
            yield found


def slug(kind: str, group: Group) -> str:
    """Return a name for the file of a plot."""
    return re.sub(r"[^\w.+-]+", "-", f"{kind}-{group[0]}-{group[1]}")


def attacks_picture(overview: Overview, group: Group) -> Picture:
    """Draw robust accuracy by attack, one series per regime, one panel per threat model."""
    threats, regimes = overview.grid.threats, overview.regimes(group)
    names = [attack.name for attack in overview.grid.attacks]
    figure = new_figure(5.6 * len(threats) + 0.4, 1.9 + 0.13 * (len(names) + 1) * max(3, len(regimes)))
    panels = figure.subplots(1, len(threats), squeeze=False, sharey=True)[0]
    for axes, threat in zip(panels, threats, strict=True):
        tidy(axes, str(threat), "accuracy")
        for k, (regime, found) in enumerate(regimes.items()):
            measures = [outcome(threat, name) for name in names] + [survives(threat)]
            shift = 0.8 * ((k + 0.5) / len(regimes) - 0.5)
            for place, measure in enumerate(measures):
                rate = rate_of(found, measure)
                if rate is None:
                    continue
                low, high = rate.images
                axes.errorbar(
                    rate.mean,
                    place + shift,
                    xerr=[[rate.mean - low], [high - rate.mean]],
                    fmt=marker(k),
                    markersize=4,
                    color=colour(k),
                    linewidth=1,
                    label=regime if place == len(names) else None,
                )
        axes.axhspan(len(names) - 0.5, len(names) + 0.5, color=INK, alpha=0.07, linewidth=0)
        axes.set_yticks(range(len(names) + 1), [*names, "worst case"])
        axes.set_ylim(len(names) + 0.5, -0.5)
        axes.set_xlim(-0.02, 1.02)
    title = f"Robust accuracy by attack: {', '.join(group)}"
    figure.suptitle(f"{title}\n(mean over seeds, 95 % over images)", fontsize=10, color=INK)
    legend_below(figure, panels[0])
    alt = f"Robust accuracy of {len(regimes)} regimes under {len(names)} attacks; the table PGD has the numbers."
    return Picture(slug("attacks", group), title, alt, figure)


def tradeoff_picture(overview: Overview, group: Group) -> Picture:
    """Draw clean against worst-case accuracy: a small mark per seed, a large one at the mean."""
    threats = overview.grid.threats
    figure = new_figure(4.6 * len(threats) + 0.4, 4.2)
    panels = figure.subplots(1, len(threats), squeeze=False)[0]
    for axes, threat in zip(panels, threats, strict=True):
        tidy(axes, str(threat), "clean accuracy", "worst case of all attacks")
        for k, (regime, found) in enumerate(overview.regimes(group).items()):
            points = [(item.clean.mean(), item.worst[threat].robust_accuracy) for item in found]
            x, y = np.asarray(points).T
            axes.scatter(x, y, s=14, marker=marker(k), color=colour(k), alpha=0.45)
            axes.scatter(x.mean(), y.mean(), s=70, marker=marker(k), color=colour(k), label=regime)
    title = f"Clean-robust trade-off: {', '.join(group)}"
    figure.suptitle(f"{title}\n(small: seeds, large: mean)", fontsize=10, color=INK)
    legend_below(figure, panels[0])
    alt = "Clean accuracy against worst-case accuracy, one point per training; the tables have the numbers."
    return Picture(slug("tradeoff", group), title, alt, figure)


def transfer_picture(overview: Overview, group: Group) -> Picture | None:
    """Draw the transfer matrices as heat maps, a panel per craft and threat model."""
    regimes = list(overview.regimes(group))
    threats, crafts = overview.grid.threats, overview.grid.transfer.crafts
    if not crafts:
        return None
    side = 0.5 * len(regimes) + 2.0
    figure = new_figure(side * len(threats) + 0.6, side * len(crafts) + 0.6)
    panels = figure.subplots(len(crafts), len(threats), squeeze=False)
    drawn = False
    for row, craft in enumerate(crafts):
        for column, threat in enumerate(threats):
            drawn |= _heat(panels[row, column], overview, group, craft, threat, regimes)
    if not drawn:
        return None
    title = f"Transfer, source x target: {', '.join(group)}"
    figure.suptitle(f"{title}\n(accuracy in %; diagonal: white box)", fontsize=10, color=INK)
    alt = "Accuracy of each regime (columns) on images made on each regime (rows); the transfer table has the numbers."
    return Picture(slug("transfer", group), title, alt, figure)


def trajectory_picture(overview: Overview, group: Group) -> Picture | None:
    """Draw what the paper's protocol reports through training against what is left, a panel per regime."""
    found = [item.trajectory for items in overview.regimes(group).values() for item in items]
    followed = [trajectory for trajectory in found if trajectory is not None]
    if not followed:
        return None
    title = f"Robustness through training: {', '.join(group)}"
    alt = "Clean, reported and remaining accuracy over images seen in training; the table has the numbers."
    return Picture(slug("trajectory", group), title, alt, trajectory_figure(followed))


def _heat(
    axes: Axes, overview: Overview, group: Group, craft: str, threat: Threat, regimes: list[str]
) -> bool:
    rates = transfer_rates(overview, group, craft, threat)
    values = np.array(
        [[np.nan if (cell := rates[a, b][0]) is None else cell.mean for b in regimes] for a in regimes]
    )
    axes.imshow(values, vmin=0, vmax=1, cmap="cividis")
    axes.set_title(f"{craft}, {threat}", loc="left", fontsize=9, color=INK)
    axes.set_xticks(range(len(regimes)), regimes, rotation=45, ha="right", fontsize=7)
    axes.set_yticks(range(len(regimes)), regimes, fontsize=7)
    axes.set_xlabel("shown to", fontsize=8, color=INK)
    axes.set_ylabel("made on", fontsize=8, color=INK)
    for (i, j), value in np.ndenumerate(values):
        if np.isfinite(value):
            shade = "black" if value > 0.5 else "white"
            axes.text(j, i, f"{100 * value:.0f}", ha="center", va="center", fontsize=7, color=shade)
    return bool(np.isfinite(values).any())
