"""What the command lines of the evaluation share while they run: the first checks, and the progress bar."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from attacks.checks import check_model
from envs.sampling import spread
from eval.attack.autosave import Progress, Report
from eval.core.formatting import percent
from eval.core.targets import Samples, Target
from eval.core.threats import Threat

_CHECKED_IMAGES = 64


def warn_about(target: Target, samples: Samples, threats: Sequence[Threat], loss: str = "ce") -> None:
    """Examine the model on a few images before it is attacked, and print what makes the attack's results doubtful.

    Raises AttackError for what would make them meaningless, such as a layer in training mode or an impossible radius.
    """
    x, y = samples.batch(spread(len(samples), _CHECKED_IMAGES), target.device)
    warnings: dict[str, None] = {}
    for threat in threats:
        found = check_model(target.model, x, y, **vars(threat), loss=loss, needs_gradient=False)
        warnings |= dict.fromkeys(found.warnings)
    for line in warnings:
        print(f"warning: {target.name}: {line}", file=sys.stderr)


def is_live(console: Console) -> bool:
    """Return whether something that changes can be shown: in a terminal or a notebook (which rich counts as none)."""
    return console.is_terminal or console.is_jupyter


@contextmanager
def progress_bar(label: str, total: int, shown: bool) -> Iterator[Report]:
    """Show a bar with images done, share still robust, images/s and time left; yields what to report to."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[robust]} robust"),
        TextColumn("{task.fields[rate]:.1f} images/s"),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    if not (shown and is_live(console)):  # Rich before 15 prints an empty line even where a bar is disabled
        yield lambda progress: None
        return
    with Bar(*columns, console=console, transient=True) as bar:
        task = bar.add_task(label, total=total, robust="-", rate=0.0)

        def report(progress: Progress) -> None:
            state: dict[str, Any] = {"completed": progress.done, "total": progress.total}
            state |= {"robust": percent(progress.robust), "rate": progress.images_per_second}
            bar.update(task, description=f"{label} {progress.stage}", **state)

        yield report
