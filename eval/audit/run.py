"""The run of an audit: the views of the model, probes, attacks, checks, and what they add up to."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from agents.common.plain_numbers import takes_numbers
from attacks.core.errors import AttackError
from attacks.core.inputs import validate_inputs
from attacks.core.model_state import IN_TRAINING, in_eval_mode, layers_in_training
from attacks.gradient.pgd import pgd
from eval.audit import attack_checks, attacks, wrappers
from eval.audit.callables import AnyCallable, Clock, OutOfTime, own_errors, try_gradient
from eval.audit.findings import LEFT_OUT, Finding
from eval.audit.model_checks import GradientChecks, check_gradients, check_outputs, input_gradients
from eval.audit.record import AttackRecord, Family, logits_of
from eval.audit.report import AuditReport
from eval.audit.settings import FULL, QUICK, Budget
from eval.audit.straight_through import StraightThrough, Unsquashed, WithoutInnerSteps
from eval.audit.verdict import could_not_run, judge, last_quarter, measure_gaps, only_others
from eval.core.formatting import duration

_COMPANIONS = 12  # so that such models cost at most four times as many passes as others
_FIRST = 64  # images on which outputs are compared
_NOISE = (0.0, 0.05, 0.2, 0.5)  # widths of the noise on them


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
        called, sizes = AnyCallable(model, problem.x), budget or (QUICK if quick else FULL)
        views = Views(called, problem.x, problem.y, sizes, clock)
        report = _Audit(views, problem.y, norm, float(eps), seed).run(surrogates or {}, say)
    return replace(report, quick=quick, cost=report.cost | {"seconds": clock.elapsed})


class Views:
    """A model's views, by what its outputs are on the images ``x`` (N, C, H, W).

    Attributes:
        called: the model, its passes counted.
        raw: its outputs in the images' type.
        outputs: what they are.
        squashed: which functions squash them, where these can be left out without changing a decision.
        judge: the model as it decides: each image in its own batch, logits for outputs.
        attacked: the model as attacks should see it: besides, averaged where outputs are random.
        budget: less for models that need many passes where others need one.
        findings: the evidence.
    """

    def __init__(self, called: AnyCallable, x: Tensor, y: Tensor, budget: Budget, clock: Clock) -> None:
        classes = logits_of(wrappers.SameType(called), x).shape[1]
        if int(y.max()) >= classes:
            raise AttackError(
                f"label {int(y.max())} is out of range for a model of {classes} classes; "
                "check that images and model belong together"
            )
        self.called, self.x = wrappers.Counted(called, clock), x
        self.raw: nn.Module = wrappers.SameType(self.called)
        self.classes = logits_of(self.raw, x[:1]).shape[1]
        outputs, self.findings = check_outputs(self.called, x)
        self.outputs = replace(outputs, inner_steps=self._inner_steps())
        costly = outputs.random or outputs.batch_dependent
        self.budget = budget.thrifty() if costly or self.outputs.inner_steps else budget
        self.squashed = "" if costly else self._squashing()
        self.judge = self._one_pass(self.called)
        plain = not (costly or self.squashed or outputs.probabilities)
        self.attacked = self.raw if plain else self._view(self.called)
        calls, source = "how the model had to be called", "informs only"
        self.findings += [Finding(calls, None, source=source, note=note) for note in called.notes]

    def _inner_steps(self) -> bool:
        bare = WithoutInnerSteps(self.called)
        with torch.no_grad(), own_errors() as failed:
            bare(self.x[:2])
        check = "gradients taken inside the forward pass"
        source = "ours: attacked without them as well; informs only"
        self.findings.append(Finding(check, float(bare.taken), source=source))
        return bare.taken > 0 and not failed

    def _squashing(self) -> str:
        bare, names, x = Unsquashed(self.called, self.classes), "", self.x[:_FIRST]
        with torch.no_grad(), own_errors() as failed:
            points = torch.cat([x + width * (torch.rand_like(x) - 0.5) for width in _NOISE]).clamp(0, 1)
            outputs, inner = self.called(points), bare(points)
            top = outputs.topk(2, dim=1).values
            same = (outputs.argmax(1) == inner.argmax(1)) | (top[:, 0] == top[:, 1])
            changed = bool(bare.replaced) and not torch.equal(outputs, inner)
            if changed and bool(inner.isfinite().all()) and bool(same.all()):
                names = ", ".join(sorted(bare.replaced))
        note, source = "; ".join([names, *failed]), "ours: attacked in the scale before them; informs only"
        self.findings.append(Finding("squashed outputs", float(bool(names)), source=source, note=note))
        return names

    def _one_pass(self, model: nn.Module) -> nn.Module:
        if self.outputs.batch_dependent:
            model = wrappers.WithCompanions(model, self.x[:_COMPANIONS], self.called)
        if self.outputs.probabilities:
            model = wrappers.LogProbabilities(model, self.outputs.normalised)
        return wrappers.SameType(model)

    def _view(self, model: wrappers.Wrapper) -> nn.Module:
        if self.squashed:
            return wrappers.SameType(Unsquashed(model, self.classes))
        view = self._one_pass(model)
        return wrappers.Averaged(view, self.budget.passes) if self.outputs.random else view

    def straight_through(self) -> nn.Module | None:
        """The attacked view with straight-through gradients, where that changes anything."""
        view = StraightThrough(self.raw)
        failed = try_gradient(view, self.x[:2])  # a backward pass that fails is no repair
        met = failed or [", ".join(sorted(view.replaced))]
        changed = bool(view.replaced) and not failed
        source = "Athalye et al. 2018: attacked straight through; informs only"
        check = "flat operations and custom backward passes between image and logits"
        self.findings.append(Finding(check, float(changed), source=source, note=met[0]))
        if self.outputs.inner_steps:
            bare = self._view(StraightThrough(WithoutInnerSteps(self.called)))
            return wrappers.BackwardThrough(self.attacked, bare)
        return self._view(StraightThrough(self.called)) if changed else None

    def with_gradient(self, through: nn.Module | None, y: Tensor) -> nn.Module:
        """A view that attacks can climb, for a model without gradients: straight through, else by differences."""
        if through is not None:
            grad = input_gradients(through, self.x[:8], y[:8], "margin")
            if bool(grad.any()) and bool(grad.isfinite().all()):
                return through
        return wrappers.Differenced(self.attacked, attacks.SMOOTHING[-1], self.budget.directions)


class _Audit:
    """One audit in progress: probes, attacks, checks, verdict."""

    def __init__(self, views: Views, y: Tensor, norm: str, eps: float, seed: int) -> None:
        self.views, self.view, self.budget = views, views.attacked, views.budget
        self.findings = views.findings  # one list: later views add to it
        votes, counter = self.budget.votes if views.outputs.random else 1, views.called
        self.record = AttackRecord(
            views.judge, views.x, y, norm, eps, votes=votes, seed=seed, counter=counter
        )
        self.gradients = GradientChecks()

    def run(self, surrogates: Mapping[str, nn.Module], say: Callable[[str], None]) -> AuditReport:
        """Go through all of it."""
        record, views, budget, clock = self.record, self.views, self.budget, self.views.called.clock
        self.surrogates = surrogates
        say("gradients")
        right = (~record.clean_wrong).nonzero().squeeze(1)
        if len(right) and not views.outputs.random:  # else nothing can be differenced
            x, y = record.x[right], record.y[right]
            self.gradients, found = check_gradients(views.called.model, self.view, x, y, **record.ball)
            self.findings += found
        record.run(attacks.PGD_CE, Family.STANDARD, pgd, views.raw, record.rows, steps=budget.steps)
        self.through = views.straight_through()
        self.climbed = [views.with_gradient(self.through, record.y) if self.gradients.missing else self.view]
        left_out = []
        for name, (begins, step) in _STEPS.items():
            seconds = min(clock.elapsed * (1 / begins - 1), clock.left)
            say(f"{name}, about {duration(max(0.0, seconds))} left")
            try:
                with clock.stopping():
                    clock.check()
                    step(self)
            except OutOfTime:
                left_out.append(name)
        with clock.stopping(False):
            record.settle()
        gaps, found = measure_gaps(record, views.squashed)
        note = "stopped in or before: " + ", ".join(left_out) if left_out else ""
        source, parts = "ours: a verdict without them is weaker", float(len(left_out))
        late = Finding(LEFT_OUT, parts, 0.0, bool(left_out), source, note, decisive=True)
        self.findings += [*found, last_quarter(record), could_not_run(record), late]
        return AuditReport(
            **judge(record, views.outputs, self.gradients, gaps, self.findings)._asdict(),
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

    def _standard(self) -> None:
        attacks.standard_attacks(self.record, self.views.raw, self.budget)
        self.findings += attack_checks.attack_indicators(self.record, self.views.raw, self.budget.steps)

    def _gradient(self) -> None:
        attacks.gradient_attacks(self.record, self.views.raw, self.view, self.budget)

    def _repaired(self) -> None:
        missing = self.gradients.missing
        turned = self.gradients.misleading and not missing
        attacks.repaired_attacks(self.record, self.view, self.through, self.budget, turned)
        useful = (each.first for each in self.record.outcomes if each.name.startswith(attacks.STRAIGHT))
        if self.through is not None and not missing and any(useful):
            self.climbed.append(self.through)  # followed again where attacks are longer

    def _transfer(self) -> None:
        place, wrong = (self.record, self.view), self.gradients.misleading
        attacks.given_surrogates(*place, self.surrogates, self.budget)
        if wrong:
            attacks.difference_attacks(*place, self.budget, wrong, self.gradients.piecewise_constant)
        self.climbed += attacks.distilled_attacks(*place, self.budget, wrong)

    def _free(self) -> None:
        attacks.free_attacks(self.record, self.view, self.budget)
        if not self.gradients.misleading:
            attacks.difference_attacks(self.record, self.view, self.budget, misleading=False)

    def _longer(self) -> None:
        lost = only_others(self.record).nonzero().squeeze(1)
        if len(lost) and not self.gradients.misleading:
            attacks.second_try(self.record, self.view, self.budget, lost)
        self.findings.append(attack_checks.longer_runs(self.record, self.view, self.climbed, self.budget))
        self.findings.append(attack_checks.single_step(self.record))

    def _check(self) -> None:
        self.findings += attack_checks.growing_radius(self.record, self.climbed[0], self.budget)
        if not (self.views.outputs.random or self.views.outputs.batch_dependent):
            self.findings.append(attack_checks.binarization_test(self.record, self.views.raw, self.budget)[1])


# What is done when, and where a quick audit of an honest convolutional network is then, as a share of its time.
_STEPS: dict[str, tuple[float, Callable[[_Audit], None]]] = {
    "standard attacks": (0.06, _Audit._standard),
    "gradient attacks": (0.12, _Audit._gradient),
    "repaired gradients": (0.35, _Audit._repaired),
    "transfer": (0.5, _Audit._transfer),
    "gradient-free attacks": (0.65, _Audit._free),
    "longer attacks": (0.85, _Audit._longer),
    "sanity checks": (0.9, _Audit._check),
}
