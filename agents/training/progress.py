"""The progress bar of a training run: one line, from 60 columns on."""

import sys
import time
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

_SECONDS = 0.2  # between two updates
_WIDE = 120  # columns of a terminal from which everything fits on one line


class _Rate(ProgressColumn):
    """Images per second over the recent past."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("- images/s" if speed is None else f"{speed:,.0f} images/s", no_wrap=True)


class TrainingProgress:
    """A bar with images seen, speed, validation accuracy and the time left; a context manager that may be entered
    again within itself and ends with the inner one.

    On narrow terminals the description and the total are left out: a bar that wraps would print itself again and again.
    ``total``: images of the run; ``shown``: whether there is a bar at all.
    """

    def __init__(self, description: str, total: int, shown: bool = True) -> None:
        console = Console()
        wide = console.width >= _WIDE
        columns: list[ProgressColumn] = [
            BarColumn(bar_width=40 if wide else max(console.width - 54, 4)),
            TextColumn("{task.completed:,}/{task.total:,} images" if wide else "{task.percentage:.0f}%"),
            _Rate(),
            TextColumn("val {task.fields[accuracy]:.2%}"),
            TimeRemainingColumn(),
        ]
        if wide:
            columns.insert(0, TextColumn("{task.description}"))
        self._bar = Progress(*columns, console=console, disable=not shown)
        self._task = self._bar.add_task(escape(description), total=total, accuracy=0.0)
        self._total, self._updated = total, 0.0

    def __enter__(self) -> "TrainingProgress":
        self._bar.start()  # does nothing where it has been started
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if not self._bar.live.is_started:
            return
        if kind is not None and not self._updated:  # nothing has been trained
            self._bar.update(self._task, visible=False)
        self._bar.stop()

    def update(self, model: Any, force: bool = False) -> None:
        """Show how far ``model`` is, at most five times a second unless ``force``."""
        now = time.monotonic()
        if self._bar.disable or (now - self._updated < _SECONDS and not force):
            return
        self._updated = now
        if torch.device(model.device).type == "cuda":
            torch.cuda.synchronize(model.device)  # five times a second: an honest rate for little
        self._bar.update(self._task, completed=min(model.num_timesteps, self._total))

    def validated(self, accuracy: float) -> None:
        """Show the validation accuracy."""
        self._bar.update(self._task, accuracy=accuracy)

    def say(self, message: str) -> None:
        """Print a line on standard error, or above the bar where there is one."""
        if self._bar.disable:
            print(message, file=sys.stderr)
        else:
            self._bar.print(message, soft_wrap=True)
