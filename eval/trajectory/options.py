"""The command line ``python -m eval.trajectory``: its options."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import tyro

from agents.common.command_line import run_cli
from eval.core.options import DataOptions

ATTACKS = ("pgd-paper", "pgd-cleverhans", "pgd", "pgd-mifpe", "fast")


@dataclass(frozen=True)
class TrajectoryCommand:
    """Attack every snapshot of runs trained with --snapshots; show what is reported against what is left."""

    FIRST: ClassVar = "attacks norm eps data.n points seed device out force progress"

    targets: tyro.conf.Positional[tuple[str, ...]]
    """Run directories with snapshots, or trajectory.json.xz files of earlier calls: these are only shown again."""
    attacks: tuple[str, ...] = ATTACKS
    """Attacks by name, as for eval.robustness."""
    norm: str = "L2"
    """Linf, L2 or L1."""
    eps: str | None = None
    """Radius, a number or a fraction such as 8/255. Default: by the kind of image."""
    data: tyro.conf.OmitArgPrefixes[DataOptions] = field(default_factory=lambda: DataOptions(n=200))
    points: int | None = None
    """Attack so many of the snapshots, spread from the first to the last. Default: all."""
    seed: int = 0
    """Seed of the attacks' random draws."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    batch_size: int | None = None
    """Most images at once. Default: chosen by image size and device."""
    network: str | None = None
    """package.module:Callable that builds your own network, where weights alone are not enough."""
    out: Path | None = None
    """Where trajectory.json, .json.xz and .png go. Default: results/trajectory of the first run."""
    force: bool = False
    """Attack again even where results are stored."""
    progress: bool = True
    """Show progress bars."""


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    return run_cli(
        "eval.trajectory.command:trajectory_command", TrajectoryCommand, "python -m eval.trajectory", argv
    )
