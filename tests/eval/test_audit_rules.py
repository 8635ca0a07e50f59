"""The audit's rules: which evidence leads to which verdict."""

import pytest
import torch
from torch import nn

from eval.audit.findings import Cause, Finding, Verdict
from eval.audit.model_checks import GradientChecks, Outputs
from eval.audit.record import AttackRecord, Family
from eval.audit.verdict import Gaps, judge, last_quarter

NO_GAPS = Gaps(loss=0, floor=0, free=0, free_count=0, standard=0, best_free="")
HONEST = GradientChecks(zero=0, constant=0, unexplained=0.01, vanished=0, saturated=0)
INFINITE = GradientChecks(zero=0, constant=0, unexplained=0.01, vanished=0, saturated=0, nonfinite=1)


@pytest.mark.parametrize(
    ("outputs", "gradients", "gaps", "verdict", "cause"),
    [
        ((0, 0, 0), {}, {}, Verdict.SOUND, None),
        ((1, 0, 0), {}, {}, Verdict.MASKED, Cause.RANDOM),
        ((0, 1, 0), {}, {}, Verdict.MASKED, Cause.BATCH),
        ((0, 0, 1), {}, {}, Verdict.MASKED, Cause.PROBABILITIES),
        ((0, 0, 0), {"zero": 1, "constant": 1}, {}, Verdict.MASKED, Cause.QUANTISED),
        ((0, 0, 0), {"zero": 1, "constant": 0}, {}, Verdict.MASKED, Cause.DETACHED),
        ((0, 0, 0), {}, {"loss": 0.2}, Verdict.MASKED, Cause.SATURATED),
        ((0, 0, 0), {}, {"floor": 0.2}, Verdict.MASKED, Cause.SATURATED),
        ((0, 0, 0), {"unexplained": 0.9, "rough": 0.9}, {"standard": 0.2}, Verdict.MASKED, Cause.SHATTERED),
        ((0, 0, 0), {"unexplained": 0.9, "rough": 0.9}, {}, Verdict.SOUND, None),
        ((0, 0, 0), {"unexplained": 0.4, "rough": 0.01}, {"standard": 0.2}, Verdict.MASKED, Cause.WRONG),
        (
            (0, 0, 0),
            {"unexplained": 4.0, "rough": 3.0, "correlation": -1},
            {"standard": 0.2},
            Verdict.MASKED,
            Cause.WRONG,
        ),
        ((0, 0, 0, 0, 1), {"unexplained": 0.4, "rough": 0.2}, {"claimed": 0.06}, Verdict.MASKED, Cause.WRONG),
        ((0, 0, 0, 0, 1), {"unexplained": 0.01, "rough": 0.2}, {"claimed": 0.06}, Verdict.SOUND, None),
        ((0, 0, 0, 0, 1), {"unexplained": 0.4, "rough": 0.2}, {}, Verdict.SOUND, None),
        ((0, 0, 0), {"nonfinite": 0.2}, {}, Verdict.MASKED, Cause.NONFINITE),
        ((0, 0, 1), {"zero": 1, "constant": 1}, {}, Verdict.MASKED, Cause.QUANTISED),
        ((0, 0, 0), {}, {"standard": 0.2, "squashed": "clamp"}, Verdict.MASKED, Cause.SATURATED),
        ((0, 0, 0), {}, {"free": 0.1, "free_count": 5}, Verdict.MASKED, Cause.UNEXPLAINED),
        ((0, 0, 0), {}, {"free": 0.1, "free_count": 1}, Verdict.SOUND, None),
        ((0, 0, 0), {}, {"loss": 0.06}, Verdict.SOUND, None),
        ((0, 0, 0), {}, {"standard": 0.2}, Verdict.INCONCLUSIVE, None),
    ],
)
def test_rules(outputs, gradients, gaps, verdict, cause):
    record = AttackRecord(
        nn.Flatten(), torch.rand(20, 1, 2, 2), torch.zeros(20, dtype=torch.int64), "L2", 0.1
    )
    record.clean_wrong = torch.zeros(20, dtype=torch.bool)
    found = judge(
        record,
        Outputs(*map(bool, outputs)),
        GradientChecks(**{**vars(HONEST), **gradients}),
        Gaps(**{**vars(NO_GAPS), **gaps}),
        [],
    )
    assert (found.verdict, found.cause) == (verdict, cause)


def test_what_still_falls_is_no_number():
    record = AttackRecord(
        nn.Flatten(), torch.rand(20, 1, 2, 2), torch.zeros(20, dtype=torch.int64), "L2", 0.1
    )
    record.clean_wrong = record.broken = torch.zeros(20, dtype=torch.bool)
    record.judge = lambda x: torch.tensor([[0.0, 1.0]]).expand(
        len(x), 2
    )  # whatever is shown is misclassified
    for count, forwards in ((4, 100), (2, 1000)):
        record.counter.forwards = forwards
        rows = record.survivors[:count]
        record.add("attack", Family.FREE, rows, record.x[rows], torch.ones(count, dtype=torch.bool), 0.0)
    assert record.late_gain(0.75) == pytest.approx(2 / 20)
    found = last_quarter(record)
    assert found.alarm
    outputs = Outputs(False, False, False)
    sound, masked = (judge(record, outputs, checks, NO_GAPS, [found]) for checks in (HONEST, INFINITE))
    assert sound.verdict is Verdict.INCONCLUSIVE
    assert sound.reason.startswith("still falling")
    assert (masked.verdict, masked.cause) == (Verdict.MASKED, Cause.NONFINITE)
    assert "still falling" in masked.reason


def test_failed_sanity_checks_forbid_soundness():
    record = AttackRecord(
        nn.Flatten(), torch.rand(20, 1, 2, 2), torch.zeros(20, dtype=torch.int64), "L2", 0.1
    )
    record.clean_wrong = torch.zeros(20, dtype=torch.bool)
    alarm = Finding("success of an unbounded attack", 0.4, 0.99, True, "source", decisive=True)
    found = judge(record, Outputs(False, False, False), HONEST, NO_GAPS, [alarm])
    assert found.verdict is Verdict.INCONCLUSIVE
    assert found.reason == alarm.check
    mild = Finding("something else", 0.4, 0.99, True, "source")
    assert judge(record, Outputs(False, False, False), HONEST, NO_GAPS, [mild]).verdict is Verdict.SOUND
