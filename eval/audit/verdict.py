"""From evidence to verdict: which mechanism, if any, hides adversarial images from standard attacks."""

from dataclasses import dataclass

from torch import Tensor

from eval.audit import settings
from eval.audit.attacks import APGD_CE, IMMUNE, PGD_CE, PGD_FLOORED, SEEN_CE
from eval.audit.findings import LEFT_OUT, STILL_FALLING, Cause, Finding, Verdict
from eval.audit.model_checks import GradientChecks, Outputs
from eval.audit.record import AttackRecord, Family


@dataclass(frozen=True)
class Judgement:
    """The verdict, its cause where the model is masked, and one sentence why."""

    verdict: Verdict
    cause: Cause | None
    reason: str


@dataclass(frozen=True)
class Gaps:
    """How far attacks differ, in shares of all images.

    Attributes:
        loss: accuracy under PGD on the cross-entropy beyond that under the best immune loss, same engine.
        floor: accuracy under the cleverhans protocol beyond that under its own engine with unit steps.
        free: images that only gradient-free, repaired or transferred attacks break.
        free_count: the number of these images.
        standard: accuracy that the best standard attack leaves beyond the worst case of all.
        claimed: accuracy that PGD on the cross-entropy leaves beyond it.
        best_free: the attack that broke most of those images.
        squashed: functions that squash the outputs, where attacks left them out.
    """

    loss: float
    floor: float
    free: float
    free_count: int
    standard: float
    best_free: str
    squashed: str = ""
    claimed: float = 0.0

    @property
    def visible(self) -> bool:
        """More than one would grant attacks whose gradients do not describe the function."""
        return self.standard > settings.VISIBLE or self.claimed > settings.VISIBLE_CLAIM


def only_others(record: AttackRecord) -> Tensor:
    """bool (n,): broken, but by no attack that follows the model's own gradients."""
    own = record.broken_in(Family.STANDARD, Family.GRADIENT)
    return record.broken_in(Family.REPAIRED, Family.FREE, Family.TRANSFER) & ~own


def measure_gaps(record: AttackRecord, squashed: str = "") -> tuple[Gaps, list[Finding]]:
    """Compare the attacks of a record, once all have run."""
    accuracy = {outcome.name: outcome.accuracy for outcome in record.outcomes if not outcome.error}
    clean = 1 - float(record.clean_wrong.double().mean())
    immune = min((accuracy[name] for name in IMMUNE if name in accuracy), default=clean)
    plain = accuracy.get(SEEN_CE, accuracy.get(PGD_CE, clean))
    unit = min(plain, immune)
    floor = accuracy[PGD_FLOORED] - unit if PGD_FLOORED in accuracy else 0.0
    others = only_others(record)
    free = float(others.double().mean())
    standard = min((accuracy[name] for name in (PGD_CE, APGD_CE) if name in accuracy), default=clean)
    gaps = Gaps(
        loss=plain - immune,
        floor=floor,
        free=free,
        free_count=int(others.sum()),
        standard=standard - record.accuracy,
        best_free=_best(record, others),
        squashed=squashed,
        claimed=accuracy.get(PGD_CE, clean) - record.accuracy,
    )
    return gaps, _as_findings(gaps, immune)


def last_quarter(record: AttackRecord) -> Finding:
    """How much the last quarter of the budget, in passes of the model, still found."""
    gain = record.late_gain(settings.LAST_QUARTER)
    falling = gain > settings.CONVERGED_POINTS and gain * len(record.x) >= settings.BLACK_BOX_IMAGES
    source = "Carlini et al. 2019: more changes nothing; limit ours"
    return Finding(STILL_FALLING, gain, settings.CONVERGED_POINTS, falling, source, decisive=True)


def could_not_run(record: AttackRecord) -> list[Finding]:
    """Name the attacks that the model refused, with the first error of each kind."""
    failed = [outcome for outcome in record.outcomes if outcome.error]
    errors = dict.fromkeys(outcome.error for outcome in failed)
    note = ", ".join(outcome.name for outcome in failed) + ": " + "; ".join(errors) if failed else ""
    source = "ours: a verdict without them is weaker"
    return [Finding("attacks that could not run", float(len(failed)), 0.0, bool(failed), source, note)]


def _best(record: AttackRecord, others: Tensor) -> str:
    families = (Family.REPAIRED, Family.FREE, Family.TRANSFER)
    counts = {
        outcome.name: int((outcome.broken & others).sum())
        for outcome in record.outcomes
        if outcome.family in families
    }
    return max(counts, key=lambda name: counts[name]) if others.any() else ""


