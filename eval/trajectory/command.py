"""The command line ``python -m eval.trajectory``: every snapshot of one or several runs, attacked alike."""

from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from agents.common.protocols import default_eps
from agents.common.run_dir import RunDir, resolve_device
from envs.errors import InputError
from eval.attack.runner import check_batch_size
from eval.core.formatting import print_table
from eval.core.progress import progress_bar
from eval.core.threats import Threat, chosen_threat
from eval.robustness.suite import battery
from eval.trajectory.measure import follow, snapshots
from eval.trajectory.options import TrajectoryCommand
from eval.trajectory.options import main as main
from eval.trajectory.outputs import alike, summary_table, trajectory_tables, write_events, write_outputs
from eval.trajectory.record import SUFFIX, Trajectory, read_trajectories


def trajectory_command(config: TrajectoryCommand) -> int:
    """Attack every snapshot of the runs; write table, figure, and all outcomes per image."""
    if not config.targets or not config.attacks:
        named = "name run directories with snapshots, and at least one attack"
        raise InputError(f"no run or no attack given; {named}")
    check_batch_size(config.batch_size)
    if config.points is not None and config.points < 1:
        raise InputError(f"--points is {config.points}; expected at least 1, or leave it out")
    threat = chosen_threat(config.norm, config.eps, channels=1)
    assert threat is not None  # a norm is always given
    battery(config.attacks, [threat], config.seed)  # wrong names end here, before anything is loaded
    kept = [read_trajectories(Path(text)) for text in config.targets if text.endswith(SUFFIX)]
    runs = [RunDir.open(text) for text in config.targets if not text.endswith(SUFFIX)]
    trajectories = [*chain(*kept), *(_follow(config, run, threat) for run in runs)]
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
    targets = snapshots(run, resolve_device(config.device), config.network, config.points)
    samples = config.data.load(next(iter(targets.values())))
    if config.eps is None:
        threat = Threat(threat.norm, default_eps(threat.norm, samples.channels))
    common: dict[str, Any] = {name: getattr(config, name) for name in ("seed", "batch_size", "force")}
    bar = partial(progress_bar, shown=config.progress)
    trajectory = follow(run, targets, samples, threat, config.attacks, bar=bar, **common)
    write_events(run.path / "trajectory", trajectory)
    return trajectory
