"""Seconds until the command lines answer: ``python -m benchmarks.startup`` prints a table and writes startup.json, .md.

Each command is a process of its own, started in turns: its wall time, and its processor time, which other programs on
the machine hardly change.
"""

import os
import subprocess
import sys
import tempfile
import time
from statistics import median
from typing import Any

import tyro

from benchmarks.common import describe_machine, machine_line, take_turns, write_results

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
        training = ["agents.train", "--total-images", "1024", "--no-attack", "--threads", "1"]
        commands = {f"python -m {name} --help": ["-m", name, "--help"] for name in HELP}
        commands["python -c 'import torch'"] = ["-c", "import torch"]
        commands["python -m agents.train, 1,024 digits"] = ["-m", *training]
        cpu: dict[str, list[float]] = {name: [] for name in commands}

        def measure(name: str) -> float:
            before, start = os.times(), time.perf_counter()
            environment = os.environ | {"PYTHONPATH": os.getcwd()}
            command = [sys.executable, *commands[name]]
            subprocess.run(command, cwd=folder, env=environment, capture_output=True, check=True)
            wall, after = time.perf_counter() - start, os.times()
            cpu[name].append(
                after.children_user + after.children_system - before.children_user - before.children_system
            )
            return wall

        wall = take_turns(list(commands), measure, repeats)
    rows = [
        {"command": name, "cpu": median(cpu[name][1:]), "wall": median(wall[name]), "seconds": wall[name]}
        for name in commands
    ]
    machine = describe_machine()
    text = markdown(rows, machine)
    print(text)
    if write:
        write_results("startup", {"repeats": repeats, "machine": machine, "rows": rows}, text)


def markdown(rows: list[dict[str, Any]], machine: dict[str, Any]) -> str:
    """Return the results as a Markdown page."""
    lines = [
        "# Start-up: seconds until a command answers",
        "",
        "Whole processes, started in turns; medians. Processor time is what the command needs; wall time grows with "
        "the load of the machine.",
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
