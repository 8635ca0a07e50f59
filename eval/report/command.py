"""The command line ``python -m eval.report``: a study, or one run, as one self-contained HTML page."""

import sys
from collections.abc import Iterator

from agents.common.command_line import one_line
from envs.errors import InputError
from envs.files import write_atomic
from eval.report.model import Budget, Model, add_gallery, add_plots, read_model, study_plots
from eval.report.opening import Gap, make_opening
from eval.report.options import ReportCommand
from eval.report.options import main as main
from eval.report.overview import by_group
from eval.report.page import Report, render
from eval.report.run_as_study import read_run
from eval.report.safe_folder import Folder
from eval.study.results.record import STUDY_FILE, StudyRecord

_MOST_MEGABYTES = 500


def report_command(config: ReportCommand) -> int:
    """Write one self-contained HTML page about a study or a single run."""
    if config.images < 0:
        raise InputError(f"--images is {config.images}; expected 0 or more")
    if not 0 <= config.megabytes <= _MOST_MEGABYTES:
        raise InputError(f"--megabytes is {config.megabytes}; expected 0 to {_MOST_MEGABYTES}")
    out = config.out or config.directory / "report.html"
    folder = Folder(config.directory)
    if not out.parent.is_dir() or out.is_dir():
        expected = "expected a file name in an existing directory; choose another --out"
        raise InputError(f"cannot write {out}: {expected}")
    report = collect(folder, config.images, config.megabytes * 2**20)
    page = render(report)
    write_atomic(out, page.encode(errors="replace"))  # JSON may hold half a character
    for line in report.problems:
        print(f"missing: {one_line(InputError(line))}", file=sys.stderr)
    print(f"report: {out} ({len(page) / 2**20:.1f} MB)")
    return 0


def collect(folder: Folder, images: int = 8, characters: int = 40 * 2**20) -> Report:
    """Read all that a report shows of a study or a run: ``images`` per regime, ``characters`` of pictures at most.

    Raises InputError where neither a study nor a run is there, or its description is damaged.
    """
    budget = Budget(characters)
    gaps: list[Gap] = []
    if STUDY_FILE in folder.names("", STUDY_FILE):
        study = folder.record(STUDY_FILE, StudyRecord)
        models = [read_model(folder, cell) for cell in study.cells if cell.status == "finished"]
    elif "config.json" in folder.names("", "config.json"):
        study, model, gaps = read_run(folder)
        models = [model]
    else:
        problem = f"{folder.path} has neither {STUDY_FILE} nor config.json"
        raise InputError(f"{problem}; give the directory of a study or of a run")
    plots, problems = study_plots(folder, study.plots, budget)
    first = [members[0] for members in by_group(models).values()]
    for model in first:
        add_gallery(folder, model, budget, images)
    for model in first:
        add_plots(folder, model, budget)
    opening = make_opening(study, models, gaps)
    return Report(study, models, opening, plots, list(_missing(study, problems, models)))


def _missing(study: StudyRecord, problems: list[str], models: list[Model]) -> Iterator[str]:
    """Yield one line per cell that is not finished, part that the study lacks, and file that could not be shown."""
    for cell in study.cells:
        if cell.status != "finished":
            yield f"{cell.name}: {cell.status}{': ' + ' '.join(cell.error.split()) if cell.error else ''}"
    parts = {"cells": study.cells, "tables": study.tables, "conclusions": study.claims}
    yield from (f"the study has no {name} yet" for name, found in parts.items() if not found)
    yield from problems
    for model in models:
        yield from (f"{model.cell.name}: {line}" for line in model.problems)
        if model.left_out:
            why = f"left out, for the page would grow too large: {', '.join(model.left_out)}"
            yield f"{model.cell.name}: {why}; raise --megabytes to have them"
