"""One row of the test bed: our audit, an adaptive attack, and other projects' checks on the same images."""

import functools
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from attacks.autoattack.autoattack import autoattack
from attacks.blackbox.square import square
from attacks.checks import check_model
from attacks.core.errors import AttackError
from attacks.gradient.apgd import apgd_targeted
from attacks.gradient.pgd import pgd
from benchmarks.audit.cases import BARE, MASKED, SOUND, Case
from benchmarks.audit.networks import images
from eval.audit import AuditReport, audit
from eval.audit.attacks import PGD_CE
from eval.audit.record import AttackRecord, Family
from eval.audit.wrappers import Averaged, BackwardThrough, Counted, Smoothed, WithCompanions

CASES = {case.name: case for case in (*MASKED, *SOUND)}
_VOTES = 51
_STRONG = "PGD (100 steps, 3 restarts; margin, MIFPE, cross-entropy), targeted APGD (9 classes)"
_COSTLY = "PGD (40 steps; margin, MIFPE, cross-entropy), targeted APGD (3 classes)"
_PASSES = 16
_NOISE, _DRAWS = 0.05, 8
_COMPANIONS = 15
# Whose checks they are, by how the audit's evidence names them.
_CHECKS = {
    "Pintor's indicators": "Pintor et al. 2022, indicator",
    "binarization": "Zimmermann et al. 2022",
    "Carlini's checks": "Carlini et al. 2019: ",
}
# Not Carlini's own limits, or our conclusions rather than their check.
_NOT_THEIRS = ("zero gradients", "accuracy lost in the last quarter", "images that only")


def measure(
    name: str, seed: int, n: int, norm: str, eps: float, minutes: float | None = None
) -> dict[str, Any]:
    """Build, audit and compare one model; the row of the table."""
    case = CASES[name]
    model, (x, y) = case.build(seed), images(n, task=case.task)
    start = time.process_time()
    report = audit(model, x, y, norm=norm, eps=eps, seed=seed, minutes=minutes)
    seconds = time.process_time() - start
    torch.manual_seed(seed)  # of random models' draws, here and in the checks of others
    truth, alone, how = adaptive_truth(case, seed, x, y, norm, eps, report.adversarial)
    return {
        "model": name,
        "seed": seed,
        "expected": None if case.cause is None else str(case.cause),
        "verdict": str(report.verdict),
        "cause": None if report.cause is None else str(report.cause),
        "reason": report.reason,
        "right": report.cause == case.cause
        and report.verdict == ("sound" if case.cause is None else "masked"),
        "clean": report.clean_accuracy,
        "claimed": report.claimed_accuracy,
        "corrected": report.robust_accuracy,
        "ci95": list(report.interval),
        "truth": truth,
        "adaptive": alone,
        "truth_by": how,
        "others": others(model, x, y, norm, eps, seed, report),
        "cpu_seconds": seconds,
        "forwards": report.cost["forwards"],
        "backwards": report.cost["backwards"],
        "alarms": [finding.check for finding in report.evidence if finding.alarm],
    }


def adaptive_truth(
    case: Case, seed: int, x: Tensor, y: Tensor, norm: str, eps: float, found: Tensor | None = None
) -> tuple[float, float, str]:
    """The worst case per image of attacks that know the mask and of images ``found``; of the former alone; and how.

    Images found count for models that are not random: noise would decide which of two searches was luckier.

    All is judged by the model: random ones by the majority of 51 passes, confirmed by as many fresh ones,
    batch-dependent ones image by image among 15 clean ones.
    """
    model, kind = case.build(seed), "" if case.cause is None else case.cause.name
    judge: nn.Module = WithCompanions(model, x[:_COMPANIONS], Counted(model)) if kind == "BATCH" else model
    record = AttackRecord(judge, x, y, norm, eps, votes=_VOTES if kind == "RANDOM" else 1, seed=seed)
    how = _adaptive(record, case, seed, kind, len(x))
    record.settle()
    alone = record.accuracy
    if found is not None and kind != "RANDOM":
        _add(record, "found by the audit", found)
    return record.accuracy, alone, how


