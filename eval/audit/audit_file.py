"""The file that ``python -m eval.audit`` writes, as studies and reports read it."""

from typing import Annotated, Any, Literal

import msgspec

from eval.audit.findings import Verdict
from eval.core.records import Count, Share, Text
from eval.core.threats import Threat

_LINES = msgspec.Meta(max_length=500)


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


class EvidenceLine(msgspec.Struct, frozen=True):
    """One check; see `eval.audit.findings.Finding`."""

    check: Text = "check"
    value: float | None = None
    limit: float | None = None
    alarm: bool = False
    source: Text = ""
    note: Text = ""


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
    evidence: Annotated[tuple[EvidenceLine, ...], _LINES] = ()
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
