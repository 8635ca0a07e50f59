"""Seconds until the command lines answer: ``python -m benchmarks.startup`` prints a table and writes startup.json, .md.

Each command is a process of its own, started in turns: its wall time, and its processor time, which other programs on
the machine hardly change. A training runs on a pseudo-terminal (Linux), to see when its first line and its bar appear.
"""

import os
import pty
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any, BinaryIO

import tyro

from benchmarks.common import describe_machine, machine_line, take_turns, write_results

TRAINING = "python -m agents.train --algo ppo, 1,024 digits"
HELP = (
    "agents.train",
    "attacks",
    *(
        f"eval.{name}"
        for name in (
            "robustness",
            "transfer",
            "mechanism",
            "audit",
            "study",
            "report",
            "export",
            "trajectory",
        )
    ),
)


def main(repeats: int = 5, write: bool = True) -> None:
    """Time the help of every command, the import of PyTorch alone, and a training of 1,024 digits.

    Args:
        repeats: runs of each, after one that is not counted.
        write: write ``docs/results/startup.json`` and ``startup.md``.
    """
    with tempfile.TemporaryDirectory() as folder:
        commands = {f"python -m {name} --help": ["-m", name, "--help"] for name in HELP}
        commands["python -c 'import torch'"] = ["-c", "import torch"]
        commands[TRAINING] = ["-m", "agents.train", "--algo", "ppo", "--total-images", "1024"]
        commands[TRAINING] += ["--no-attack", "--threads", "1"]
        measured: dict[str, list[tuple[float, float]]] = {}

        def measure(name: str) -> float:
            environment = os.environ | {"PYTHONPATH": os.getcwd(), "COLUMNS": "120"}
            for moment, seconds in _run([sys.executable, *commands[name]], folder, environment).items():
                if moment == "end" or name == TRAINING:
                    row = name if moment == "end" else f"{name}: {moment}"
                    measured.setdefault(row, []).append(seconds)
            return measured[name][-1][1]

        take_turns(list(commands), measure, repeats)
    rows = [
        {
            "command": name,
            "cpu": median(cpu for cpu, _ in runs[1:]),
            "wall": median(wall for _, wall in runs[1:]),
            "seconds": [wall for _, wall in runs[1:]],
        }
        for name, runs in measured.items()
    ]
    machine = describe_machine()
    text = markdown(rows, machine)
    print(text)
    if write:
        write_results("startup", {"repeats": repeats, "machine": machine, "rows": rows}, text)


def _run(command: list[str], folder: str, environment: dict[str, str]) -> dict[str, tuple[float, float]]:
    """Run ``command`` on a pseudo-terminal; return processor and wall seconds until each moment that comes.

    Moments: "first line", whatever it is; "progress bar"; "end".
    """
    screen, terminal = pty.openpty()
    before, start = os.times(), time.perf_counter()
    streams = {"stdin": terminal, "stdout": terminal, "stderr": terminal}
    process = subprocess.Popen(command, cwd=folder, env=environment, **streams)  # type: ignore[call-overload]
    os.close(terminal)
    moments: dict[str, tuple[float, float]] = {}
    with open(screen, "rb", buffering=0) as output:
        while text := _read(output):
            so_far = _processor_seconds(process.pid), time.perf_counter() - start
            moments.setdefault("first line", so_far)
            if b"images/s" in text:
                moments.setdefault("progress bar", so_far)
    if process.wait():
        raise RuntimeError(f"{' '.join(command)} ended with status {process.returncode}")
    wall, after = time.perf_counter() - start, os.times()
    user, system = (
        getattr(after, name) - getattr(before, name) for name in ("children_user", "children_system")
    )
    return moments | {"end": (user + system, wall)}


def _read(output: BinaryIO) -> bytes:
    try:
        return output.read(65536)
    except OSError:  # Linux's way to say that the other end is closed
        return b""


def _processor_seconds(pid: int) -> float:
    """Return what the running process has used (Linux)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def markdown(rows: list[dict[str, Any]], machine: dict[str, Any]) -> str:
    """Return the results as a Markdown page."""
    lines = [
        "# Start-up: seconds until a command answers",
        "",
        "Whole processes, started in turns; medians. Processor time is what the command needs; wall time grows with "
        "the load of the machine. The training first says what it loads, then shows its bar, and then builds the "
        "network: PyTorch's optimisers import its compiler.",
        "",
        "| command | processor s | wall s |",
        "| --- | ---: | ---: |",
        *(f"| `{row['command']}` | {row['cpu']:.2f} | {row['wall']:.2f} |" for row in rows),
        "",
        machine_line(machine),
        "",
        "Repeat with `python -m benchmarks.startup`.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    tyro.cli(main)
