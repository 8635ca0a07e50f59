"""The command line ``python -m eval.study``: its options."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import tyro

from agents.common.command_line import run_cli


@dataclass(frozen=True)
class StudyCommand:
    """Train what is missing of a grid, attack, analyse and audit it, and write the tables."""

    FIRST: ClassVar = "out data_root device engine workers address gpus shards retries dry_run"

    study: tyro.conf.Positional[str]
    """smoke, digits, regimes, exploration, front, mnist, cifar10, cifar10-long, cifar10-networks, cifar100, stl10,
    imagenet100, or a TOML file."""
    out: Path | None = None
    """Directory of the study. Default: studies/<name>."""
    data_root: Path | None = None
    """Where data sets lie. Default: the study's, else $LABELBANDIT_DATA or ~/.cache/labelbandit/data."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    engine: Literal["in-process", "pool", "ray"] = "in-process"
    """One job after another; several processes; or Ray, on one machine or many."""
    workers: int = 2
    """Processes of the pool, or of a local Ray cluster."""
    address: str | None = None
    """Ray cluster to join, such as auto or ray://HOST:10001. Default: a local one for this study."""
    cpus: float = 1.0
    """Ray: cores that a job holds."""
    gpus: float | None = None
    """Ray: GPUs that a job holds; 0.25 lets four share one. Default: those of the cluster are dealt evenly; with
    --device cpu none."""
    shards: int = 1
    """Divide the attacked images of every model among so many jobs; the outcome is the same."""
    retries: int = 1
    """Further attempts at a job that failed, or whose worker died."""
    batch_size: int | None = None
    """Most images at once in attacks. Default: chosen by image size and device."""
    dry_run: bool = False
    """Print the plan with its estimated cost, and stop."""


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    return run_cli("eval.study.command:study_command", StudyCommand, "python -m eval.study", argv)
