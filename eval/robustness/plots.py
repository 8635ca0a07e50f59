"""The security picture: robust accuracy of every attack and model, with intervals and the worst case."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from eval.attack.results import AttackResults
from eval.core.plot_style import INK, colour, legend_below, marker, panels, shorten, tidy
from eval.core.threats import Threat
from eval.robustness.suite import RobustnessReport


def robustness_figure(reports: Sequence[RobustnessReport]) -> Figure:
    """Draw one panel per threat model: attacks from top to bottom, robust accuracy with 95 % intervals.

    A vertical line marks each model's clean accuracy. Where the cleverhans floor shortened steps, the share is written
    beside the point.
    """
    threats = list(dict.fromkeys(threat for report in reports for threat in report.results))
    rows = max(len(report.results[threat]) + 1 for report in reports for threat in report.results)
    size = (5.2 * len(threats) + 0.6, 1.6 + rows * max(0.36, 0.2 * len(reports)))
    title = "Robust accuracy (95 % Wilson intervals; lines: clean accuracy)"
    figure, grid = panels(1, len(threats), size, title)
    names = shorten(report.name for report in reports)
    for axes, threat in zip(grid[0], threats, strict=True):
        _panel(axes, threat, reports, names)
    legend_below(figure, grid[0, 0])
    return figure


def _panel(axes: Axes, threat: Threat, reports: Sequence[RobustnessReport], names: Sequence[str]) -> None:
    shown = list(dict.fromkeys(name for report in reports for name in report.results.get(threat, ())))
    tidy(axes, str(threat), "accuracy")
    for k, (report, label) in enumerate(zip(reports, names, strict=True)):
        if threat not in report.results:
            continue
        axes.axvline(report.clean_accuracy, color=colour(k), linestyle=":", linewidth=1)
        shift = 0.16 * (k - (len(reports) - 1) / 2)
        for name, result in report.results[threat].items():
            _point(axes, result, shown.index(name) + shift, k)
        _point(axes, report.worst[threat], len(shown) + shift, k, label)
    axes.axhspan(len(shown) - 0.5, len(shown) + 0.5, color=INK, alpha=0.07, linewidth=0)
    axes.set_yticks(range(len(shown) + 1), [*shown, "worst case"])
    axes.set_ylim(len(shown) + 0.5, -0.5)
    axes.set_xlim(-0.02, 1.02)


def _point(axes: Axes, result: AttackResults, height: float, k: int, label: str | None = None) -> None:
    accuracy, (low, high) = result.robust_accuracy, result.interval
    style: dict[str, Any] = {
        "fmt": marker(k),
        "markersize": 5,
        "color": colour(k),
        "linewidth": 1.2,
        "capsize": 2,
    }
    axes.errorbar(accuracy, height, xerr=[[accuracy - low], [high - accuracy]], label=label, **style)
    if result.shortened_l2 and result.shortened_l2 >= 0.005:
        text = f"{100 * result.shortened_l2:.0f} % short"
        place: dict[str, Any] = {"xytext": (4, 0), "textcoords": "offset points", "va": "center"}
        axes.annotate(text, (high, height), fontsize=6.5, color=INK, **place)
