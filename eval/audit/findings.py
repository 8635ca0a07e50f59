"""What the audit concludes from, what it may conclude, and the file in which studies and reports read it."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, Literal

import msgspec

from eval.core.records import Count, Share, Text
from eval.core.threats import Threat

# Checks that the verdict and the report look for by name.
STILL_FALLING = "accuracy lost in the last quarter of the passes"
LEFT_OUT = "parts left out for want of time"
_LINES = msgspec.Meta(max_length=500)


class Verdict(StrEnum):
    """What the audit says of one model under one threat model."""

    SOUND = "sound"
    MASKED = "masked"
    INCONCLUSIVE = "inconclusive"


class Cause(StrEnum):
    """Mechanisms that hide adversarial images from standard gradient attacks."""

    RANDOM = "randomised output"
    BATCH = "batch-dependent output"
    PROBABILITIES = "probabilities instead of logits"
    DETACHED = "missing gradient (a detached or non-differentiable stage)"
    NONFINITE = "infinite or NaN gradients"
    WRONG = "wrong gradient (a backward pass that is not the function's own)"
    QUANTISED = "piecewise constant output (a quantised stage, zero gradient)"
    SATURATED = "saturated logits (vanishing loss gradient)"
    SHATTERED = "shattered gradients (gradients that do not describe the function)"
    UNEXPLAINED = "gradient attacks lose to gradient-free or transferred ones (mechanism unknown)"


@dataclass(frozen=True)
class Finding:
    """One line of evidence."""

    check: Text = "check"  #: what was looked at
    value: float | None = None  #: the figure; None where it could not be measured
    limit: float | None = None  #: what it is compared with; None for figures that inform only
    alarm: bool = False  #: the figure is on the wrong side of the limit
    source: Text = ""  #: where check and limit come from, one line
    note: Text = ""  #: what a reader should know
    decisive: bool = False  #: an alarm forbids the verdict sound, for the attacks did not do their work

    @classmethod
    def above(
        cls,
        check: str,
        value: float | None,
        limit: float,
        source: str,
        note: str = "",
        decisive: bool = False,
    ) -> "Finding":
        """A figure that is on the wrong side above its limit."""
        return cls(check, value, limit, value is not None and value > limit, source, note, decisive)


class AttackLine(msgspec.Struct, frozen=True):
    """One attack: on how many images it was tried, the indices of those it broke, its accuracies over all images.

    ``claimed_accuracy`` is by the attack's own count, ``accuracy`` by the audit's.
    """

    name: Text = "attack"
    family: Text = ""
    tried: Count = 0
    broken: list[int] = []
    claimed_accuracy: Share | None = None
    accuracy: Share | None = None
    seconds: float = 0.0
    error: Text = ""


class Cost(msgspec.Struct, frozen=True):
    """Seconds, and forward and backward passes counted over images."""

    seconds: float = 0.0
    forwards: float = 0.0
    backwards: float = 0.0


class AuditFile(msgspec.Struct, frozen=True):
    """One audit of one model under one threat model; see `eval.audit.report.AuditReport`."""

    verdict: Verdict
    norm: Literal["Linf", "L2", "L1"]
    eps: float
    headline: Text = ""
    reason: Text = ""
    n: Count = 0
    clean_accuracy: Share | None = None
    robust_accuracy: Share | None = None
    claimed_accuracy: Share | None = None
    ci95: tuple[float, float] | None = None
    attacks: Annotated[tuple[AttackLine, ...], _LINES] = ()
    evidence: Annotated[tuple[Finding, ...], _LINES] = ()
    cost: Cost = Cost()
    model: dict[str, Any] = {}

    @property
    def threat(self) -> Threat:
        """Norm and radius."""
        return Threat(self.norm, self.eps)

    @property
    def alarms(self) -> int:
        """Number of checks whose value is on the wrong side of its limit."""
        return sum(line.alarm for line in self.evidence)
