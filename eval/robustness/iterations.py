"""Accuracy against PGD's iterations: one pass of the longest attack, read off after given numbers of steps."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from matplotlib.figure import Figure
from rich.table import Table
from torch import Tensor

from agents.common.plain_numbers import takes_numbers
from attacks.core.losses import misclassified
from attacks.gradient.pgd import Step, pgd
from eval.attack.autosave import Progress, Report
from eval.attack.results import configuration_hash
from eval.core.formatting import make_table, with_interval
from eval.core.plot_style import colour, legend_below, panels, tidy
from eval.core.records import FORMAT, bits, interval, read_record, share, write_record
from eval.core.stats import Interval
from eval.core.targets import Samples, Target, logits_of
from eval.core.threats import Threat
from eval.robustness.suite import chunks, pgd_options

_LINES = ("-", "--", "-.", ":")


class IterationCurve(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One protocol and loss on one model."""

    model: str  #: its name
    sha256: str  #: of its weights
    threat: str  #: as text, such as ``L2 1``
    protocol: str  #: such as ``pgd-cleverhans``
    loss: str  #: such as ``ce``
    iterations: list[int]  #: increasing
    #: for every number of iterations a character per image, 1 where the image withstands: by protocol
    #: ``pgd`` if no iterate so far is misclassified, by the others if the last one is classified
    #: correctly
    robust: list[str]
    attack: dict[str, Any]  #: options of `attacks.pgd`
    data: dict[str, Any]  #: data set, split, fingerprint, indices of the images
    seed: int  #: of the random starts
    format: int = FORMAT  #: of the file

    @property
    def label(self) -> str:
        """Protocol and loss."""
        return self.protocol if self.loss == "ce" else f"{self.protocol} {self.loss}"

    @property
    def accuracy(self) -> list[float]:
        """Share of the images that withstand, one per number of iterations."""
        return [share(row) for row in self.robust]

    @property
    def intervals(self) -> list[Interval]:
        """Wilson's 95 % intervals over images."""
        return [interval(row) for row in self.robust]

    def figures(self) -> dict[str, Any]:
        """Return what the file of a command says of the curve, as plain JSON."""
        numbers = {"accuracy": self.accuracy, "ci95": [list(pair) for pair in self.intervals]}
        return msgspec.to_builtins(self) | numbers

    def __post_init__(self) -> None:
        n = len(self.data.get("indices", ()))
        if len(self.robust) != len(self.iterations) or {len(row) for row in self.robust} != {n}:
            raise ValueError(f"the curve has not {n} outcomes per number of iterations")


@takes_numbers
def iteration_curve(
    target: Target,
    samples: Samples,
    threat: Threat,
    protocol: str,
    loss: str,
    iterations: Sequence[int],
    *,
    seed: int = 0,
    batch_size: int | None = None,
    folder: Path | None = None,
    force: bool = False,
    report: Report = lambda progress: None,
) -> IterationCurve:
    """Run PGD once and return the accuracy after each of ``iterations``; a finished curve is read from ``folder``.

    The accuracy after t iterations is that of `attacks.pgd` with ``steps=t`` and the same ``step_size``. Clean errors
    count as broken, as in every table.

    Args:
        target, samples, threat: whom, on which images, within which norm and radius.
        protocol, loss: of `eval.robustness.options.PROTOCOLS`, and a name of `attacks.core.losses`.
        iterations: numbers of steps, at least 1.
        seed, batch_size: of the random starts; most images at once, on which no outcome depends.
        folder: where finished curves are kept; None keeps nothing, ``force`` runs again what is kept.
        report: told about the progress.

    Raises:
        InputError, AttackError: a wrong name, or a model that cannot be attacked.
    """
    asked = sorted({int(number) for number in iterations})
    attack = pgd_options(protocol, loss, threat, asked[-1])
    data = samples.record() | {"indices": samples.indices.tolist()}
    what = {"name": "iterations", **vars(threat), "asked": asked} | attack
    place = {"fingerprint": samples.fingerprint, "indices": data["indices"]}
    stem = f"{protocol}-{loss}-{threat.norm}-{threat.eps:.4g}"
    path = folder and folder / f"{stem}-{configuration_hash(what, place, target.sha256, seed)}.json"
    if path is not None and path.is_file() and not force:
        return read_record(path, IterationCurve, "delete it and rerun")
    parts, options = [], {**vars(threat), **attack, "seed": seed, "batch_size": batch_size}
    for rows in chunks(target, samples, batch_size):
        parts.append(_one_pass(target, samples, rows, asked, options, report))
        report(Progress(rows.stop, len(samples), float(parts[-1][-1].float().mean()), 0.0))
    robust = [bits(row) for row in torch.cat(parts, dim=1)]
    question = (target.name, target.sha256, str(threat), protocol, loss, asked)
    curve = IterationCurve(*question, robust, attack, data, seed)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_record(path, curve)
    return curve


