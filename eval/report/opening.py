"""The opening of the page: the accuracy that the paper's protocol reports, and what is left of it."""

from collections.abc import Sequence
from typing import NamedTuple

from eval.core.formatting import percent
from eval.core.stats import known_mean
from eval.report.cell_format import WORST_FIRST
from eval.report.model import Model
from eval.report.overview import audits_by_threat, by_group, robust
from eval.study.results.record import Measured, Row, StudyRecord, Value, measured

PAPER = "the paper's protocol"
PGD = "PGD on the cross-entropy"  # where nothing was attacked by the paper's protocol
_PROTOCOLS = ("pgd-paper", "pgd-cleverhans")  # the first of them that the study has
_SMALL = 0.02  # a difference that a few images make


class Gap(NamedTuple):
    """One row of the picture: accuracies of a regime under a threat model.

    ``reported`` by the protocol, ``left`` by all attacks, with its interval; ``clean``: unattacked.
    """

    regime: str
    threat: str
    reported: float
    left: Measured
    clean: float | None

    @property
    def remaining(self) -> float:
        """The value of ``left``, a share."""
        return float(self.left.value or 0.0)

    @property
    def size(self) -> float:
        """The share of images that is reported and not left."""
        return self.reported - self.remaining


class Opening(NamedTuple):
    """The picture's rows, who reports them, and the sentences below it."""

    gaps: Sequence[Gap]
    protocol: str
    sentences: Sequence[str]


def make_opening(study: StudyRecord, models: Sequence[Model], gaps: Sequence[Gap]) -> Opening:
    """Return the opening; ``gaps`` are those of a run, empty for a study, which has them in its tables."""
    gaps, protocol = list(gaps) or study_gaps(study), PAPER
    if not gaps:
        gaps, protocol = _audit_gaps(models), PGD
    about_gaps = _gap_sentence(gaps, protocol) if gaps else ""
    sentences = (_clean_sentence(models), about_gaps, _audit_sentence(study, models))
    return Opening(gaps, protocol, list(filter(None, sentences)))


def study_gaps(study: StudyRecord) -> list[Gap]:
    """Return one row per threat model and regime from the tables of PGD and of the worst case."""
    rows = study.rows("pgd")
    protocol = next((name for name in _PROTOCOLS if any(row.get(name) is not None for row in rows)), "")
    worst = {_row_of(row): measured(row.get("worst")) for row in study.rows("autoattack")}
    several = [key for key in ("dataset", "network") if len({str(row.get(key)) for row in rows}) > 1]
    gaps = []
    for row in rows:
        name = " · ".join(str(row.get(key)) for key in (*several, "regime"))
        reported, left = measured(row.get(protocol)).value, worst.get(_row_of(row), Measured())
        clean = measured(row.get("clean")).value
        if isinstance(reported, float) and isinstance(left.value, float):
            known = clean if isinstance(clean, float) else None
            gaps.append(Gap(name, str(row.get("threat")), reported, left, known))
    return gaps


def _row_of(row: Row) -> tuple[Value, ...]:
    return tuple(row.get(key) for key in ("dataset", "network", "threat", "regime"))


def _audit_gaps(models: Sequence[Model]) -> list[Gap]:
    gaps = []
    for members in by_group(models).values():
        for threat, audits in audits_by_threat(members).items():
            reported, left = known_mean(audit.claimed_accuracy for audit in audits), robust(audits)
            if reported is not None and left.value is not None:
                clean = known_mean(audit.clean_accuracy for audit in audits)
                gaps.append(Gap(members[0].cell.title, threat, reported, left, clean))
    return gaps


def _clean_sentence(models: Sequence[Model]) -> str:
    found = (known_mean(m.summary.test_accuracy for m in members) for members in by_group(models).values())
    shares = [share for share in found if share]
    if not shares:
        return ""
    low, high = percent(min(shares)), percent(max(shares))
    span = low if low == high else f"{low.removesuffix(' %')} to {high}"
    return f"Unattacked, {span} of the test images are classified correctly."


def _gap_sentence(gaps: Sequence[Gap], protocol: str) -> str:
    gap = max(gaps, key=lambda item: item.size)
    if gap.size <= _SMALL:
        points = f"{100 * max(gap.size, 0):.1f} points"
        return f"What {protocol} reports is what all attacks leave, up to {points}."
    known = gap.left.low is not None and gap.left.high is not None
    bounds = f" (95 %: {percent(gap.left.low)} to {percent(gap.left.high)})" if known else ""
    return (
        f"{'Most is overstated for ' if len(gaps) > 1 else 'For '}{gap.regime} under {gap.threat}: {protocol} reports "
        f"{percent(gap.reported)}, all attacks together leave {percent(gap.remaining)}{bounds}."
    )


def _audit_sentence(study: StudyRecord, models: Sequence[Model]) -> str:
    verdicts = [str(audit.verdict) for model in models for audit in model.audits]
    if not verdicts:  # where the runs are not at hand, the study's own table has them
        headlines = (str(row.get("verdict")) for row in study.rows("audit"))
        verdicts = [name for headline in headlines for name in WORST_FIRST if headline.startswith(name)]
    if not verdicts:
        return "No audit was run: nothing here says whether resistance is real."
    counts = [f"{verdicts.count(name)} {name}" for name in WORST_FIRST if name in verdicts]
    if len(counts) > 1:
        return f"Of {len(verdicts)} audited cases, the audit finds {' and '.join(counts)}."
    cases = {1: "the only case", 2: "both cases"}.get(len(verdicts), f"all {len(verdicts)} cases")
    return f"The audit finds {cases} {verdicts[0]}."
