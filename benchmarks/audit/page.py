"""Writes docs/results/audit.md from the rows measured so far."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from benchmarks.common import machine_line, write_results
from eval.audit import Cause
from eval.core.formatting import percent

_TOLERANCE = 0.02
_HEADINGS = ("model", "expected", "verdict", "right")
_NUMBERS = (
    "clean",
    "PGD claims",
    "corrected [95 %]",
    "truth",
    "adaptive attack",
    "difference",
    "seconds",
    "passes",
)
_OTHERS = (
    "AutoAttack's flags",
    "Pintor's indicators",
    "Carlini's checks",
    "binarization",
    "Square beats PGD",
)
_EARLIER = {
    "†": "rows were measured before the audit last changed: random models by the majority of 15 passes without fresh "
    "ones, more differences where outputs are piecewise constant, and the truth is the lower of the adaptive "
    "attack's accuracy and, but for random models, the corrected one.",
    "‡": "rows were measured one change earlier; it concerns random models and those with straight-through gradients.",
}
Row = Mapping[str, Any]


def write(rows: Sequence[Row], models: int, machine: dict[str, Any]) -> None:
    """Write docs/results/audit.{json,md} from the rows so far of a test bed of ``models``."""
    found = summary([row for row in rows if "kind" not in row])
    payload = {"summary": found, "machine": machine}
    print(found, *write_results("audit", payload, "\n".join(_page(rows, models, found, machine))), sep="\n")


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """Count what was found, accused and corrected, by us and by others."""
    masked = [row for row in rows if row["expected"]]
    sound = [row for row in rows if not row["expected"]]
    gaps = [abs(row["corrected"] - row["truth"]) for row in rows]
    honest = sorted(row["cpu_seconds"] for row in sound)
    usual = honest[len(honest) // 2] if honest else None
    usual_passes = median([_passes(row) for row in sound] or [0.0])
    return {
        "masked": len(masked),
        "found": sum(row["verdict"] == "masked" for row in masked),
        "right_cause": sum(row["right"] for row in masked),
        "sound": len(sound),
        "accused": sum(row["verdict"] == "masked" for row in sound),
        "inconclusive": sum(row["verdict"] == "inconclusive" for row in rows),
        "masked_within_two_points": sum(_near(row) for row in masked),
        "sound_within_two_points": sum(_near(row) for row in sound),
        "largest_difference": max(gaps, default=None),
        "beyond_adaptive": sum(row["truth"] < row["adaptive"] - 1e-9 for row in rows),
        "seconds_sound_median": usual,
        "passes_sound_median": usual_passes or None,
        "over_four_times": [row["model"] for row in rows if usual and row["cpu_seconds"] > 4 * usual],
        "over_four_times_in_passes": [row["model"] for row in rows if 0 < 4 * usual_passes < _passes(row)],
        "slowest_against_it": max((row["cpu_seconds"] for row in rows), default=0) / usual if usual else None,
        "others": {
            name: {
                "found": sum(row["others"][name] for row in masked),
                "accused": sum(row["others"][name] for row in sound),
            }
            for name in _OTHERS
        },
    }


def _passes(row: Row) -> float:
    """The images that an audit passed forward, those passed backward counted as two more."""
    return float(row["forwards"] + 2 * row["backwards"])


def _near(row: Row) -> bool:
    return abs(row["corrected"] - row["truth"]) <= _TOLERANCE + 1e-9


def cells(row: Row, usual_passes: float = 0.0) -> list[str]:
    """A row's cells as text; passes as a multiple of ``usual_passes``, if there are any."""
    expected = _short(row["expected"]) if row["expected"] else "sound"
    found = f"masked: {_short(row['cause'])}" if row["cause"] else row["verdict"]
    low, high = row["ci95"]
    return [
        f"{row['model']} {row.get('earlier', '')}".rstrip(),
        expected,
        found,
        "yes" if row["right"] else "NO",
        percent(row["clean"]),
        percent(row["claimed"]),
        f"{percent(row['corrected'])} [{100 * low:.0f}, {100 * high:.0f}]",
        percent(row["truth"]),
        percent(row["adaptive"]),
        f"{100 * (row['corrected'] - row['truth']):+.1f}",
        f"{row['cpu_seconds']:.0f}",
        f"{_passes(row) / usual_passes:.1f}" if usual_passes else "-",
    ]


