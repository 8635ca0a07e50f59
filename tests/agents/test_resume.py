import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import agents.training.callback
import agents.training.run
from agents.training.callback import stop_on_interrupt
from agents.training.run import resume, train
from envs import files
from envs.errors import InputError
from tests.support.agent_runs import (
    CASES,
    assert_same_runs,
    name_event_files_in_order,
    new_process,
    short,
    stopping,
)

pytestmark = pytest.mark.usefixtures("event_files_in_order")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Return the finished run of a case, trained once."""
    finished = {}

    def get(case) -> Path:
        if case not in finished:
            path = tmp_path_factory.mktemp(case) / "whole"
            finished[case] = train(short(path, case)).path
        return finished[case]

    return get


@pytest.mark.slow
@pytest.mark.parametrize(("case", "boundary"), [("ppo", 0), *((case, k) for case in CASES for k in (1, 7))])
def test_a_stopped_run_ends_like_an_uninterrupted_one(case, boundary, uninterrupted, tmp_path, monkeypatch):
    path = tmp_path / "run"
    with (
        stopping(monkeypatch, boundary),
        pytest.raises(KeyboardInterrupt, match=rf"--resume {path}"),
    ):
        train(short(path, case))
    resume(path, progress=False)
    assert_same_runs(path, uninterrupted(case))


@pytest.mark.slow
@pytest.mark.parametrize("case", ["ppo", "schedule", "dqn"])
def test_a_run_stopped_at_every_rollout_ends_like_an_uninterrupted_one(
    case, uninterrupted, tmp_path, monkeypatch
):
    path, stops = tmp_path / "run", 0
    with contextlib.suppress(KeyboardInterrupt), stopping(monkeypatch, 1):
        train(short(path, case))
    while not (path / "summary.json").exists():
        with contextlib.suppress(KeyboardInterrupt), stopping(monkeypatch, 1):
            resume(path, progress=False)
        stops += 1
    assert stops >= 7
    assert_same_runs(path, uninterrupted(case))


class Crash(BaseException):
    """Stands for the end of the process: nothing handles it."""


def crashing(monkeypatch, where, call):
    """Replace the function ``where`` by one that crashes before, or after, its call of this number."""
    module, name, moment = where
    function, calls = getattr(module, name), []

    def crash(*args, **kwargs):
        calls.append(1)
        if len(calls) == call and moment == "before":
            raise Crash
        result = function(*args, **kwargs)
        if len(calls) == call and moment == "after":
            raise Crash
        return result

    monkeypatch.setattr(module, name, crash)


CRASHES = {
    "before the configuration": ((agents.training.run.RunDir, "write_config", "before"), 1),
    "before anything is trained": ((agents.training.run.RunDir, "write_config", "after"), 1),
    "before the first checkpoint": ((agents.training.callback, "save_checkpoint", "before"), 1),
    "after the classifier": ((agents.training.callback, "save_classifier", "after"), 2),
    "after a checkpoint": ((agents.training.callback, "save_checkpoint", "after"), 2),
    "before the last checkpoint of training": ((agents.training.callback, "save_checkpoint", "before"), 4),
    "after the last checkpoint of training": ((agents.training.callback, "save_checkpoint", "after"), 4),
    "in the attacks": ((agents.training.run, "summarise", "before"), 1),
    "before the summary": ((agents.training.run, "write_json", "before"), 1),
    "after the summary": ((agents.training.run, "write_json", "after"), 1),
    "before the run is marked as done": ((agents.training.callback, "save_checkpoint", "before"), 5),
    "before the table": ((agents.training.run, "print_summary", "before"), 1),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", ["supervised", "schedule"])
@pytest.mark.parametrize("moment", CRASHES)
def test_a_crash_between_two_writes_loses_nothing(moment, case, uninterrupted, tmp_path, monkeypatch):
    path = tmp_path / "run"
    with monkeypatch.context() as patch:
        crashing(patch, *CRASHES[moment])
        with pytest.raises(Crash):
            train(short(path, case))
    if moment == "before the configuration":
        with pytest.raises(InputError, match=r"not a run directory: it has no config\.json"):
            resume(path, progress=False)
        train(short(path, case))
    else:
        resume(path, progress=False)
    assert_same_runs(path, uninterrupted(case))


@pytest.mark.parametrize("write", [1, 2, 3, 4, 6, 9])
def test_a_crash_while_a_file_is_written_loses_nothing(write, uninterrupted, tmp_path, monkeypatch):
    """The process ends before the new file takes the old one's place: temporary files stay behind."""
    path = tmp_path / "run"
    with monkeypatch.context() as patch:
        crashing(patch, (files.os, "replace", "before"), write)
        patch.setattr(files.Path, "unlink", lambda *args, **kwargs: None)
        with pytest.raises(Crash):
            train(short(path, "supervised"))
    assert list(path.glob(".*.tmp"))
    if write == 1:
        shutil.rmtree(path)
        train(short(path, "supervised"))
    else:
        resume(path, progress=False)
    assert_same_runs(path, uninterrupted("supervised"))


