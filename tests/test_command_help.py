"""``--help`` of every command: the ten options used most, on one screen; ``--help-all`` shows every option."""

import contextlib
import io
import re

import pytest
import tyro

from tests.test_documents import COMMANDS, door

COLUMNS, LINES = 80, 40


def printed(call, *arguments):
    """What a call prints on a terminal of 80 columns that knows UTF-8."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    with contextlib.redirect_stdout(stream), pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", str(COLUMNS))
        call(*arguments)
    stream.seek(0)
    return stream.read()


def help_of(command, *arguments):
    return printed(door(command)[1], list(arguments))


def options_of(text):
    return re.findall(r"^│ (--[\w.-]+)", text, flags=re.M)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_fits_a_screen_and_help_all_shows_every_option(command, monkeypatch):
    short, full = help_of(command, "--help"), help_of(command, "--help-all")
    assert help_of(command, "-h") == short
    assert len(short.splitlines()) <= LINES
    assert len(options_of(short)) <= 10
    assert set(options_of(short)) <= set(options_of(full))
    assert ("--help-all shows all" in short) == (options_of(short) != options_of(full))
    text = " ".join(re.split(r"[│\s]+", full))
    for noise in ("default: None", "(default: )", "{None"):
        assert noise not in text
    seen = []
    module, main = door(command)
    monkeypatch.setattr(module, "run_cli", lambda main, options, *_, **__: seen.append(options))
    main([])

    def everything():
        with contextlib.suppress(SystemExit):
            tyro.cli(seen[0], args=["--help"])

    assert options_of(full) == options_of(printed(everything))


def test_help_shows_the_defaults_of_the_preset():
    text = help_of("agents.train", "--preset", "paper-cnn6-cifar10-rl", "--help")
    assert "(default: cifar10)" in text
    assert "(default: reinforce)" in text
