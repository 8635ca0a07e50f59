"""The command line ``python -m eval.robustness``: a battery of attacks on one or several models, side by side."""

import sys
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from itertools import combinations
from typing import Any

from rich.table import Table

from agents.common.run_dir import resolve_device, versions
from envs.errors import InputError
from envs.files import write_json
from eval.attack.results import AttackResults
from eval.attack.runner import check_batch_size
from eval.core.formatting import make_table, percent, print_table, with_interval
from eval.core.plot_style import save_figure
from eval.core.progress import progress_bar, warn_about
from eval.core.stats import mcnemar
from eval.core.targets import Samples, Target
from eval.core.threats import Threat
from eval.mechanism.plots import SecurityCurve, nested_curve, security_figure
from eval.robustness.iterations import IterationCurve, iteration_curve, iteration_figure, iteration_tables
from eval.robustness.options import RobustnessCommand
from eval.robustness.options import main as main
from eval.robustness.plots import robustness_figure
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


def _side_by_side(reports: Sequence[RobustnessReport], threat: Threat) -> Table:
    shown = list(dict.fromkeys(name for report in reports for name in report.results.get(threat, ())))
    sizes = ", ".join(str(n) for n in sorted({report.n for report in reports}))
    title = f"{threat}: robust [95 %], share of steps shortened in brackets (n = {sizes})"
    table = make_table(title, ("attack",), [report.name for report in reports])
    table.add_row("clean", *(percent(report.clean_accuracy) for report in reports))
    for name in shown:
        table.add_row(name, *(_cell(report.results.get(threat, {}).get(name)) for report in reports))
    table.add_section()
    worst = (_cell(report.worst.get(threat)) for report in reports)
    table.add_row("worst case per image", *worst, style="bold")
    return table


def _cell(result: AttackResults | None) -> str:
    if result is None:
        return "-"
    text = with_interval(result.robust_accuracy, result.interval)
    return text if result.shortened_l2 is None else f"{text} ({percent(result.shortened_l2)})"


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
