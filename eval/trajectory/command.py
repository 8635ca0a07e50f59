"""The command line ``python -m eval.trajectory``: every snapshot of one or several runs, attacked alike."""

from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import tyro

from agents.common.command_line import run_cli
from agents.common.protocols import default_eps
from agents.common.run_dir import RunDir, resolve_device
from envs.errors import InputError
from eval.attack.autosave import Report
from eval.attack.runner import check_batch_size
from eval.core.formatting import print_table
from eval.core.options import DataOptions, progress_bar
from eval.core.threats import Threat, chosen_threat
from eval.robustness.suite import battery
from eval.trajectory.measure import ATTACKS, follow, snapshots
from eval.trajectory.outputs import alike, write_outputs
from eval.trajectory.record import SUFFIX, Trajectory, read_trajectories
from eval.trajectory.tables import summary_table, trajectory_tables, write_events


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


def trajectory_command(config: TrajectoryCommand) -> int:
    """Attack every snapshot of the runs; write table, figure, and all outcomes per image."""
    if not config.targets or not config.attacks:
        raise InputError(
            "no run or no attack given; name run directories with snapshots, and at least one attack"
        )
    check_batch_size(config.batch_size)
    if config.points is not None and config.points < 1:
        raise InputError(f"--points is {config.points}; expected at least 1, or leave it out")
    threat = chosen_threat(config.norm, config.eps, channels=1)
    assert threat is not None  # a norm is always given
    battery(config.attacks, [threat], config.seed)  # wrong names end here, before anything is loaded
    kept = [read_trajectories(Path(text)) for text in config.targets if text.endswith(SUFFIX)]
    runs = [RunDir.open(text) for text in config.targets if not text.endswith(SUFFIX)]
    trajectories = [trajectory for file in kept for trajectory in file]
    trajectories += [_follow(config, run, threat) for run in runs]
    for group in alike(trajectories):
        for trajectory in group:
            for table in trajectory_tables(trajectory):
                print_table(table)
        print_table(summary_table(group))
    out = config.out or (runs[0].results_dir / "trajectory" if runs else Path())
    write_outputs(out, trajectories, outcomes=bool(runs))
    print(f"figures: {out / 'trajectory.json'}\npicture: {out / 'trajectory.png'}")
    return 0


def _follow(config: TrajectoryCommand, run: RunDir, threat: Threat) -> Trajectory:
    def bar(label: str, total: int) -> AbstractContextManager[Report]:
        return progress_bar(label, total, config.progress)

    targets = snapshots(run, resolve_device(config.device), config.network, config.points)
    samples = config.data.load(next(iter(targets.values())))
    if config.eps is None:
        threat = Threat(threat.norm, default_eps(threat.norm, samples.channels))
    trajectory = follow(
        run,
        targets,
        samples,
        threat,
        config.attacks,
        seed=config.seed,
        batch_size=config.batch_size,
        force=config.force,
        bar=bar,
    )
    write_events(run.path / "trajectory", trajectory)
    return trajectory


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    return run_cli(trajectory_command, TrajectoryCommand, "python -m eval.trajectory", argv)
