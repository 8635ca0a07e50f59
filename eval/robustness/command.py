"""The command line ``python -m eval.robustness``: a battery of attacks on one or several models, side by side."""

import sys
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from itertools import combinations
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.table import Table

from agents.common.run_dir import resolve_device, versions
from envs.errors import InputError
from envs.files import write_json
from eval.attack.results import AttackResults
from eval.attack.runner import check_batch_size
from eval.core.formatting import make_table, percent, print_table, with_interval
from eval.core.plot_style import INK, colour, legend_below, marker, panels, save_figure, shorten, tidy
from eval.core.progress import progress_bar, warn_about
from eval.core.stats import mcnemar
from eval.core.targets import Samples, Target
from eval.core.threats import Threat
from eval.mechanism.plots import SecurityCurve, nested_curve, security_figure
from eval.robustness.iterations import IterationCurve, iteration_curve, iteration_figure, iteration_tables
from eval.robustness.options import RobustnessCommand
from eval.robustness.options import main as main
from eval.robustness.suite import RobustnessReport, battery, run_battery, write_reports
from eval.robustness.targeted import TargetedOutcome, targeted_outcome, targeted_tables

_CURVE_FACTORS = (0.125, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)


def robustness_command(config: RobustnessCommand) -> int:
    """Run a battery of attacks on one or several models; report every attack and the worst case per image."""
    if not config.targets:
        raise InputError("no model given; name run directories, .zip files or package.module:factory")
    if not config.attacks:
        raise InputError("--attacks is empty; name at least one attack")
    check_batch_size(config.batch_size)
    config.pgd.check()
    battery(config.attacks, config.threats(1))  # wrong names and radii end here, before anything is loaded
    device = resolve_device(config.device)
    targets = [config.model.load(spec, device) for spec in config.targets]
    loaded = [(target, config.data.load(target)) for target in targets]
    for target, samples in loaded:
        warn_about(target, samples, config.threats(samples.channels))
    if config.pgd.iterations or config.pgd.target_class is not None:
        return _ask_pgd(config, loaded)
    reports = [_run(config, *pair, config.attacks, config.threats(pair[1].channels)) for pair in loaded]
    out = config.out or loaded[0][0].results_dir
    out.mkdir(parents=True, exist_ok=True)
    print_reports(reports)
    for line in comparisons(reports):
        print(line)
    write_reports(out / "robustness.json", reports)
    save_figure(out / "robustness.png", robustness_figure(reports))
    print(f"figures: {out / 'robustness.json'}\npicture: {out / 'robustness.png'}")
    if config.curve:
        save_figure(out / "security.png", security_figure(_curves(config, loaded), "(PGD on the margin)"))
        print(f"curve:   {out / 'security.png'}")
    return 0


def _ask_pgd(config: RobustnessCommand, loaded: Sequence[tuple[Target, Samples]]) -> int:
    """Answer ``--iterations`` or ``--target-class``: tables, JSON and, of iterations, a picture."""
    asked, out = config.pgd, config.out or loaded[0][0].results_dir
    common: dict[str, Any] = {"seed": config.seed, "batch_size": config.batch_size}
    curves: list[IterationCurve] = []
    outcomes: list[TargetedOutcome] = []
    for target, samples in loaded:
        for threat, protocol, loss in asked.cells(config.threats(samples.channels)):
            cell = (target, samples, threat, protocol, loss)
            label = f"{target.name}: {protocol} {loss} {threat}"
            with progress_bar(label, len(samples), config.progress) as report:
                common["report"] = report
                if asked.target_class is not None:
                    outcomes.append(targeted_outcome(*cell, asked.target_class, **common))
                    continue
                kept = {"folder": target.results_dir / "iterations", "force": config.force}
                curves.append(iteration_curve(*cell, asked.iterations, **common | kept))
    stem = "iterations" if curves else f"targeted-{asked.target_class}"
    for table in iteration_tables(curves) if curves else targeted_tables(outcomes):
        print_table(table)
    out.mkdir(parents=True, exist_ok=True)
    answers: list[IterationCurve | TargetedOutcome] = [*curves, *outcomes]
    rows = [answer.figures() for answer in answers]
    write_json(out / f"{stem}.json", {"format": 1, "rows": rows, "versions": versions()})
    print(f"figures: {out / stem}.json")
    if curves:
        save_figure(out / f"{stem}.png", iteration_figure(curves))
        print(f"picture: {out / stem}.png")
    return 0


