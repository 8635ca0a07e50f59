"""Accuracy against PGD's iterations: one pass of the longest attack, read off after given numbers of steps."""

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
from envs.errors import InputError
from envs.files import write_json
from eval.attack.autosave import Progress, Report
from eval.attack.results import configuration_hash
from eval.core.formatting import make_table, with_interval
from eval.core.plot_style import INK, colour, legend_below, new_figure, tidy
from eval.core.stats import Interval, wilson
from eval.core.targets import Samples, Target
from eval.core.threats import Threat
from eval.robustness.protocols import chunks, pgd_options

FORMAT = 1
_LINES = ("-", "--", "-.", ":")


class IterationCurve(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One protocol and loss on one model.

    Attributes:
        model: its name; sha256: of its weights.
        threat: as text, such as ``L2 1``; protocol: such as ``pgd-cleverhans``; loss: such as ``ce``.
        iterations: increasing.
        robust: for every number of iterations a character per image, 1 where the image withstands: by protocol ``pgd``
            if no iterate so far is misclassified, by the others if the last one is classified correctly.
        attack: options of `attacks.pgd`.
        data: data set, split, fingerprint, indices of the images.
        seed: of the random starts.
        format: of the file.
    """

    model: str
    sha256: str
    threat: str
    protocol: str
    loss: str
    iterations: list[int]
    robust: list[str]
    attack: dict[str, Any]
    data: dict[str, Any]
    seed: int
    format: int = FORMAT

    @property
    def label(self) -> str:
        """Protocol and loss."""
        return self.protocol if self.loss == "ce" else f"{self.protocol} {self.loss}"

    @property
    def accuracy(self) -> list[float]:
        """Share of the images that withstand, one per number of iterations."""
        return [row.count("1") / len(row) for row in self.robust]

    @property
    def intervals(self) -> list[Interval]:
        """Wilson's 95 % intervals over images."""
        return [wilson(row.count("1"), len(row)) for row in self.robust]

    def figures(self) -> dict[str, Any]:
        """Return what the file of a command says of the curve, as plain JSON."""
        numbers = {"accuracy": self.accuracy, "ci95": [list(pair) for pair in self.intervals]}
        return msgspec.to_builtins(self) | numbers


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
        target: the classifier.
        samples: the images.
        threat: norm and radius.
        protocol: one of `eval.robustness.protocols.PROTOCOLS`.
        loss: a name of `attacks.core.losses`.
        iterations: numbers of steps, at least 1.
        seed: of the random starts.
        batch_size: most images at once; no outcome depends on it.
        folder: where finished curves are kept; None keeps nothing.
        force: run again what is kept.
        report: told about the progress.

    Raises:
        InputError, AttackError: a wrong name, or a model that cannot be attacked.
    """
    asked = sorted({int(number) for number in iterations})
    attack = pgd_options(protocol, loss, threat, asked[-1])
    data = samples.record() | {"indices": samples.indices.tolist()}
    what = {"name": "iterations", "norm": threat.norm, "eps": threat.eps, "asked": asked} | attack
    place = {"fingerprint": samples.fingerprint, "indices": data["indices"]}
    stem = f"{protocol}-{loss}-{threat.norm}-{threat.eps:.4g}"
    path = folder and folder / f"{stem}-{configuration_hash(what, place, target.sha256, seed)}.json"
    if path is not None and path.is_file() and not force:
        return _read(path)
    n, parts = len(samples), []
    for rows in chunks(target, samples, batch_size):
        found = _Pass(target, samples, rows, asked, attack["keep"], report)
        parts.append(found.run(threat, attack, seed, batch_size))
        report(Progress(rows.stop, n, float(parts[-1][-1].float().mean()), 0.0))
    robust = torch.cat(parts, dim=1).numpy()
    bits = ["".join("01"[int(value)] for value in row) for row in robust]
    curve = IterationCurve(
        target.name, target.sha256, str(threat), protocol, loss, asked, bits, attack, data, seed
    )
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, msgspec.to_builtins(curve))
    return curve


class _Pass:
    """One run of PGD over some of the samples, and what it shows after the steps that were asked for."""

    def __init__(
        self, target: Target, samples: Samples, rows: slice, asked: Sequence[int], keep: str, report: Report
    ) -> None:
        self.model, self.asked, self.best = target.model, asked, keep == "best"
        self.x, self.y = samples.batch(rows, target.device)
        self.ids = samples.indices[rows].to(self.x.device)
        self.right = torch.ones(len(asked), len(self.x), dtype=torch.bool, device=self.x.device)
        self.report, self.done, self.total = report, rows.start, len(samples)

    def __call__(self, step: Step) -> None:
        wrong = misclassified(step.logits, self.y[step.rows])
        self._note(step.index, step.rows, wrong)
        if step.index % 10 == 0:
            share = float(self.right[-1].float().mean())
            self.report(Progress(self.done, self.total, share, 0.0, f"step {step.index}"))

    def _note(self, index: int, rows: Tensor, wrong: Tensor) -> None:
        """Take the iterate after ``index`` steps: of the best one, a misclassified iterate stays so ever after."""
        for k, asked in enumerate(self.asked):
            if asked == index or (self.best and asked > index):
                self.right[k, rows] &= ~wrong

    def run(self, threat: Threat, attack: dict[str, Any], seed: int, batch_size: int | None) -> Tensor:
        """Return which images withstand (len(asked), n), bool on the CPU."""
        common: dict[str, Any] = {
            "seed": seed,
            "sample_ids": self.ids,
            "batch_size": batch_size,
            "on_step": self,
        }
        result = pgd(self.model, self.x, self.y, norm=threat.norm, eps=threat.eps, **common, **attack)
        everyone = torch.arange(len(self.x), device=self.x.device)
        self._note(attack["steps"], everyone, result.success)
        with torch.inference_mode():
            clean = torch.cat([self.model(part) for part in self.x.split(batch_size or 256)])
        return (self.right & ~misclassified(clean, self.y) & ~result.trace["not_attacked"]).cpu()


def _read(path: Path) -> IterationCurve:
    try:
        curve = msgspec.json.decode(path.read_bytes(), type=IterationCurve)
    except (OSError, UnicodeDecodeError, msgspec.DecodeError) as error:
        raise InputError(f"{path} is no curve of iterations ({error}); delete it and rerun") from None
    n = len(curve.data.get("indices", ()))
    if (
        curve.format != FORMAT
        or len(curve.robust) != len(curve.iterations)
        or {len(row) for row in curve.robust} != {n}
    ):
        raise InputError(f"{path} is not of format {FORMAT} with {n} outcomes per row; delete it and rerun")
    return curve


def iteration_tables(curves: Sequence[IterationCurve]) -> list[Table]:
    """Return a table per model and threat model: a row per number of iterations, a column per protocol and loss."""
    groups: dict[tuple[str, str], list[IterationCurve]] = {}
    for curve in curves:
        groups.setdefault((curve.model, curve.threat), []).append(curve)
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
    figure = new_figure(4.4 * len(losses) + 0.4, 3.4 * len(threats) + 0.7)
    figure.suptitle(
        "Robust accuracy after so many iterations of PGD (95 % Wilson bands)", fontsize=11, color=INK
    )
    panels = figure.subplots(len(threats), len(losses), squeeze=False, sharey=True)
    for curve in curves:
        axes = panels[threats.index(curve.threat), losses.index(curve.loss)]
        tidy(axes, f"{curve.threat}, {curve.loss}", "iterations", "robust accuracy")
        shade = colour(protocols.index(curve.protocol))
        line = _LINES[models.index(curve.model) % len(_LINES)]
        label = curve.protocol if len(models) == 1 else f"{curve.model}: {curve.protocol}"
        axes.plot(curve.iterations, curve.accuracy, color=shade, linestyle=line, marker=".", label=label)
        low, high = np.asarray(curve.intervals).T
        axes.fill_between(curve.iterations, low, high, color=shade, alpha=0.12, linewidth=0)
        axes.set_xscale("log")
        axes.set_ylim(-0.02, 1.02)
    legend_below(figure, panels[0][0])
    return figure
