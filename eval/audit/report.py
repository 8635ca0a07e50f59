"""What an audit returns: verdict, corrected accuracy, evidence and cost, as an object, JSON and tables."""

from dataclasses import asdict, dataclass, field
from typing import Any

from rich.table import Table
from torch import Tensor

from envs.files import nulled
from eval.audit.attacks import PGD_CE
from eval.audit.findings import STILL_FALLING, Cause, Finding, Verdict
from eval.audit.record import Outcome
from eval.core.formatting import duration, html_tables, make_table, percent, with_interval
from eval.core.stats import Interval, wilson
from eval.core.threats import Threat


@dataclass(frozen=True)
class AuditReport:
    """The answer for one model and one threat model."""

    verdict: Verdict  #: sound, masked or inconclusive
    cause: Cause | None  #: the mechanism that masks, or None
    reason: str  #: one sentence: why this verdict
    norm: str  #: of the threat model
    eps: float  #: its radius
    clean_accuracy: float  #: share of the images classified correctly unattacked
    robust_accuracy: float  #: corrected: share that none of all attacks broke
    robust: Tensor  #: (n,) bool, the images that none broke
    #: per image the first attack that broke it, "clean" for a clean error, None for a survivor
    broken_by: tuple[str | None, ...]
    attacks: tuple[Outcome, ...]  #: every attack with its outcome
    evidence: tuple[Finding, ...]  #: every check with figure, limit and source
    #: "seconds", and "forwards" and "backwards" in images
    cost: dict[str, float] = field(default_factory=dict)
    quick: bool = True  #: which attacks
    #: (n, C, H, W), per broken image the one that broke it, else the image itself
    adversarial: Tensor | None = None

    def __str__(self) -> str:
        limit = "still falling, at most " if self.still_falling else ""
        accuracy = f"robust accuracy {limit}{percent(self.robust_accuracy)}"
        return f"{Threat(self.norm, self.eps)}: {self.headline}; {accuracy}"

    @property
    def headline(self) -> str:
        """``sound``, ``masked: CAUSE`` or ``inconclusive: WHY``."""
        why = self.cause or (self.reason if self.verdict is Verdict.INCONCLUSIVE else "")
        return f"{self.verdict}: {why}" if why else str(self.verdict)

    @property
    def n(self) -> int:
        """Number of images."""
        return len(self.robust)

    @property
    def claimed_accuracy(self) -> float:
        """Accuracy that PGD on the cross-entropy claims, on the model as it is: what many papers would report."""
        return next(outcome.claimed for outcome in self.attacks if outcome.name == PGD_CE)

    @property
    def still_falling(self) -> bool:
        """The last quarter of the passes still broke images: the corrected accuracy is an upper bound."""
        return any(finding.alarm and finding.check == STILL_FALLING for finding in self.evidence)

    @property
    def interval(self) -> Interval:
        """Wilson's 95 % interval of the corrected robust accuracy."""
        return wilson(int(self.robust.sum()), self.n)

    def to_json(self) -> dict[str, Any]:
        """Return everything but the adversarial images, as plain JSON."""
        return {
            "verdict": str(self.verdict),
            "cause": None if self.cause is None else self.cause.name.lower(),
            "headline": self.headline,
            "reason": self.reason,
            "norm": self.norm,
            "eps": self.eps,
            "quick": self.quick,
            "n": self.n,
            "clean_accuracy": self.clean_accuracy,
            "robust_accuracy": self.robust_accuracy,
            "claimed_accuracy": self.claimed_accuracy,
            "ci95": list(self.interval),
            "still_falling": self.still_falling,
            "attacks": [_outcome(outcome) for outcome in self.attacks],
            "evidence": [nulled(asdict(finding)) for finding in self.evidence],
            "samples": {"robust": self.robust.tolist(), "broken_by": list(self.broken_by)},
            "cost": self.cost,
        }

    def _repr_html_(self) -> str:
        """Return the tables for notebooks, under the verdict."""
        return html_tables(self.tables(self.headline))

    def tables(self, name: str = "") -> list[Table]:
        """Return the tables of attacks and of evidence."""
        numbers = ("tried", "breaks", "claims", "judged", "first to break", "time")
        title = f"{name}: attacks, {Threat(self.norm, self.eps)}, n = {self.n}"
        attacks = make_table(title, ("attack", "needs"), numbers)
        for outcome in self.attacks:
            tried, breaks = int(outcome.tried.sum()), int((outcome.broken & outcome.tried).sum())
            every = tried == self.n  # shares of the survivors alone would read as accuracies
            shares = (percent(share) if every else "" for share in (outcome.claimed, outcome.accuracy))
            cells = ("failed", "", "") if outcome.error else (str(breaks), *shares)
            first, time = str(self.broken_by.count(outcome.name)), duration(outcome.seconds)
            attacks.add_row(outcome.name, str(outcome.family), str(tried), *cells, first, time)
        attacks.add_section()
        worst = with_interval(self.robust_accuracy, self.interval)
        time = duration(self.cost.get("seconds", 0))
        attacks.add_row("worst case per image", "", "", "", "", worst, "", time, style="bold")
        evidence = make_table(f"{name}: evidence", ("check", ""), ("value", "limit"))
        evidence.add_column("source", overflow="fold")
        for finding in self.evidence:
            source = f"{finding.source} ({finding.note})" if finding.note else finding.source
            figures = (
                "-" if figure is None else f"{figure:.4g}" for figure in (finding.value, finding.limit)
            )
            mark, style = ("!", "bold red") if finding.alarm else ("", "")
            evidence.add_row(finding.check, mark, *figures, source, style=style)
        return [attacks, evidence]


def _outcome(outcome: Outcome) -> dict[str, Any]:
    return {
        "name": outcome.name,
        "family": str(outcome.family),
        "tried": int(outcome.tried.sum()),
        "claimed_accuracy": outcome.claimed,
        "accuracy": outcome.accuracy,
        "broken": outcome.broken.nonzero().squeeze(1).tolist(),
        "seconds": outcome.seconds,
        "error": outcome.error,
    }