def _run(
    config: RobustnessCommand,
    target: Target,
    samples: Samples,
    names: Sequence[str],
    threats: Sequence[Threat],
) -> RobustnessReport:
    target.results_dir.mkdir(parents=True, exist_ok=True)
    common: dict[str, Any] = {name: getattr(config, name) for name in ("seed", "batch_size", "force")}
    common |= {"results_dir": target.results_dir, "bar": partial(progress_bar, shown=config.progress)}
    return run_battery(target, samples, names, threats, **common)


def print_reports(reports: Sequence[RobustnessReport]) -> None:
    """Print a table per threat model and, on standard error, every warning of a model or of one attack on it.

    Rows are attacks and worst case, columns costs for one model, models for several.
    """
    make = reports[0].table if len(reports) == 1 else partial(_side_by_side, reports)
    for threat in dict.fromkeys(threat for report in reports for threat in report.results):
        print_table(make(threat))
    for report in reports:
        for line in report.warnings:
            print(f"warning: {report.name}: {line}", file=sys.stderr)


def _attacks(reports: Sequence[RobustnessReport], threat: Threat) -> list[str]:
    """The attacks of all reports under one threat model."""
    return list(dict.fromkeys(name for report in reports for name in report.results.get(threat, ())))


def _side_by_side(reports: Sequence[RobustnessReport], threat: Threat) -> Table:
    def cell(result: AttackResults | None) -> str:
        if result is None:
            return "-"
        text = with_interval(result.robust_accuracy, result.interval)
        return text if result.shortened_l2 is None else f"{text} ({percent(result.shortened_l2)})"

    sizes = ", ".join(str(n) for n in sorted({report.n for report in reports}))
    title = f"{threat}: robust [95 %], share of steps shortened in brackets (n = {sizes})"
    table = make_table(title, ("attack",), [report.name for report in reports])
    table.add_row("clean", *(percent(report.clean_accuracy) for report in reports))
    for name in _attacks(reports, threat):
        table.add_row(name, *(cell(report.results.get(threat, {}).get(name)) for report in reports))
    table.add_section()
    table.add_row(
        "worst case per image", *(cell(report.worst.get(threat)) for report in reports), style="bold"
    )
    return table


def comparisons(reports: Sequence[RobustnessReport]) -> list[str]:
    """Return one line per pair of models and threat model: do their worst cases differ on the same images?"""
    lines = []
    for first, second in combinations(reports, 2):
        for threat in [threat for threat in first.worst if threat in second.worst]:
            a, b = first.worst[threat], second.worst[threat]
            same = a.data.get("fingerprint") == b.data.get("fingerprint")
            if same and a.indices.tolist() == b.indices.tolist():
                test = mcnemar(a.robust, b.robust)
                lines.append(
                    f"{threat}: {first.name} alone resists on {test.only_first} images, {second.name} alone on "
                    f"{test.only_second} (McNemar's exact test, p = {test.p_value:.2g})"
                )
    return lines


def _curves(
    config: RobustnessCommand, loaded: Sequence[tuple[Target, Samples]]
) -> dict[str, dict[str, SecurityCurve]]:
    curves: dict[str, dict[str, SecurityCurve]] = defaultdict(dict)
    for target, samples in loaded:
        chosen = config.threats(samples.channels)
        for norm in dict.fromkeys(threat.norm for threat in chosen):
            largest = max(threat.eps for threat in chosen if threat.norm == norm)
            grid = [Threat(norm, factor * largest) for factor in _CURVE_FACTORS]
            report = _run(config, target, samples, ("pgd-margin",), grid)
            curves[norm][target.name] = security_curve(report)
    return curves


def security_curve(report: RobustnessReport) -> SecurityCurve:
    """Return the accuracy at every radius of a report under one norm."""
    ordered = sorted(report.worst.values(), key=lambda result: result.threat.eps)
    radii, masks = [result.threat.eps for result in ordered], [result.robust for result in ordered]
    return nested_curve(radii, ordered[0].clean_correct, masks)


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
        shown = _attacks(reports, threat)
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
    legend_below(figure, grid[0, 0])
    return figure


def _point(axes: Axes, result: AttackResults, height: float, k: int, label: str | None = None) -> None:
    accuracy, (low, high) = result.robust_accuracy, result.interval
    style: dict[str, Any] = {"fmt": marker(k), "markersize": 5, "color": colour(k), "linewidth": 1.2}
    bars = [[accuracy - low], [high - accuracy]]
    axes.errorbar(accuracy, height, xerr=bars, label=label, capsize=2, **style)
    if result.shortened_l2 and result.shortened_l2 >= 0.005:
        text = f"{100 * result.shortened_l2:.0f} % short"
        place: dict[str, Any] = {"xytext": (4, 0), "textcoords": "offset points", "va": "center"}
        axes.annotate(text, (high, height), fontsize=6.5, color=INK, **place)
