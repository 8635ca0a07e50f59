"""Shared by kills, soak, fuzz and large: one result file with a section each."""

from collections.abc import Mapping
from typing import Any

from benchmarks.common import RESULTS, describe_machine, machine_line, read_results, write_results
from envs.errors import InputError

NAME = "reliability"
ORDER = ("kills", "soak", "fuzz", "large")


def record(section: str, figures: Mapping[str, Any], markdown: str) -> None:
    """Put one section into ``docs/results/reliability.{json,md}``; the others stay as they are."""
    try:
        stored = read_results(NAME)
    except InputError:
        stored = {}
    machine = describe_machine()
    stored[section] = {"machine": machine, "figures": dict(figures), "text": markdown.strip()}
    parts = ["# Reliability: measured"]
    parts += [
        f"{stored[key]['text']}\n\n{machine_line(stored[key]['machine'])}" for key in ORDER if key in stored
    ]
    write_results(NAME, stored, "\n\n".join(parts))
    print(f"written: {RESULTS / NAME}.md")