def _short(cause: str) -> str:
    return cause.partition(" (")[0]


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]], numbers: int = 0) -> list[str]:
    rule = ["---"] * (len(headings) - numbers) + ["---:"] * numbers
    return ["| " + " | ".join(line) + " |" for line in (headings, rule, *rows)] + [""]


def _page(
    rows: Sequence[Row], models: int, found: Mapping[str, Any], machine: Mapping[str, Any]
) -> list[str]:
    bed = [row for row in rows if "kind" not in row]
    policies = [row for row in rows if "kind" in row]
    first = bed[0] if bed else policies[0]
    lines = [
        "# The audit's own test",
        "",
        f"Quick audits at {first['norm']}, eps {first['eps']}, of {first['n']} test images of the digits; small "
        "networks, masked in known ways or sound. The audit sees a classifier and images, nothing else; its limits "
        "were set on networks of other seeds. What the first rows showed to be missing (gradients taken inside the "
        "forward pass, fresh votes for random models) was added since, and checked on other seeds or by tests.",
        "",
    ]
    if len(bed) < models:
        lines += [f"{len(bed)} of {models} models have been measured so far.", ""]
    if bed:
        lines += [*_findings(found), *_who(bed, found), *_confusion(bed), *_rows(bed, found), *_truths(bed)]
    if policies:
        lines += _policies(policies)
    return [*lines, machine_line(machine), "", "Repeat with `python -m benchmarks.audit` and "
            "`python -m benchmarks.audit --policies`; rows that are there are not measured again."]  # fmt: skip


def _findings(found: Mapping[str, Any]) -> list[str]:
    within = found["masked_within_two_points"], found["sound_within_two_points"]
    return [
        f"- Masked: {found['found']} of {found['masked']} found, {found['right_cause']} with the right cause.",
        f"- Sound: {found['accused']} of {found['sound']} accused; {found['inconclusive']} of all inconclusive.",
        f"- Corrected accuracy within 2 points of the truth: {within[0]} of {found['masked']} masked, {within[1]} of "
        f"{found['sound']} sound.",
        f"- Time: the median sound model takes {found['seconds_sound_median'] or 0:.0f} CPU seconds, the slowest of "
        f"all {found['slowest_against_it'] or 0:.1f} times that. Over 4 times: "
        f"{', '.join(found['over_four_times']) or 'none'}. Counted in passes through the model, of which some models' "
        f"are slow, over 4 times: {', '.join(found['over_four_times_in_passes']) or 'none'}.",
        f"- On {found['beyond_adaptive']} models the audit broke images that the adaptive attack alone did not; the "
        "truth is the worst case of both.",
        "",
    ]


def _who(rows: Sequence[Row], found: Mapping[str, Any]) -> list[str]:
    masked, sound = found["masked"], found["sound"]
    table = [["this audit", f"{found['found']} of {masked}", f"{found['accused']} of {sound}"]]
    table += [
        [name, f"{counts['found']} of {masked}", f"{counts['accused']} of {sound}"]
        for name, counts in found["others"].items()
    ]
    return [
        "## Who catches what, who accuses whom",
        "",
        *_table(("check", "masked models flagged", "sound models flagged"), table, 2),
        "AutoAttack's flags: random outputs, probabilities, zero gradients, Square (3000 queries) breaking anything "
        "after APGD-CE, APGD-T and FAB-T (2 classes: FAB). Pintor's: any of six indicators on more than 10 % of the "
        "images. Carlini's: single step, growing radius, unbounded attack, longer runs. Square: 1000 queries break an "
        "image that PGD on the cross-entropy does not.",
        "",
    ]


