"""The progress bar takes one line of 60 columns or more: what wraps would be printed again at every update."""

import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from agents.training import progress


@pytest.mark.parametrize("width", [60, 80, 119, 120])
def test_the_bar_fits_on_one_line(width, monkeypatch):
    output = io.StringIO()
    console = Console(file=output, width=width, force_terminal=True, color_system=None)
    monkeypatch.setattr(progress, "Console", lambda: console)
    with progress.TrainingProgress("ppo on fashion-mnist", 60_000_000) as bar:
        bar.update(SimpleNamespace(num_timesteps=123_456, device="cpu"), force=True)
        bar.validated(0.9765)
        bar.say("a warning")
    lines = [line for part in output.getvalue().split("\n") for line in part.split("\r")]
    assert "a warning" in output.getvalue()
    assert sum("val" in line for line in lines if "97.65%" in line) >= 1
    assert all(len(line.split("\x1b[2K")[-1].replace("\x1b[?25h", "")) <= width for line in lines)
    assert "\x1b[1A" not in output.getvalue()  # no second line to go up over


def test_a_run_refused_before_it_began_leaves_no_bar(capsys):
    with (
        pytest.raises(ValueError, match="refused"),
        progress.TrainingProgress("ppo on digits", 100) as bar,
        bar,
    ):
        raise ValueError("refused")
    assert "images/s" not in capsys.readouterr().out


def test_without_a_bar_warnings_go_to_standard_error(capsys):
    with progress.TrainingProgress("ppo on digits", 100, shown=False) as bar:
        bar.update(SimpleNamespace(num_timesteps=50, device="cpu"))
        bar.say("a warning")
    assert capsys.readouterr() == ("", "a warning\n")
