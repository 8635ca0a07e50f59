"""The evidence behind a verdict: the files of ``python -m eval.audit``, read again."""

from dataclasses import dataclass

from envs.errors import InputError
from eval.audit.findings import Verdict
from eval.core.threats import Threat
from eval.report.safe_folder import Folder
from eval.report.schema import Fields, finite

_MOST_LINES = 500
_NORMS = ("Linf", "L2", "L1")


@dataclass(frozen=True)
class Attack:
    """One attack of an audit: on how many images it was tried, and what it broke.

    ``claims`` and ``judged`` are accuracies over all images, None where it was tried on survivors alone.
    """

    name: str
    family: str
    tried: int
    broken: int
    claims: float | None
    judged: float | None
    seconds: float
    error: str


@dataclass(frozen=True)
class Evidence:
    """One check of an audit: figure, limit, source."""

    check: str
    value: float | None
    limit: float | None
    alarm: bool
    source: str
    note: str


@dataclass(frozen=True)
class Audit:
    """One audit of one model under one threat model.

    Attributes:
        file: relative path of the JSON.
        threat: norm and radius, as text.
        verdict: sound, masked or inconclusive.
        headline: verdict and cause.
        reason: one sentence.
        n: images.
        clean: clean accuracy.
        robust: corrected robust accuracy; low, high: its 95 % interval.
        claimed: accuracy that PGD on the cross-entropy claims.
        attacks: every attack.
        evidence: every check.
        seconds: the audit took.
    """

    file: str
    threat: str
    verdict: str
    headline: str
    reason: str
    n: int
    clean: float | None
    robust: float | None
    low: float | None
    high: float | None
    claimed: float | None
    attacks: tuple[Attack, ...]
    evidence: tuple[Evidence, ...]
    seconds: float

    @property
    def alarms(self) -> int:
        """Number of checks whose figure is on the wrong side of its limit."""
        return sum(line.alarm for line in self.evidence)


def read_audits(folder: Folder, results: str) -> tuple[list[Audit], list[str]]:
    """Return the audits in the folder ``results``, and one line for each that cannot be read."""
    audits, problems = [], []
    for file in folder.names(results, ".json"):
        if file.rpartition("/")[2].startswith("audit-"):
            try:
                audits.append(read_audit(folder, file))
            except InputError as error:
                problems.append(str(error))
    return audits, problems


def read_audit(folder: Folder, file: str) -> Audit:
    """Read one audit.

    Raises:
        InputError: the file is damaged or no audit.
    """
    fields = Fields(folder.json(file), file)
    verdict, norm, eps = fields.text("verdict"), fields.text("norm"), fields.number("eps")
    if verdict not in [str(known) for known in Verdict]:
        raise fields.error("verdict", "sound, masked or inconclusive")
    if norm not in _NORMS or eps is None:
        raise fields.error("norm", f"one of {', '.join(_NORMS)}, with an eps")
    n = int(fields.number("n") or 0)
    bounds = [finite(bound) for bound in fields.items("ci95", 2)]
    low, high = bounds if len(bounds) == 2 else (None, None)
    cost = Fields(fields.mapping("cost"), f"{file}: cost")
    return Audit(
        file=file,
        threat=str(Threat(norm, eps)),
        verdict=verdict,
        headline=fields.text("headline", verdict),
        reason=fields.text("reason"),
        n=n,
        clean=fields.share("clean_accuracy"),
        robust=fields.share("robust_accuracy"),
        low=low,
        high=high,
        claimed=fields.share("claimed_accuracy"),
        attacks=tuple(_attack(item, n) for item in fields.objects("attacks", _MOST_LINES)),
        evidence=tuple(_evidence(item) for item in fields.objects("evidence", _MOST_LINES)),
        seconds=cost.number("seconds") or 0.0,
    )


def _attack(fields: Fields, n: int) -> Attack:
    tried = int(fields.number("tried") or 0)
    every = n > 0 and tried == n  # shares of the survivors alone would read as accuracies
    return Attack(
        name=fields.text("name", "attack"),
        family=fields.text("family"),
        tried=tried,
        broken=len(fields.items("broken", 10**6)),
        claims=fields.share("claimed_accuracy") if every else None,
        judged=fields.share("accuracy") if every else None,
        seconds=fields.number("seconds") or 0.0,
        error=fields.text("error"),
    )


def _evidence(fields: Fields) -> Evidence:
    return Evidence(
        check=fields.text("check", "check"),
        value=fields.number("value"),
        limit=fields.number("limit"),
        alarm=fields.value.get("alarm") is True,
        source=fields.text("source"),
        note=fields.text("note"),
    )
