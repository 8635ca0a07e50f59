"""A short version of ``python -m benchmarks.reliability.fuzz``: damaged files and random words end in clear lines."""

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agents.common.command_line import one_line
from benchmarks.reliability import fuzz
from benchmarks.reliability.fuzz_targets import COMMANDS, FILES
from envs.errors import InputError

HERE = (
    "run configuration",
    "checkpoint",
    "result file",
    "part of an attack",
    "state of an attack",
    "reward matrix",
)
HERE += ("npz data set, its images", "npz data set, its labels")
RARELY = ("checkpoint, resumed", "run summary, reported", *COMMANDS)


def tried(name, seed, folder):
    """Return the outcome of one input; whatever is neither read nor refused clearly is raised."""
    outcome = fuzz.Outcome()
    fuzz.check(outcome, name, random.Random(seed), folder / "work")
    return outcome


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [*HERE, *RARELY])
def test_nothing_but_clear_errors(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    @settings(
        max_examples=3 if name in RARELY else 25,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(seed=st.integers(0, 10**9))
    def attempt(seed):
        tried(name, seed, tmp_path)

    attempt()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FILES)
def test_what_is_damaged_was_sound(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for content in FILES[name].seeds():
        fuzz.read_one(FILES[name], content, tmp_path / "work")


def test_the_fuzzer_sees_failures(tmp_path, monkeypatch):
    def broken(path):
        raise KeyError("a traceback")

    monkeypatch.setitem(FILES, "broken", fuzz.Target(lambda: [b"abc"], broken))
    outcome = fuzz.fuzz("broken", 3, 0)
    assert (outcome.inputs, outcome.read, outcome.refused, len(outcome.failures)) == (3, 0, 0, 3)
    assert "KeyError" in outcome.failures[0]
    dead = fuzz.Target(lambda: [b"abc"], lambda path: fuzz.os.kill(fuzz.os.getpid(), 9))
    monkeypatch.setitem(FILES, "dead", dead)
    assert "the process ended with -9" in fuzz.fuzz("dead", 3, 0).failures[0]


@pytest.mark.parametrize("text", ["a\nb", "\x1b[2Jgone", "\u202eevil", "\udcff", "a\x00b"])
def test_messages_cannot_rewrite_a_terminal(text):
    assert one_line(InputError(f"class {text} is unknown")).isprintable()
    assert len(one_line(InputError(text * 1000))) <= 8000
