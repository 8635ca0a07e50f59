"""The clean-robust front over the strength of adversarial training."""

from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

from eval.core.plot_style import INK, colour, legend_below, marker, panels, tidy
from eval.core.threats import Threat
from eval.study.results.cell_results import CellResult
from eval.study.results.overview import Group, Overview, clean, entries, pair, survives
from eval.study.results.plots import Picture, picture
from eval.study.results.record import Row, Table, columns
from eval.study.results.statistics import Rate, rate_of
from eval.study.results.tables import INTERVALS


class Strength(NamedTuple):
    """A regime of a family, such as ``supervised, pgd``: its regimes differ in radius or weight of their attacks alone.

    ``radius`` of the training's attacks: 0 without any, -1 for the default; ``weight`` of their term in the loss: 0
    without any.
    """

    family: str
    radius: float
    weight: float
    regime: str
    found: Sequence[CellResult]


def families(overview: Overview, group: Group) -> dict[str, list[Strength]]:
    """Return the families of a group with two or more strengths, the plain regime first, then by growing strength."""
    plain: dict[str, Strength] = {}
    attacked: dict[str, list[Strength]] = {}
    for regime, found in overview.regimes(group).items():
        config = found[0].cell.config
        algorithm, adversarial = config.schedule or config.algo, config.adversarial
        if adversarial.method == "none":
            plain.setdefault(algorithm, Strength(algorithm, 0.0, 0.0, regime, found))
            continue
        weight = 0.0 if adversarial.rule == "replace" else adversarial.full_weight()
        radius = -1.0 if adversarial.eps is None else adversarial.eps
        family = f"{algorithm}, {adversarial.method}"
        attacked.setdefault(family, []).append(Strength(family, radius, weight, regime, found))
    return {
        family: [
            *([plain[algorithm]] if (algorithm := family.rpartition(", ")[0]) in plain else []),
            *sorted(members, key=lambda item: item[1:3]),
        ]
        for family, members in attacked.items()
        if len({item[1:3] for item in members}) > 1
    }


def points(members: Sequence[Strength], threat: Threat) -> list[tuple[Strength, Rate, Rate]]:
    """Return the strengths with their clean and worst-case accuracy, those that have both."""
    found = [(item, rate_of(item.found, clean), rate_of(item.found, survives(threat))) for item in members]
    return [(item, own, worst) for item, own, worst in found if own is not None and worst is not None]


def undominated(places: Sequence[tuple[float, float]]) -> list[bool]:
    """Return whether no other (clean, worst-case) accuracy is at least as high in both and higher in one."""
    return [not any(a >= x and b >= y and (a, b) != (x, y) for a, b in places) for x, y in places]


def front_table(overview: Overview) -> Table | None:
    """Return clean and worst-case accuracy by strength; None where no family has several."""
    rows: list[Row] = []
    for group, threat in product(overview.groups, overview.grid.threats):
        found = families(overview, group).values()
        shown = [item for members in found for item in points(members, threat)]
        best = undominated([(own.mean, worst.mean) for _, own, worst in shown])
        for (item, own, worst), kept in zip(shown, best, strict=True):
            row = overview.place(group) | {"threat": str(threat), "family": item.family}
            row |= {"regime": item.regime, "weight": item.weight, "front": "yes" if kept else "no"}
            row |= {"radius": item.radius if item.radius >= 0 else "default"}
            rows.append(row | entries("clean", own) | entries("worst", worst))
    shown_columns = (
        *columns(threat="threat", family="family", regime="regime"),
        *columns("number", radius="training radius", weight="weight"),
        *pair("clean", "clean"),
        *pair("worst", "worst case of all attacks"),
        *columns(front="on the front"),
    )
    note = "On the front: no other regime of this table is at least as good in both means and better in one. "
    return overview.table("front", "Clean-robust front", note + INTERVALS, shown_columns, rows)


def front_picture(overview: Overview, group: Group) -> Picture | None:
    """Draw worst-case over clean accuracy, a line per family by growing strength, a panel per threat model."""
    found, threats = families(overview, group), overview.grid.threats
    if not found:
        return None
    title = f"Clean-robust front over training strength: {', '.join(group)}"
    note = "means over seeds; bars: 95 % over seeds, with one seed over images"
    figure, (row,) = panels(1, len(threats), (5.2 * len(threats) + 0.4, 4.8), f"{title}\n({note})")
    for axes, threat in zip(row, threats, strict=True):
        tidy(axes, str(threat), "clean accuracy", "worst case of all attacks")
        for k, (family, members) in enumerate(found.items()):
            shown = points(members, threat)
            x, x_bars = _bars([own for _, own, _ in shown])
            y, y_bars = _bars([worst for _, _, worst in shown])
            style = {"color": colour(k), "markersize": 5, "linewidth": 1, "elinewidth": 0.5, "label": family}
            axes.errorbar(x, y, xerr=x_bars, yerr=y_bars, fmt=f"{marker(k)}-", **style)
            for (item, _, _), place in zip(shown, zip(x, y, strict=True), strict=True):
                axes.annotate(item.regime, place, (3, 3), textcoords="offset points", fontsize=6, color=INK)
    legend_below(figure, row[0])
    alt = "Worst-case over clean accuracy by strength of adversarial training; the table of the front has the numbers."
    return picture("front", group, title, alt, figure)


def _bars(rates: Sequence[Rate]) -> tuple[list[float], list[list[float]]]:
    """Return means, and the lengths of the bars below and above them."""
    bars = [(rate.mean, *(rate.seeds or rate.images)) for rate in rates]
    lengths = [[mean - low for mean, low, _ in bars], [high - mean for mean, _, high in bars]]
    return [mean for mean, _, _ in bars], lengths
