"""Shared by the benchmarks: fair timing, a description of the machine, and result files."""

import contextlib
import multiprocessing
import os
import platform
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from agents.common.precision import uses_tf32
from benchmarks.packages import version_of
from envs.files import read_json, write_atomic, write_json

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results"
PACKAGES = ("torch", "numpy", "gymnasium", "stable-baselines3", "labelbandit")


def interleave(work: Mapping[str, Callable[[], object]], repeats: int = 7) -> dict[str, list[float]]:
    """Return the seconds that each callable took, ``repeats`` times each, after one untimed call.

    The callables take turns, beginning with another one each round, so that a slow phase of a shared machine meets
    them all; compare medians. Work on a GPU is waited for.
    """
    return take_turns(list(work), lambda name: timed(work[name]), repeats)


def take_turns(names: list[str], measure: Callable[[str], float], repeats: int) -> dict[str, list[float]]:
    """Measure every name once untimed and then ``repeats`` times, beginning with another one each round."""
    for name in names:
        measure(name)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(repeats):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            seconds[name].append(measure(name))
    return seconds


def timed(work: Callable[[], object]) -> float:
    """Return the seconds that ``work`` took; work on a GPU is waited for."""
    _wait()
    start = time.perf_counter()
    work()
    _wait()
    return time.perf_counter() - start


class Side:
    """Contestants in a process of their own, so that what they set for their process is theirs alone.

    Args:
        build: a function of a module that returns the contestants by name; runs in the new process.
        *arguments: its arguments.
    """

    def __init__(self, build: Callable[..., Mapping[str, Callable[[], object]]], *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, build, arguments))
        self._process.start()
        theirs.close()
        self.names: list[str] = self._pipe.recv()

    def measure(self, name: str) -> float:
        """Return the seconds that a contestant took."""
        self._pipe.send(name)
        return self._pipe.recv()

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join()


def _serve(pipe: Connection, build: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    work = build(*arguments)
    pipe.send(list(work))
    with contextlib.suppress(EOFError):
        while True:
            pipe.send(timed(work[pipe.recv()]))


def describe_machine() -> dict[str, Any]:
    """Return the processor, cores, threads, load, GPU, system and package versions, ready for JSON.

    The load is the mean number of running processes over the last minute: more than the cores slows every measurement.
    """
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "tf32": uses_tf32() if torch.cuda.is_available() else None,
        "versions": {package: version_of(package) for package in PACKAGES},
    }


def machine_line(machine: Mapping[str, Any]) -> str:
    """Return the machine in one line of Markdown."""
    packages = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    gpu = f", {machine['gpu']}" if machine["gpu"] else ""
    if machine.get("tf32") is not None:
        gpu += f", TF32 {'on' if machine['tf32'] else 'off'}"
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['torch_threads']} threads, "
        f"load {machine['load']}{gpu}; "
        f"Python {machine['python']}, {packages}."
    )


def kept(path: Path, measure: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    """Return the measurement in the JSON file ``path``, measured and written first if it is missing."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, measure())
    return read_json(path)


def write_results(name: str, payload: Mapping[str, Any], markdown: str) -> tuple[Path, Path]:
    """Write ``docs/results/NAME.json`` and ``NAME.md``; return both paths. The date is added to the payload."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    data, text = RESULTS / f"{name}.json", RESULTS / f"{name}.md"
    write_json(data, {**payload, "created": datetime.now(UTC).isoformat(timespec="seconds")})
    write_atomic(text, markdown.rstrip() + "\n")
    return data, text


def read_results(name: str) -> dict[str, Any]:
    """Return what ``write_results`` wrote to ``NAME.json``."""
    return read_json(RESULTS / f"{name}.json")


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(
        (model for model in models if model and model != "unknown"), platform.processor() or "unknown CPU"
    )


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
