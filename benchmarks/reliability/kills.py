"""Kill -9 at random moments, resume, and compare with an undisturbed run: ``python -m benchmarks.reliability.kills``.

Every job runs in a process of its own, forked from this one so that the moments fall on the work and not on imports.
It is killed at a moment drawn uniformly over the time that the whole job takes, then started again as a user would,
up to ``MOST_KILLS`` times a trial; after the last it may finish. Then everything that it left must equal what the
uninterrupted job left, bit by bit, times and dates apart.
"""

import argparse
import contextlib
import io
import json
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from agents.adversarial_config import AdversarialConfig
from agents.training.run import resume, train
from benchmarks.reliability.page import record
from eval.attack import autosave as watch
from eval.attack import command as attack
from eval.robustness import command as robustness
from eval.study import command as study
from tests.support.agent_runs import CASES, assert_same_runs, same, short

MOST_KILLS = 3
_CLOCK = ("created", "updated", "seconds", "images_per_second")
_SECONDS = ("train", "attacks")  # in the table of a study's cost
_ADVERSARIAL = {
    "supervised, adversarial pgd": {
        "algo": "supervised",
        "adversarial": AdversarialConfig(method="pgd", steps=3),
    },
    "epg, adversarial fgsm": {"algo": "epg", "adversarial": AdversarialConfig(method="fgsm")},
    "ppo, adversarial pgd": CASES["ppo"] | {"adversarial": AdversarialConfig(method="pgd", steps=3)},
    "supervised, trades": {"algo": "supervised", "adversarial": AdversarialConfig(method="trades", steps=3)},
}


@dataclass(frozen=True)
class Job:
    """Something that can be killed: ``work(folder)`` starts or continues it, ``compare(found, whole)`` asserts."""

    work: Callable[[Path], object]
    compare: Callable[[Path, Path], None]


def training(case: str) -> Job:
    """Return the training run of this name, from the suite's cases or adversarial."""

    def work(folder: Path) -> None:
        path = folder / "run"
        if (path / "config.json").exists():
            resume(path, progress=False)
            return
        shutil.rmtree(path, ignore_errors=True)
        options = {"probe_images": 32} | _ADVERSARIAL[case] if case in _ADVERSARIAL else {}
        train(short(path, "supervised" if options else case, **options))

    return Job(work, lambda found, whole: assert_same_runs(found / "run", whole / "run"))