def _confusion(rows: Sequence[Row]) -> list[str]:
    """What was there against what was said."""
    names = [*map(str, Cause), "sound", "inconclusive"]
    pairs = [(row["expected"] or "sound", row["cause"] or row["verdict"]) for row in rows]
    shown = [name for name in names if any(said == name for _, said in pairs)]
    there = [name for name in names if any(name == first for first, _ in pairs)]
    table = [[_short(name), *(str(pairs.count((name, said)) or "") for said in shown)] for name in there]
    return [
        "## Verdicts",
        "",
        *_table(["there", *(f"said: {_short(name)}" for name in shown)], table, len(shown)),
    ]


def _rows(rows: Sequence[Row], found: Mapping[str, Any]) -> list[str]:
    marks = [row.get("earlier") for row in rows]
    usual = found["passes_sound_median"] or 0.0
    table = [[*cells(row, usual), *("x" if row["others"][name] else "" for name in _OTHERS)] for row in rows]
    return [
        "## Every model",
        "",
        *_table([*_HEADINGS, *_NUMBERS, *_OTHERS], table, len(_NUMBERS) + len(_OTHERS)),
        '"PGD claims" is the accuracy that PGD on the cross-entropy (40 steps) reports on the model as it is. Seconds '
        "are CPU seconds of one audit, one thread, on a machine with other work. Passes: images passed forward, those "
        "passed backward counted as two more, against those of the median sound model.",
        *("\n" + f"{mark} {marks.count(mark)} {what}" for mark, what in _EARLIER.items() if mark in marks),
        "",
    ]


def _truths(rows: Sequence[Row]) -> list[str]:
    ways: dict[str, list[str]] = {}
    for row in rows:
        ways.setdefault(row["truth_by"], []).append(row["model"])
    lines = [f"- {', '.join(models)}: {way}." for way, models in ways.items()]
    return [
        "## How the truth was found",
        "",
        "Worst case per image of attacks that know the mask, listed below, and, but for random models, of the images "
        "that the audit found; all judged by the model, random ones by the majority of 51 passes, confirmed by 51 "
        "fresh ones and again when all attacks are over. The column "
        '"adaptive attack" is what the former leave alone.',
        "",
        *lines,
        "",
    ]


def policy_cells(row: Row) -> list[str]:
    """A policy's cells as text."""
    return [
        row["dataset"], row["algorithm"], str(row["passes"]), f"{row['norm']} {row['eps']:g}",
        f"masked: {_short(row['cause'])}" if row["cause"] else row["verdict"], row["expected"],
        "yes" if row["right"] else "NO", percent(row["clean"]), percent(row["claimed"]), percent(row["paper"]),
        percent(row["corrected"]), percent(row["truth"]),
    ]  # fmt: skip


def _policies(rows: Sequence[Row]) -> list[str]:
    headings = ("data", "algorithm", "passes", "threat", "verdict", "by the truth", "right")
    numbers = ("clean", "PGD claims", "cleverhans claims", "corrected", "truth")
    rows = sorted(rows, key=lambda row: (row["dataset"], row["algorithm"], row["passes"]))
    right = sum(row["right"] for row in rows)
    return [
        "## Policies trained for longer and longer",
        "",
        "One run each. By the truth (PGD with 100 steps, 3 restarts, MIFPE and margin; APGD to 9 classes) a policy "
        "is masked where PGD or APGD on the cross-entropy, or PGD of cleverhans, overstates its accuracy by more than "
        "10 points; within 4 points of that limit, four images, either verdict counts as right. "
        f"Right: {right} of {len(rows)}.",
        "",
        *_table([*headings, *numbers], [policy_cells(row) for row in rows], len(numbers)),
    ]
