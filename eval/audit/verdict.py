"""From evidence to verdict: which mechanism, if any, hides adversarial images from standard attacks."""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from eval.audit import settings
from eval.audit.attacks import APGD_CE, IMMUNE, PGD_CE, PGD_FLOORED, SEEN_CE
from eval.audit.findings import LEFT_OUT, STILL_FALLING, Cause, Finding, Verdict
from eval.audit.model_checks import GradientChecks, Outputs
from eval.audit.record import AttackRecord, Family

_OTHERS = (Family.REPAIRED, Family.FREE, Family.TRANSFER)  # follow no gradients of the model's own


class Judgement(NamedTuple):
    """The verdict, its cause where the model is masked, and one sentence why."""

    verdict: Verdict
    cause: Cause | None
    reason: str


@dataclass(frozen=True)
class Gaps:
    """How far attacks differ, in shares of all images."""

    #: accuracy under PGD on the cross-entropy beyond that under the best immune loss, same engine
    loss: float
    floor: float  #: accuracy under the cleverhans protocol beyond that under its own engine with unit steps
    free: float  #: images that only gradient-free, repaired or transferred attacks break
    free_count: int  #: the number of these images
    standard: float  #: accuracy that the best standard attack leaves beyond the worst case of all
    best_free: str  #: the attack that broke most of those images
    squashed: str = ""  #: functions that squash the outputs, where attacks left them out
    claimed: float = 0.0  #: accuracy that PGD on the cross-entropy leaves beyond it

    @property
    def visible(self) -> bool:
        """More than one would grant attacks whose gradients do not describe the function."""
        return self.standard > settings.VISIBLE or self.claimed > settings.VISIBLE_CLAIM

    @property
    def beaten(self) -> bool:
        """Whether gradient attacks lose by more than the noise of finite attacks."""
        return self.free > settings.BLACK_BOX_POINTS and self.free_count >= settings.BLACK_BOX_IMAGES


def only_others(record: AttackRecord) -> Tensor:
    """bool (n,): broken, but by no attack that follows the model's own gradients."""
    return record.broken_in(*_OTHERS) & ~record.broken_in(Family.STANDARD, Family.GRADIENT)


def measure_gaps(record: AttackRecord, squashed: str = "") -> tuple[Gaps, list[Finding]]:
    """Compare the attacks of a record, once all have run."""
    accuracy = {outcome.name: outcome.accuracy for outcome in record.outcomes if not outcome.error}
    clean = 1 - float(record.clean_wrong.double().mean())
    immune = min((accuracy[name] for name in IMMUNE if name in accuracy), default=clean)
    plain = accuracy.get(SEEN_CE, accuracy.get(PGD_CE, clean))
    others, best = only_others(record), ""
    if others.any():
        free = [outcome for outcome in record.outcomes if outcome.family in _OTHERS]
        counts = {outcome.name: int((outcome.broken & others).sum()) for outcome in free}
        best = max(counts, key=lambda name: counts[name])
    standard = min((accuracy[name] for name in (PGD_CE, APGD_CE) if name in accuracy), default=clean)
    gaps = Gaps(
        loss=plain - immune,
        floor=accuracy[PGD_FLOORED] - min(plain, immune) if PGD_FLOORED in accuracy else 0.0,
        free=float(others.double().mean()),
        free_count=int(others.sum()),
        standard=standard - record.accuracy,
        best_free=best,
        squashed=squashed,
        claimed=accuracy.get(PGD_CE, clean) - record.accuracy,
    )
    loss = "accuracy that the cross-entropy leaves beyond margin, DLR, MIFPE and rescaled logits"
    floor = "accuracy that the step floor of cleverhans leaves beyond unit steps"
    free_only = "images that only gradient-free, repaired or transferred attacks break"
    worst = "accuracy that PGD and APGD on the cross-entropy leave beyond the worst case of all"
    limit, points = settings.OVERSTATED, settings.BLACK_BOX_POINTS
    mifpe = "Yu and Xu 2023 (MIFPE); limit ours, over the 6 points that separate PGD from AutoAttack"
    none = "Carlini et al. 2019: none; AutoAttack flags .2 points; ours 2 points, after a longer second try"
    return gaps, [
        Finding.above(loss, gaps.loss, limit, mifpe),
        Finding.above(floor, gaps.floor, limit, "step rule of cleverhans; limit ours, as above"),
        Finding(free_only, gaps.free, points, gaps.beaten, none, gaps.best_free),
        Finding.above(worst, gaps.standard, limit, "limit ours, as above"),
    ]