def _as_findings(gaps: Gaps, immune: float) -> list[Finding]:
    limit = settings.OVERSTATED
    return [
        Finding.above(
            "accuracy that the cross-entropy leaves beyond margin, DLR, MIFPE and rescaled logits",
            gaps.loss,
            limit,
            "Yu and Xu 2023 (MIFPE); limit ours, over the 6 points that separate PGD from AutoAttack",
        ),
        Finding.above(
            "accuracy that the step floor of cleverhans leaves beyond unit steps",
            gaps.floor,
            limit,
            "step rule of cleverhans; limit ours, as above",
        ),
        Finding(
            "images that only gradient-free, repaired or transferred attacks break",
            gaps.free,
            settings.BLACK_BOX_POINTS,
            beaten(gaps),
            "Carlini et al. 2019: none; AutoAttack flags .2 points; ours 2 points, after a longer second try",
            gaps.best_free,
        ),
        Finding.above(
            "accuracy that PGD and APGD on the cross-entropy leave beyond the worst case of all",
            gaps.standard,
            limit,
            "limit ours, as above",
        ),
    ]


def beaten(gaps: Gaps) -> bool:
    """Whether gradient attacks lose by more than the noise of finite attacks."""
    return gaps.free > settings.BLACK_BOX_POINTS and gaps.free_count >= settings.BLACK_BOX_IMAGES


def judge(
    record: AttackRecord,
    outputs: Outputs,
    gradients: GradientChecks | None,
    gaps: Gaps,
    findings: list[Finding],
) -> Judgement:
    """Apply the rules: causes that the outputs themselves prove first, then gradients, then gaps.

    Args:
        record: after all attacks.
        outputs: what the outputs are.
        gradients: what the gradients are; None where outputs are random, so that nothing can be differenced.
        gaps: between attacks.
        findings: all of the evidence, for the alarms of the sanity checks.
    """
    failed = [_said(finding) for finding in findings if finding.alarm and finding.decisive]
    cause, reason = _cause(outputs, gradients, gaps)
    if cause is not None:
        limits = [
            _said(finding)
            for finding in findings
            if finding.alarm and finding.check in (STILL_FALLING, LEFT_OUT)
        ]
        return Judgement(Verdict.MASKED, cause, "; ".join([reason, *limits]))
    correct = int((~record.clean_wrong).sum())
    if correct < settings.LEAST_CORRECT:
        return _inconclusive(f"only {correct} images are classified correctly; give more images")
    if failed:
        return _inconclusive("; ".join(failed))
    if gaps.standard > settings.OVERSTATED:
        return _inconclusive("standard attacks fall far behind the worst case, and no mechanism was found")
    return Judgement(Verdict.SOUND, None, "gradient attacks do what they should, and nothing beats them")


def _said(finding: Finding) -> str:
    if finding.check == STILL_FALLING:
        return f"still falling: the last quarter of the passes took {100 * (finding.value or 0):.1f} points"
    return f"{finding.check}: {finding.note}" if finding.check == LEFT_OUT else finding.check


def _inconclusive(reason: str) -> Judgement:
    return Judgement(Verdict.INCONCLUSIVE, None, reason)


def _cause(outputs: Outputs, gradients: GradientChecks | None, gaps: Gaps) -> tuple[Cause | None, str]:
    if outputs.random:
        return Cause.RANDOM, "the same image gets different outputs; attacks must average over them"
    if outputs.batch_dependent:
        return Cause.BATCH, "an image's output depends on its neighbours; attack images one at a time"
    flat = gradients is not None and gradients.zero > settings.ZERO_SHARE
    constant = gradients is not None and gradients.piecewise_constant
    if outputs.probabilities and not constant:
        return Cause.PROBABILITIES, "the outputs are probabilities; attack their logarithm"
    if gradients is None:
        return None, ""
    if gradients.nonfinite > settings.NONFINITE_SHARE:
        return (
            Cause.NONFINITE,
            f"{gradients.nonfinite:.0%} of the images have gradients with infinite or NaN entries",
        )
    if constant:
        return Cause.QUANTISED, "close images get equal logits, and gradients are zero"
    if flat:
        return Cause.DETACHED, "the output changes with the image, but no gradient says so"
    unexplained = gradients.unexplained > settings.UNEXPLAINED and gaps.visible
    if unexplained and gradients.correlation < settings.OPPOSED:
        return Cause.WRONG, "gradients point away from where the loss rises: they have been turned round"
    if gradients.wrong and gaps.visible:
        return Cause.WRONG, "the function is smooth, and its gradients are those of another one"
    if outputs.inner_steps and gradients.unexplained > settings.STRAY and gaps.visible:
        return (
            Cause.WRONG,
            "the forward pass takes gradient steps of its own, which its gradients do not follow",
        )
    if gaps.squashed and gaps.standard > settings.OVERSTATED:
        return Cause.SATURATED, f"outputs are squashed by {gaps.squashed}, where the loss has no slope"
    if gaps.loss > settings.OVERSTATED:
        return Cause.SATURATED, "the cross-entropy's gradients die where other losses find adversarial images"
    if gaps.floor > settings.OVERSTATED:
        return Cause.SATURATED, "gradients fall under the step floor of cleverhans, whose attack hardly moves"
    if unexplained:
        return Cause.SHATTERED, "gradients do not describe the function, and attacks that follow them lose"
    if beaten(gaps):
        return Cause.UNEXPLAINED, f"{gaps.best_free} breaks images that no gradient attack does"
    return None, ""