def child(path, case):
    """Train, or continue what is there; in a process of its own."""
    with (
        open(os.devnull, "w") as null,
        contextlib.redirect_stdout(null),
        pytest.MonkeyPatch.context() as patch,
    ):
        name_event_files_in_order(patch)
        if (path / "config.json").exists():
            resume(path, progress=False)
        else:
            shutil.rmtree(path, ignore_errors=True)
            train(short(path, case))


@pytest.mark.slow
@pytest.mark.parametrize("case", ["ppo", "dqn", "reinforce", "schedule"])
def test_kill_9_at_random_moments(case, uninterrupted, tmp_path):
    """Every process is killed some time after it starts, the next goes on, and the last one finishes."""
    expected, path = uninterrupted(case), tmp_path / "run"
    draws = random.Random(case)
    for _ in range(3):
        process = new_process(child, path, case)
        time.sleep(draws.uniform(0.02, 0.4))
        process.kill()
        process.join()
    child(path, case)
    assert_same_runs(path, expected)


COMMAND = [sys.executable, "-m", "agents.train"]


@pytest.mark.slow
def test_ctrl_c_on_the_command_line(tmp_path):
    """One line with the command to continue, exit status 130, and that command continues."""
    path = tmp_path / "run"
    options = "--algo supervised --network mlp --total-images 100000000 --eval-every 1000 --threads 1"
    command = [*COMMAND, *options.split(), "--no-attack", "--no-progress", "--run-dir", str(path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: (path / "metrics.jsonl").exists() and (path / "metrics.jsonl").stat().st_size, process)
    process.send_signal(signal.SIGINT)
    output, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert output == ""
    assert error.count("\n") == 1
    command = f"python -m agents.train --resume {path}"
    assert error.startswith("stopped after ")
    assert error.endswith(f"continue with: {command}\n")
    assert (path / "checkpoint.pt").exists()


def wait_for(condition, process, seconds=180):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)


def test_the_second_signal_ends_the_process():
    """The first is a request; after it the default action, the end, is back; the handlers from before return."""
    before = signal.getsignal(signal.SIGINT)
    with stop_on_interrupt() as stop:
        assert not stop.requested
        signal.raise_signal(signal.SIGINT)
        assert stop.requested
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
        assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is before


def test_signals_stay_as_they_are_in_other_threads(tmp_path):
    """Only the main thread may set handlers; a run in another one is merely not stoppable."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(train, short(tmp_path / "run", "supervised", total_images=100)).result()
    assert (tmp_path / "run" / "summary.json").exists()


def test_ctrl_c_during_the_attacks(uninterrupted, tmp_path, monkeypatch):
    path = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(agents.training.run, "summarise", interrupt)
        with pytest.raises(KeyboardInterrupt, match=rf"--resume {path}"):
            train(short(path, "supervised"))
    resume(path, progress=False)
    assert_same_runs(path, uninterrupted("supervised"))


def interrupt(*args):
    raise KeyboardInterrupt


@pytest.mark.slow
def test_a_second_process_is_refused(tmp_path, capsys):
    path = tmp_path / "run"
    process = new_process(train, short(path, "supervised", total_images=10**9))
    wait = time.monotonic() + 60
    while not (path / "config.json").exists():
        assert time.monotonic() < wait
        time.sleep(0.01)
    try:
        with pytest.raises(InputError, match=rf"another process is writing {path}; wait for it"):
            resume(path)
    finally:
        process.kill()
        process.join()
    assert process.exitcode == -signal.SIGKILL


def test_resuming_a_finished_run_prints_its_table(uninterrupted, capsys):
    path = uninterrupted("ppo")
    before = {entry.name: entry.read_bytes() for entry in path.iterdir() if entry.is_file()}
    capsys.readouterr()
    assert resume(path).path == path
    assert "clean test" in capsys.readouterr().out
    assert {entry.name: entry.read_bytes() for entry in path.iterdir() if entry.is_file()} == before