def last_quarter(record: AttackRecord) -> Finding:
    """How much the last quarter of the budget, in passes of the model, still found."""
    gain = record.late_gain(settings.LAST_QUARTER)
    falling = gain > settings.CONVERGED_POINTS and gain * len(record.x) >= settings.BLACK_BOX_IMAGES
    source = "Carlini et al. 2019: more changes nothing; limit ours"
    return Finding(STILL_FALLING, gain, settings.CONVERGED_POINTS, falling, source, decisive=True)


def could_not_run(record: AttackRecord) -> Finding:
    """Name the attacks that the model refused, with the first error of each kind."""
    failed = [outcome for outcome in record.outcomes if outcome.error]
    errors = dict.fromkeys(outcome.error for outcome in failed)
    note = ", ".join(outcome.name for outcome in failed) + ": " + "; ".join(errors) if failed else ""
    source = "ours: a verdict without them is weaker"
    return Finding("attacks that could not run", float(len(failed)), 0.0, bool(failed), source, note)


def judge(
    record: AttackRecord, outputs: Outputs, gradients: GradientChecks, gaps: Gaps, findings: list[Finding]
) -> Judgement:
    """Apply the rules: causes that the outputs themselves prove first, then gradients, then gaps.

    ``record``: after all attacks; ``findings``: all of the evidence, for the alarms of the sanity checks.
    """
    alarms = {finding.check: _said(finding) for finding in findings if finding.alarm and finding.decisive}
    cause, reason = _cause(outputs, gradients, gaps)
    if cause is not None:
        limits = [said for check, said in alarms.items() if check in (STILL_FALLING, LEFT_OUT)]
        return Judgement(Verdict.MASKED, cause, "; ".join([reason, *limits]))
    correct = int((~record.clean_wrong).sum())
    if correct < settings.LEAST_CORRECT:
        reason = f"only {correct} images are classified correctly; give more images"
    elif alarms:
        reason = "; ".join(alarms.values())
    elif gaps.standard > settings.OVERSTATED:
        reason = "standard attacks fall far behind the worst case, and no mechanism was found"
    else:
        reason = "gradient attacks do what they should, and nothing beats them"
        return Judgement(Verdict.SOUND, None, reason)
    return Judgement(Verdict.INCONCLUSIVE, None, reason)


def _said(finding: Finding) -> str:
    if finding.check == STILL_FALLING:
        return f"still falling: the last quarter of the passes took {100 * (finding.value or 0):.1f} points"
    return f"{finding.check}: {finding.note}" if finding.check == LEFT_OUT else finding.check


def _cause(outputs: Outputs, gradients: GradientChecks, gaps: Gaps) -> tuple[Cause | None, str]:
    if outputs.random:
        return Cause.RANDOM, "the same image gets different outputs; attacks must average over them"
    if outputs.batch_dependent:
        return Cause.BATCH, "an image's output depends on its neighbours; attack images one at a time"
    constant = gradients.piecewise_constant
    if outputs.probabilities and not constant:
        return Cause.PROBABILITIES, "the outputs are probabilities; attack their logarithm"
    if gradients.nonfinite > settings.NONFINITE_SHARE:
        share = f"{gradients.nonfinite:.0%} of the images"
        return Cause.NONFINITE, f"{share} have gradients with infinite or NaN entries"
    if constant:
        return Cause.QUANTISED, "close images get equal logits, and gradients are zero"
    if gradients.zero > settings.ZERO_SHARE:
        return Cause.DETACHED, "the output changes with the image, but no gradient says so"
    unexplained = gradients.unexplained > settings.UNEXPLAINED and gaps.visible
    if unexplained and gradients.correlation < settings.OPPOSED:
        return Cause.WRONG, "gradients point away from where the loss rises: they have been turned round"
    if gradients.wrong and gaps.visible:
        return Cause.WRONG, "the function is smooth, and its gradients are those of another one"
    if outputs.inner_steps and gradients.unexplained > settings.STRAY and gaps.visible:
        own = "the forward pass takes gradient steps of its own, which its gradients do not follow"
        return Cause.WRONG, own
    if gaps.squashed and gaps.standard > settings.OVERSTATED:
        return Cause.SATURATED, f"outputs are squashed by {gaps.squashed}, where the loss has no slope"
    if gaps.loss > settings.OVERSTATED:
        return Cause.SATURATED, "the cross-entropy's gradients die where other losses find adversarial images"
    if gaps.floor > settings.OVERSTATED:
        return Cause.SATURATED, "gradients fall under the step floor of cleverhans, whose attack hardly moves"
    if unexplained:
        return Cause.SHATTERED, "gradients do not describe the function, and attacks that follow them lose"
    if gaps.beaten:
        return Cause.UNEXPLAINED, f"{gaps.best_free} breaks images that no gradient attack does"
    return None, ""
