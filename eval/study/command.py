"""The command line ``python -m eval.study``: a grid of trainings, attacked and compared, on one machine or many."""

import shlex
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from agents.common.run_dir import resolve_device
from envs.errors import InputError
from eval.study.options import StudyCommand
from eval.study.options import main as main
from eval.study.plan.cells import cells_of
from eval.study.plan.config import preset, read_grid
from eval.study.results.record import STUDY_FILE
from eval.study.results.writer import StudyFile, locked, write_study
from eval.study.run.engines import Engine, InProcess, Pool, RayEngine, carry_out
from eval.study.run.estimate import print_plan
from eval.study.run.jobs import Place, Study


def study_command(config: StudyCommand) -> int:
    """Train what is missing of a grid, attack, analyse and audit it, and write tables and plots."""
    path = Path(config.study)
    grid = read_grid(path) if path.suffix == ".toml" else preset(config.study)
    if config.data_root is not None:
        grid = replace(grid, data_root=config.data_root.absolute())
    if config.shards < 1 or config.retries < 0:
        given = f"--shards is {config.shards} and --retries {config.retries}"
        raise InputError(f"{given}; expected at least 1 and 0")
    resolve_device(config.device)
    directory = config.out or Path("studies") / grid.name
    place = Place(directory.absolute(), config.device, grid.data_root, config.batch_size)
    study = Study(grid, tuple(cells_of(grid)), place, config.shards)
    if config.dry_run:
        print_plan(study)
        return 0
    with locked(directory):
        return _run(config, study)


def _engine(config: StudyCommand) -> Engine:
    if config.engine == "pool":
        return Pool(config.workers, config.retries)
    if config.engine == "ray":
        gpus = 0.0 if config.device == "cpu" and config.gpus is None else config.gpus
        return RayEngine(config.workers, config.address, config.cpus, gpus, config.retries)
    return InProcess(config.retries)


def _run(config: StudyCommand, study: Study) -> int:
    console = Console(soft_wrap=True, highlight=False, markup=False)
    console.print(f"study {study.grid.name}: {len(study.cells)} cells in {study.directory}")
    StudyFile(study).write()
    engine = _engine(config)
    try:
        counts = carry_out(study, engine, console.print)
    except KeyboardInterrupt:
        StudyFile(study).write()
        default, words = StudyCommand(config.study), ["python", "-m", "eval.study", config.study]
        for name, value in vars(config).items():
            if name != "study" and value != getattr(default, name):
                words += [f"--{name.replace('_', '-')}", str(value)]
        raise KeyboardInterrupt(f"stopped; go on with: {shlex.join(words)}") from None
    finally:
        engine.close()
    tables = write_study(study)
    console.print(", ".join(f"{number} {status}" for status, number in counts.items()))
    for table in tables:
        console.print(f"  {table.title}: {study.directory / 'tables' / table.id}.md")
    console.print(f"plots and conclusions: {study.directory / STUDY_FILE}")
    return 0 if counts["finished"] == len(study.cells) else 1
