"""The run of an audit: probes, attacks, checks, and what they add up to."""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from attacks.core.errors import AttackError
from attacks.core.inputs import validate_inputs
from eval.audit import attacks as audit_attacks
from eval.audit import settings
from eval.audit.attack_checks import attack_indicators, growing_radius, longer_runs, single_step
from eval.audit.binarization import binarization_test
from eval.audit.callables import AnyCallable, callable_findings
from eval.audit.findings import Finding
from eval.audit.model_checks import GradientChecks, Outputs, check_gradients, check_outputs, input_gradients
from eval.audit.record import AttackRecord, logits_of
from eval.audit.report import AuditReport
from eval.audit.settings import FULL, QUICK, Budget
from eval.audit.straight_through import StraightThrough
from eval.audit.verdict import Gaps, could_not_run, judge, measure_gaps, only_others
from eval.audit.wrappers import Averaged, Counted, Differenced, LogProbabilities, SameType, WithCompanions

_COMPANIONS = 15


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
    say: Callable[[str], None] = lambda text: None,
) -> AuditReport:
    """Try to show that the model's resistance is an artefact, and say what was found.

    The model and the images are all that the audit knows. Its mode (training or not) is left as it is.

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
        say: told what is being done.

    Returns:
        The verdict with its cause, the corrected robust accuracy, the evidence and the cost.

    Raises:
        AttackError: wrong images, labels, norm or radius, or outputs that are not logits (N, K).
    """
    problem = validate_inputs(x, y, norm=norm, eps=eps)  # checked before the model sees anything
    start = time.perf_counter()
    budget = budget or (QUICK if quick else FULL)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        run = _Audit(
            AnyCallable(model, problem.x),
            problem.x,
            problem.y,
            norm,
            float(eps),
            surrogates or {},
            seed,
            budget,
            say,
        )
        report = run.run()
    return replace(report, quick=quick, cost=report.cost | {"seconds": time.perf_counter() - start})


class _Audit:
    """One audit in progress: probes, attacks, checks, verdict."""

    def __init__(
        self,
        called: AnyCallable,
        x: Tensor,
        y: Tensor,
        norm: str,
        eps: float,
        surrogates: Mapping[str, nn.Module],
        seed: int,
        budget: Budget,
        say: Callable[[str], None],
    ) -> None:
        self.called = Counted(called)
        self.raw = SameType(self.called)
        self.x, self.y, self.norm, self.eps = x, y, norm, eps
        self.surrogates, self.seed, self.say = surrogates, seed, say
        logits = logits_of(self.raw, x)
        if int(y.max()) >= logits.shape[1]:
            raise AttackError(
                f"label {int(y.max())} is out of range for a model of {logits.shape[1]} classes; "
                "check that images and model belong together"
            )
        self.outputs, self.findings = check_outputs(self.called, x)
        self.findings += callable_findings(called)
        costly = self.outputs.random or self.outputs.batch_dependent
        self.budget = budget.thrifty() if costly else budget
        repaired = costly or self.outputs.probabilities
        self.view = self._view(self.called, self.outputs) if repaired else self.raw
        votes = self.budget.votes if self.outputs.random else 1
        self.record = AttackRecord(
            self._one_pass(self.called, self.outputs), x, y, norm, eps, votes=votes, seed=seed
        )

    def _one_pass(self, model: nn.Module, outputs: Outputs) -> nn.Module:
        """The model as it decides: each image in its own batch, logits for outputs."""
        if outputs.batch_dependent:
            model = WithCompanions(model, self.x[:_COMPANIONS], self.called)
        return SameType(LogProbabilities(model) if outputs.probabilities else model)

    def _view(self, model: nn.Module, outputs: Outputs) -> nn.Module:
        """The model as attacks should see it."""
        model = self._one_pass(model, outputs)
        return Averaged(model, self.budget.passes) if outputs.random else model

    def run(self) -> AuditReport:
        """Go through all of it."""
        gradients = self._probe_gradients()
        through, missing = self._attack(gradients)
        gaps = self._check(through, missing)
        self.findings += could_not_run(self.record)
        judgement = judge(self.record, self.outputs, gradients, gaps, self.findings)
        return AuditReport(
            verdict=judgement.verdict,
            cause=judgement.cause,
            reason=judgement.reason,
            norm=self.norm,
            eps=self.eps,
            clean_accuracy=1 - float(self.record.clean_wrong.double().mean()),
            robust_accuracy=self.record.accuracy,
            robust=~self.record.broken,
            broken_by=tuple(self.record.broken_by),
            attacks=tuple(self.record.outcomes),
            evidence=tuple(self.findings),
            cost={"forwards": self.called.forwards, "backwards": self.called.backwards},
        )

    def _probe_gradients(self) -> GradientChecks | None:
        if self.outputs.random:
            return None
        self.say("gradients")
        right = (~self.record.clean_wrong).nonzero().squeeze(1)
        if not len(right):
            return None
        gradients, found = check_gradients(
            SameType(self.called.model),
            self.view,
            self.x[right],
            self.y[right],
            self.norm,
            self.eps,
            self.seed,
        )
        self.findings += found
        return gradients

    def _attack(self, gradients: GradientChecks | None) -> tuple[nn.Module | None, bool]:
        record, budget = self.record, self.budget
        self.say("standard attacks")
        audit_attacks.standard_attacks(record, self.raw, budget)
        self.findings += attack_indicators(record, self.raw, budget.steps)
        self.say("gradient attacks")
        audit_attacks.gradient_attacks(record, self.raw, self.view, budget)
        changed, operations = audit_attacks.straight_through_changes(self.raw, self.x)
        through = self._view(StraightThrough(self.called), self.outputs) if changed else None
        self.findings.append(
            Finding(
                "flat operations between image and logits",
                float(changed),
                source="Athalye et al. 2018: attacked straight through; informs only",
                note=operations,
            )
        )
        missing = gradients is not None and gradients.zero > settings.ZERO_SHARE
        self.say("repaired gradients")
        audit_attacks.repaired_attacks(record, self.view, through, budget)
        self.say("gradient-free attacks")
        audit_attacks.free_attacks(record, self.view, budget, missing)
        self.say("transfer")
        audit_attacks.transfer_attacks(record, self.view, self.surrogates, budget)
        lost = only_others(record).nonzero().squeeze(1)
        if len(lost) and not missing:
            self.say("a second, longer try of the gradient attacks")
            audit_attacks.second_try(record, self.view, budget, lost)
        return through, missing

    def _with_gradient(self, through: nn.Module | None) -> nn.Module:
        """A view that attacks can climb, for a model without gradients: straight through, else by differences."""
        if through is not None and bool(input_gradients(through, self.x[:8], self.y[:8], "margin").any()):
            return through
        return Differenced(self.view, audit_attacks.SMOOTHING[-1], self.budget.directions)

    def _check(self, through: nn.Module | None, missing: bool) -> Gaps:
        self.say("sanity checks")
        record, budget = self.record, self.budget
        best = self._with_gradient(through) if missing else self.view
        self.findings += [longer_runs(record, best, budget), single_step(record)]
        self.findings += growing_radius(record, best, budget)
        self.say("binarization test")
        if not (self.outputs.random or self.outputs.batch_dependent):
            _, found = binarization_test(
                record,
                self.raw,
                images=budget.binarization_images,
                inner=budget.inner_points,
                steps=budget.steps,
                seed=self.seed,
            )
            self.findings.append(found)
        gaps, found_gaps = measure_gaps(record)
        self.findings += found_gaps
        return gaps
