"""A short version of ``python -m benchmarks.reliability.soak``: repeated work leaves nothing open."""

import pytest

from benchmarks.reliability.soak import Trace, soak_attacks, soak_training

WARM_UP = 10


@pytest.mark.slow
@pytest.mark.parametrize("case", ["supervised", "ppo"])
def test_training_leaves_no_files_and_threads_open(case, tmp_path):
    trace, logs = soak_training(case, 60, tmp_path, validate_every=10)
    assert len(set(trace.files[WARM_UP:])) == 1
    assert len(set(trace.threads[WARM_UP:])) == 1
    assert logs["lines"] <= 4 * 6 + 2  # four lines per validation, the last one, and the summary's
    assert logs["metrics_bytes_per_line"] < 1000
    assert logs["event_bytes_per_line"] < 1500


def test_runs_one_after_another_leave_nothing_open(tmp_path):
    trace = Trace()
    for number in range(4):
        soak_training("supervised", 5, tmp_path / str(number))
        trace.read()
    assert len(set(trace.files[1:])) == 1
    assert len(set(trace.threads[1:])) == 1


@pytest.mark.slow
def test_attacks_leave_no_files_and_threads_open(digits_run):
    trace = soak_attacks(40, digits_run)
    assert len(set(trace.files[WARM_UP:])) == 1
    assert len(set(trace.threads[WARM_UP:])) == 1