def _one_pass(
    target: Target,
    samples: Samples,
    rows: slice,
    asked: Sequence[int],
    options: dict[str, Any],
    report: Report,
) -> Tensor:
    """Return which images withstand PGD with ``options`` after the steps ``asked``, (len(asked), n) bool on the CPU."""
    x, y = samples.batch(rows, target.device)
    right = torch.ones(len(asked), len(x), dtype=torch.bool, device=x.device)

    def note(index: int, which: Tensor | slice, wrong: Tensor) -> None:
        """Take the iterate after ``index`` steps: of the best one, a misclassified iterate stays so ever after."""
        for k, number in enumerate(asked):
            if number == index or (options["keep"] == "best" and number > index):
                right[k, which] &= ~wrong

    def on_step(step: Step) -> None:
        note(step.index, step.rows, misclassified(step.logits, y[step.rows]))
        if step.index % 10 == 0:
            left = float(right[-1].float().mean())
            report(Progress(rows.start, len(samples), left, 0.0, f"step {step.index}"))

    ids = samples.indices[rows].to(x.device)
    result = pgd(target.model, x, y, sample_ids=ids, on_step=on_step, **options)
    note(options["steps"], slice(None), result.success)
    clean = logits_of(target.model, x, options["batch_size"] or 256)
    return (right & ~misclassified(clean, y) & ~result.trace["not_attacked"]).cpu()


def iteration_tables(curves: Sequence[IterationCurve]) -> list[Table]:
    """Return a table per model and threat model: a row per number of iterations, a column per protocol and loss."""
    groups: dict[tuple[str, str], list[IterationCurve]] = defaultdict(list)
    for curve in curves:
        groups[curve.model, curve.threat].append(curve)
    tables = []
    for (model, threat), found in groups.items():
        title = f"{model}: {threat}, robust [95 %] after so many iterations of PGD (n = {len(found[0].robust[0])})"
        table = make_table(title, (), ("iterations", *(curve.label for curve in found)))
        for k, number in enumerate(found[0].iterations):
            cells = (with_interval(curve.accuracy[k], curve.intervals[k]) for curve in found)
            table.add_row(str(number), *cells)
        tables.append(table)
    return tables


def iteration_figure(curves: Sequence[IterationCurve]) -> Figure:
    """Draw accuracy against iterations: rows are threat models, panels losses, colours protocols, lines models."""
    models, losses, threats, protocols = (
        list(dict.fromkeys(getattr(curve, name) for curve in curves))
        for name in ("model", "loss", "threat", "protocol")
    )
    size = (4.4 * len(losses) + 0.4, 3.4 * len(threats) + 0.7)
    title = "Robust accuracy after so many iterations of PGD (95 % Wilson bands)"
    figure, grid = panels(len(threats), len(losses), size, title, sharey=True)
    for curve in curves:
        axes = grid[threats.index(curve.threat), losses.index(curve.loss)]
        tidy(axes, f"{curve.threat}, {curve.loss}", "iterations", "robust accuracy")
        shade = colour(protocols.index(curve.protocol))
        line = _LINES[models.index(curve.model) % len(_LINES)]
        label = curve.protocol if len(models) == 1 else f"{curve.model}: {curve.protocol}"
        axes.plot(curve.iterations, curve.accuracy, color=shade, linestyle=line, marker=".", label=label)
        low, high = np.asarray(curve.intervals).T
        axes.fill_between(curve.iterations, low, high, color=shade, alpha=0.12, linewidth=0)
        axes.set_xscale("log")
        axes.set_ylim(-0.02, 1.02)
    legend_below(figure, grid[0, 0])
    return figure