def attacking(*arguments: str, command: Callable[[list[str]], int] = attack.main) -> Job:
    """Return a command of the evaluation on the suite's linear classifier of the digits."""

    def work(folder: Path) -> None:
        place = "--results-dir" if command is attack.main else "--out"
        data = ["--dataset", "digits", "--no-progress", "--device", "cpu", place, str(folder / "r")]
        status = command(["tests.eval.test_attack:nearest_mean", *arguments, *data])
        if status != 0:
            raise RuntimeError(f"exit status {status}")

    def chdir_work(folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        with contextlib.chdir(folder):  # results of models by import path lie under the present directory
            work(folder)

    return Job(chdir_work, assert_same_results)


STUDY = """
name = "killed"
datasets = ["digits"]
networks = ["mlp"]
threats = ["Linf 0.1"]
attacks = ["fgsm", "pgd"]
attack.pgd = {steps = 5}
images = 24
train = {total_images = 600, batch_size = 50, eval_every = 200, threads = 1}
mechanism = {images = 10, steps = 4, resolution = 5}
audit = {mode = "none"}
[regimes]
SL = {algo = "supervised"}
RL = {algo = "reinforce"}
"""


def studying() -> Job:
    """Return a study of two regimes in one process."""

    def work(folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        (folder / "killed.toml").write_text(STUDY)
        status = study.main([str(folder / "killed.toml"), "--out", str(folder / "study"), "--device", "cpu"])
        if status != 0:
            raise RuntimeError(f"exit status {status}")

    return Job(work, assert_same_results)


def assert_same_results(found: Path, whole: Path) -> None:
    """Assert that two folders hold the same result files and images, and nothing unfinished."""
    names, expected = _names(found), _names(whole)
    assert names == expected, sorted(set(names) ^ set(expected))
    for name in names:
        if name.suffix == ".json":
            first, second = (_timeless(_read(folder, name)) for folder in (found, whole))
            assert first == second, name
        elif name.suffix == ".safetensors":
            assert same(load_file(found / name), load_file(whole / name)), name


def _read(folder: Path, name: Path) -> Any:
    """Return what a JSON file holds, the job's own folder called the same in all."""
    return json.loads((folder / name).read_text().replace(str(folder), "FOLDER"))


def _names(folder: Path) -> list[Path]:
    """Return the relative paths of the files; those of TensorBoard and locks bear process numbers, or nothing."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return sorted(
        path.relative_to(folder) for path in files if not path.name.startswith(("events.out", ".lock"))
    )


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        kept = (key for key in value if key not in _CLOCK)
        return {
            key: _timeless(value[key]) for key in kept if not (key in _SECONDS and type(value[key]) is float)
        }
    return [_timeless(item) for item in value] if isinstance(value, list) else value


def jobs() -> dict[str, Job]:
    """Return everything that is killed, by name."""
    pgd = (
        "--attack",
        "pgd",
        "--norm",
        "L2",
        "--eps",
        "0.6",
        "--steps",
        "20",
        "--n",
        "96",
        "--batch-size",
        "16",
    )
    auto = ("--attack", "autoattack", "--norm", "Linf", "--eps", "0.15", "--n", "12", "--batch-size", "4")
    square = ("--attack", "square", "--norm", "Linf", "--eps", "0.1", "--n", "64", "--batch-size", "16")
    battery = ("--attacks", "fgsm", "pgd", "--n", "64", "--batch-size", "16")
    return {
        **{f"train {case}": training(case) for case in (*CASES, *_ADVERSARIAL)},
        "attack pgd": attacking(*pgd, "--save-images"),
        "attack square": attacking(*square, "--queries", "300"),
        "attack autoattack": attacking(*auto, "--set", "version=fast"),
        "robustness": attacking(*battery, command=robustness.main),
        "study": studying(),
    }


def work_in_child(job: Job, folder: Path) -> None:
    """Do the job in this process; what it prints goes into the folder beside its own."""
    torch.set_num_threads(1)
    # Save the state of staged attacks after every batch: more moments at which to fail.
    watch.LEAST_SECONDS = 0.0
    watch.SHARE = 1e9
    with open(folder.with_suffix(".log"), "w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        try:
            job.work(folder)
            sys.stdout.flush()
        except BaseException:
            traceback.print_exc(file=log)
            log.flush()
            os._exit(1)
        os._exit(0)


@dataclass
class Trials:
    """What became of the trials of one job."""

    seconds: float
    kills: int = 0
    trials: int = 0
    failures: list[str] = field(default_factory=list)


def run_child(job: Job, folder: Path, seconds: float | None = None) -> bool:
    """Run the job in a process that is killed after ``seconds``; return whether it was killed before it ended.

    Raises:
        RuntimeError: it ended by itself, badly; the message is what it printed.
    """
    process = multiprocessing.get_context("fork").Process(target=work_in_child, args=(job, folder))
    process.start()
    process.join(seconds)
    killed = process.is_alive()
    process.kill()
    process.join()
    if not killed and process.exitcode != 0:
        raise RuntimeError(folder.with_suffix(".log").read_text()[-2000:])
    return process.exitcode == -9


def torment(job: Job, kills: int, draws: random.Random, scratch: Path) -> Trials:
    """Kill the job ``kills`` times over as many trials as that takes, and compare each with the untouched one."""
    whole = scratch / "whole"
    with contextlib.redirect_stdout(io.StringIO()):
        job.work(scratch / "warm")  # here: imports what the children would import at their start
    start = time.perf_counter()
    run_child(job, whole)
    trials = Trials(time.perf_counter() - start)
    while trials.kills < kills:
        folder = scratch / f"trial{trials.trials}"
        before, allowed = trials.kills, min(draws.randint(1, MOST_KILLS), kills - trials.kills)
        try:
            while trials.kills - before < allowed and run_child(
                job, folder, draws.uniform(0, trials.seconds)
            ):
                trials.kills += 1
            run_child(job, folder)
            job.compare(folder, whole)
        except (AssertionError, RuntimeError) as error:
            trials.failures.append(f"{type(error).__name__}: {error}")
            shutil.copytree(folder, Path(tempfile.mkdtemp(prefix="kill-")) / "failed", dirs_exist_ok=True)
        trials.trials += 1
        shutil.rmtree(folder, ignore_errors=True)
    return trials


def table(found: dict[str, Trials], seconds: float, seed: int) -> str:
    """Return the section of the report."""
    kills, failures = (
        sum(values) for values in zip(*((t.kills, len(t.failures)) for t in found.values()), strict=True)
    )
    lines = [
        "## Kill -9 at random moments",
        "",
        f"`python -m benchmarks.reliability.kills --seed {seed}`: {kills} kills in {seconds:.0f} s; after them "
        f"{sum(t.trials for t in found.values())} jobs were resumed to their end, and {failures} differed from the "
        "uninterrupted one in weights, optimiser, random state, data order, metrics, TensorBoard curves or results.",
        "",
        "| job | seconds, uninterrupted | jobs killed | kills | different |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, trial in found.items():
        lines.append(
            f"| {name} | {trial.seconds:.1f} | {trial.trials} | {trial.kills} | {len(trial.failures)} |"
        )
    return "\n".join(lines)


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=10, help="of each job")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--only", default="", help="jobs whose names contain this; nothing is recorded then")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found, start = {}, time.perf_counter()
    for name, job in jobs().items():
        if options.only not in name:
            continue
        with tempfile.TemporaryDirectory() as scratch:
            found[name] = torment(job, options.kills, random.Random(f"{options.seed} {name}"), Path(scratch))
        print(f"{name}: {found[name]}", flush=True)
    seconds = time.perf_counter() - start
    text = table(found, seconds, options.seed)
    print(text)
    if not options.only:
        record(
            "kills",
            {"seconds": seconds, "jobs": {name: vars(trials) for name, trials in found.items()}},
            text,
        )
    return int(any(trials.failures for trials in found.values()))


if __name__ == "__main__":
    sys.exit(main())
