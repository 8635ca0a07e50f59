"""What the audit concludes from: single findings, and the causes that they may add up to."""

from dataclasses import dataclass
from enum import StrEnum

# Checks that the verdict and the report look for by name.
STILL_FALLING = "accuracy lost in the last quarter of the passes"
LEFT_OUT = "parts left out for want of time"


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
    """One line of evidence.

    Attributes:
        check: what was looked at.
        value: the figure; None where it could not be measured.
        limit: what it is compared with; None for figures that inform only.
        alarm: the figure is on the wrong side of the limit.
        source: where check and limit come from, one line.
        note: what a reader should know.
        decisive: an alarm forbids the verdict sound, for the attacks did not do their work.
    """

    check: str
    value: float | None
    limit: float | None = None
    alarm: bool = False
    source: str = ""
    note: str = ""
    decisive: bool = False

    @classmethod
    def above(
        cls,
        check: str,
        value: float | None,
        limit: float,
        source: str,
        note: str = "",
        *,
        decisive: bool = False,
    ) -> "Finding":
        """A figure that is on the wrong side above its limit."""
        return cls(check, value, limit, value is not None and value > limit, source, note, decisive)
