"""The run of an audit: probes, attacks, checks, and what they add up to."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from agents.common.plain_numbers import takes_numbers
from attacks.core.errors import AttackError
from attacks.core.inputs import validate_inputs
from attacks.core.model import in_eval_mode
from attacks.core.sharing import IN_TRAINING, layers_in_training
from eval.audit import attacks as audit_attacks
from eval.audit.attack_checks import attack_indicators, growing_radius, longer_runs, single_step
from eval.audit.binarization import binarization_test
from eval.audit.callables import AnyCallable, callable_findings
from eval.audit.clock import Clock, OutOfTime
from eval.audit.findings import LEFT_OUT, Finding
from eval.audit.model_checks import GradientChecks, check_gradients
from eval.audit.record import AttackRecord, logits_of
from eval.audit.report import AuditReport
from eval.audit.settings import FULL, QUICK, Budget
from eval.audit.verdict import could_not_run, judge, last_quarter, measure_gaps, only_others
from eval.audit.views import Views
from eval.audit.wrappers import SameType
from eval.core.formatting import duration

# Where a quick audit of an honest convolutional network is when a step begins, as a share of its time.
_BEGINS = {
    "standard attacks": 0.06,
    "gradient attacks": 0.12,
    "repaired gradients": 0.35,
    "transfer": 0.5,
    "gradient-free attacks": 0.65,
    "longer attacks": 0.85,
    "sanity checks": 0.9,
}


@takes_numbers
def audit(
    model: Callable[[Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    *,
    norm: str,
    eps: float,
    quick: bool = True,
    surrogates: Mapping[str, nn.Module] | None = None,
    seed: int = 0,
    budget: Budget | None = None,
    minutes: float | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> AuditReport:
    """Try to show that the model's resistance is an artefact, and say what was found.

    The model and the images are all that the audit knows. It is judged in eval mode, as by every attack, and left in
    its own; a warning says so where layers were in training mode.

    Args:
        model: any callable from images (n, C, H, W) in [0, 1] to logits (n, K). Random and batch-dependent outputs,
            fixed batch sizes, other types and missing gradients are handled; it is shown nothing outside [0, 1].
        x: images, float32 in [0, 1], (N, C, H, W); 100 or more for a verdict worth reporting.
        y: labels, (N,) int64.
        norm: "Linf", "L2" or "L1".
        eps: radius in units of pixels.
        quick: the quick battery, minutes on a CPU for a small network; False the full one, for papers.
        surrogates: other models by name, whose adversarial images are tried: a supervised twin, another seed, an
            adversarially trained one.
        seed: of every random draw.
        budget: sizes of attacks and checks, in place of those that ``quick`` chooses.
        minutes: after which attacks and checks stop; what was left out is in the evidence, and forbids "sound".
            The first probes and PGD on the cross-entropy are made in any case.
        say: told what is being done, with a rough estimate of the time left.

    Returns:
        The verdict with its cause, the corrected robust accuracy, the evidence and the cost.

    Raises:
        AttackError: wrong images, labels, norm, radius or minutes, or outputs that are not logits (N, K).
    """
    problem = validate_inputs(x, y, norm=norm, eps=eps)  # checked before the model sees anything
    if minutes is not None and not minutes > 0:
        raise AttackError(f"minutes must be above 0, got {minutes}; leave them out for a complete audit")
    clock = Clock(minutes)
    if kinds := layers_in_training(model):
        warnings.warn(IN_TRAINING.format(", ".join(kinds)), stacklevel=3)
    with torch.random.fork_rng(), in_eval_mode(model):
        torch.manual_seed(seed)
        called = AnyCallable(model, problem.x)
        run = _Audit(
            called, problem.x, problem.y, norm, float(eps), seed, budget or (QUICK if quick else FULL), clock
        )
        run.findings += callable_findings(called)
        report = run.run(surrogates or {}, say)
    return replace(report, quick=quick, cost=report.cost | {"seconds": clock.elapsed})


def _useful(record: AttackRecord) -> bool:
    return any(each.first and each.name.startswith(audit_attacks.STRAIGHT) for each in record.outcomes)


class _Audit:
    """One audit in progress: probes, attacks, checks, verdict."""

    def __init__(
        self,
        called: AnyCallable,
        x: Tensor,
        y: Tensor,
        norm: str,
        eps: float,
        seed: int,
        budget: Budget,
        clock: Clock,
    ) -> None:
        logits = logits_of(SameType(called), x)
        if int(y.max()) >= logits.shape[1]:
            raise AttackError(
                f"label {int(y.max())} is out of range for a model of {logits.shape[1]} classes; "
                "check that images and model belong together"
            )
        self.views = views = Views(called, x, budget, clock)
        self.raw, self.view, self.budget, self.findings = (
            views.raw,
            views.attacked,
            views.budget,
            views.findings,
        )
        self.clock, self.left_out = clock, list[str]()
        votes = self.budget.votes if views.outputs.random else 1
        self.record = AttackRecord(views.judge, x, y, norm, eps, votes=votes, seed=seed, counter=views.called)

    def run(self, surrogates: Mapping[str, nn.Module], say: Callable[[str], None]) -> AuditReport:
        """Go through all of it."""
        record, budget, view, views = self.record, self.budget, self.view, self.views
        say("gradients")
        gradients = self._probe_gradients()
        audit_attacks.claimed(record, self.raw, budget)
        through = views.straight_through()
        missing = gradients is not None and gradients.missing
        wrong = gradients is not None and gradients.misleading
        constant = gradients is not None and gradients.piecewise_constant
        best = views.with_gradient(through, record.y) if missing else view
        crossed: list[nn.Module] = []
        step = partial(self._step, say)
        step("standard attacks", self._standard)
        step("gradient attacks", lambda: audit_attacks.gradient_attacks(record, self.raw, view, budget))
        turned = wrong and not missing
        step(
            "repaired gradients",
            lambda: audit_attacks.repaired_attacks(record, view, through, budget, turned),
        )
        if through is not None and not missing and _useful(record):
            crossed.append(through)  # followed again where attacks are longer
        step("transfer", lambda: self._transfer(surrogates, wrong, constant, crossed))
        step("gradient-free attacks", lambda: self._free(wrong))
        step("longer attacks", lambda: self._longer(best, wrong, crossed))
        step("sanity checks", lambda: self._check(best))
        with self.clock.stopping(False):
            record.settle()
        gaps, found = measure_gaps(record, views.squashed)
        self.findings += [*found, last_quarter(record), *could_not_run(record), self._time()]
        judgement = judge(record, views.outputs, gradients, gaps, self.findings)
        return AuditReport(
            verdict=judgement.verdict,
            cause=judgement.cause,
            reason=judgement.reason,
            norm=record.norm,
            eps=record.eps,
            clean_accuracy=1 - float(record.clean_wrong.double().mean()),
            robust_accuracy=record.accuracy,
            robust=~record.broken,
            broken_by=tuple(record.broken_by),
            attacks=tuple(record.outcomes),
            evidence=tuple(self.findings),
            cost={"forwards": views.called.forwards, "backwards": views.called.backwards},
            adversarial=record.points,
        )

    def _step(self, say: Callable[[str], None], name: str, work: Callable[[], None]) -> None:
        """Do ``work`` while there is time, and note what was left out."""
        begins = _BEGINS[name]
        say(
            f"{name}, about {duration(max(0.0, min(self.clock.elapsed * (1 / begins - 1), self.clock.left)))} left"
        )
        try:
            with self.clock.stopping():
                self.clock.check()
                work()
        except OutOfTime:
            self.left_out.append(name)

    def _time(self) -> Finding:
        note = "stopped in or before: " + ", ".join(self.left_out) if self.left_out else ""
        source = "ours: a verdict without them is weaker"
        return Finding(LEFT_OUT, float(len(self.left_out)), 0.0, bool(note), source, note, decisive=True)

    def _probe_gradients(self) -> GradientChecks | None:
        record = self.record
        right = (~record.clean_wrong).nonzero().squeeze(1)
        if self.views.outputs.random or not len(right):
            return None
        gradients, found = check_gradients(
            self.views.called.model,
            self.view,
            record.x[right],
            record.y[right],
            record.norm,
            record.eps,
            record.seed,
        )
        self.findings += found
        return gradients

    def _standard(self) -> None:
        audit_attacks.standard_attacks(self.record, self.raw, self.budget)
        self.findings += attack_indicators(self.record, self.raw, self.budget.steps)

    def _transfer(
        self,
        surrogates: Mapping[str, nn.Module],
        wrong: bool,
        constant: bool,
        crossed: list[nn.Module],
    ) -> None:
        audit_attacks.given_surrogates(self.record, self.view, surrogates, self.budget)
        if wrong:
            audit_attacks.difference_attacks(self.record, self.view, self.budget, wrong, constant)
        crossed += audit_attacks.distilled_attacks(self.record, self.view, self.budget, wrong)

    def _free(self, wrong: bool) -> None:
        audit_attacks.free_attacks(self.record, self.view, self.budget)
        if not wrong:
            audit_attacks.difference_attacks(self.record, self.view, self.budget, wrong)

    def _longer(self, best: nn.Module, wrong: bool, crossed: list[nn.Module]) -> None:
        lost = only_others(self.record).nonzero().squeeze(1)
        if len(lost) and not wrong:
            audit_attacks.second_try(self.record, self.view, self.budget, lost)
        self.findings += [
            longer_runs(self.record, self.view, [best, *crossed], self.budget),
            single_step(self.record),
        ]

    def _check(self, best: nn.Module) -> None:
        record, budget, outputs = self.record, self.budget, self.views.outputs
        self.findings += growing_radius(record, best, budget)
        if not (outputs.random or outputs.batch_dependent):
            _, found = binarization_test(
                record,
                self.raw,
                images=budget.binarization_images,
                inner=budget.inner_points,
                steps=budget.steps,
                seed=record.seed,
            )
            self.findings.append(found)
