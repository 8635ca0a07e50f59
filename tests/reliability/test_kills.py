"""A short version of ``python -m benchmarks.reliability.kills`` for attacks."""

import os
import random
from types import SimpleNamespace

import pytest
from tensorboard.summary.writer import event_file_writer

from agents.training.run import resume, train
from benchmarks.reliability.kills import jobs, torment
from tests.support.agent_runs import assert_same_runs, short, stopping


@pytest.mark.slow
@pytest.mark.parametrize("name", ["attack pgd", "attack square", "attack autoattack", "robustness"])
def test_killed_attacks_end_like_untouched_ones(name, tmp_path):
    trials = torment(jobs()[name], 3, random.Random(name), tmp_path)
    assert trials.failures == []
    assert trials.kills == 3


@pytest.mark.slow
def test_the_comparison_sees_differences(tmp_path):
    """A job that forgets what it was killed in is found out."""
    job = jobs()["attack pgd"]
    for name in ("found", "whole"):
        job.work(tmp_path / name)
    job.compare(tmp_path / "found", tmp_path / "whole")
    (path,) = (tmp_path / "found").rglob("*.json")
    path.write_text(path.read_text().replace("true", "false", 1))
    with pytest.raises(AssertionError):
        job.compare(tmp_path / "found", tmp_path / "whole")
    path.unlink()
    with pytest.raises(AssertionError):
        job.compare(tmp_path / "found", tmp_path / "whole")


@pytest.mark.slow
def test_curves_have_no_doubled_step_whatever_the_process_number(tmp_path, monkeypatch):
    """TensorBoard reads files by name: second, host, process. Resuming within the second may get a lower number."""
    numbers = iter([2, 1, 1, 1])
    monkeypatch.setattr(
        event_file_writer, "os", SimpleNamespace(**vars(os) | {"getpid": lambda: next(numbers)})
    )
    train(short(tmp_path / "whole", "supervised"))
    numbers = iter([2, 1, 1, 1])
    path = tmp_path / "run"
    with stopping(monkeypatch, 7), pytest.raises(KeyboardInterrupt):
        train(short(path, "supervised"))
    resume(path, progress=False)
    assert_same_runs(path, tmp_path / "whole")