def _adaptive(record: AttackRecord, case: Case, seed: int, kind: str, n: int) -> str:
    if case.adaptive is not None and case.how == BARE:
        for name, points in _found(case.adaptive, seed, n, case.task, record.norm, record.eps):
            _add(record, name, points)
        return f"{_STRONG}; {case.how}"
    costly = kind in ("RANDOM", "BATCH")
    view = Averaged(record.judge, _PASSES) if kind == "RANDOM" else record.judge
    through = view if case.adaptive is None else BackwardThrough(view, case.adaptive(seed))
    _strong(record, through, costly)
    if costly:
        way = "the mean over 16 passes" if kind == "RANDOM" else "each image among clean ones"
        return f"{_COSTLY}; {way}"
    record.run("Square", Family.FREE, square, view, queries=3000)
    if case.adaptive is None:
        return f"{_STRONG}, Square (3000 queries)"
    noisy = BackwardThrough(view, Smoothed(case.adaptive(seed), _NOISE, _DRAWS))
    record.run("noisy", Family.GRADIENT, pgd, noisy, steps=50, restarts=2, loss="margin")
    return f"{_STRONG}, PGD on gradients averaged over noise, Square (3000 queries); {case.how}"


def _add(record: AttackRecord, name: str, points: Tensor) -> None:
    rows, claimed = torch.arange(len(points)), torch.ones(len(points), dtype=torch.bool)
    record.add(name, Family.GRADIENT, rows, points, claimed, 0.0)


def _strong(record: AttackRecord, view: nn.Module, costly: bool = False) -> None:
    steps, restarts, targets = (40, 1, 3) if costly else (100, 3, 9)
    for loss in ("margin", "mifpe", "ce"):
        record.run(loss, Family.GRADIENT, pgd, view, steps=steps, restarts=restarts, loss=loss)
    classes = int(view(record.x[:2]).shape[1])
    targets, loss = min(classes - 1, targets), "dlr" if classes > 3 else "margin"
    record.run("targets", Family.GRADIENT, apgd_targeted, view, steps=steps, num_targets=targets, loss=loss)


@functools.cache
def _found(
    build: Callable[[int], nn.Module], seed: int, n: int, task: str, norm: str, eps: float
) -> list[tuple[str, Tensor]]:
    """Points that break a network without its mask, kept for all models masked on top of it."""
    record = AttackRecord(build(seed), *images(n, task=task), norm, eps, seed=seed)
    _strong(record, record.judge)
    return [("found on the network without its mask", record.points)]


def others(
    model: nn.Module, x: Tensor, y: Tensor, norm: str, eps: float, seed: int, report: AuditReport
) -> dict[str, bool]:
    """Which of the published checks raise a flag; those that the audit makes itself are read off its evidence."""
    flags = {
        whose: any(
            finding.alarm and sign in finding.source and not finding.check.startswith(_NOT_THEIRS)
            for finding in report.evidence
        )
        for whose, sign in _CHECKS.items()
    }
    by_name = {outcome.name: outcome for outcome in report.attacks}
    squared = square(model, x, y, norm=norm, eps=eps, queries=1000, seed=seed).success
    flags["Square beats PGD"] = bool((squared & ~by_name[PGD_CE].broken).any())
    flags["AutoAttack's flags"] = _autoattack_flags(model, x, y, norm, eps, seed)
    return flags


def _autoattack_flags(model: nn.Module, x: Tensor, y: Tensor, norm: str, eps: float, seed: int) -> bool:
    """Random outputs, probabilities, zero gradients, or Square breaking more than .2 points after the other three."""
    try:
        found = check_model(model, x, y, norm=norm, eps=eps)
        if found.random_outputs or found.probabilities or found.zero_gradients or found.nonfinite_gradients:
            return True
        version = ["apgd-ce", "apgd-t", "fab-t"] if found.classes > 3 else ["apgd-ce", "fab"]
        left = ~autoattack(model, x, y, norm=norm, eps=eps, version=version, seed=seed).success
    except AttackError:
        return True  # it does not run at all
    return (
        bool(square(model, x[left], y[left], norm=norm, eps=eps, queries=3000, seed=seed).success.any())
        if left.any()
        else False
    )
