"""Files of followed runs: figures as JSON, the picture, and every outcome per image."""

from collections.abc import Sequence
from pathlib import Path

from envs.files import write_json
from eval.core.plot_style import save_figure
from eval.trajectory.figure import trajectory_figure
from eval.trajectory.record import SUFFIX, Trajectory, write_trajectories
from eval.trajectory.tables import alike, scalars, summary_rows


def write_outputs(out: Path, trajectories: Sequence[Trajectory], outcomes: bool = True) -> None:
    """Write ``trajectory.json`` and ``.png`` into ``out``; ``outcomes``: also every outcome, as ``.json.xz``."""
    out.mkdir(parents=True, exist_ok=True)
    save_figure(out / "trajectory.png", trajectory_figure(trajectories))
    if outcomes:
        write_trajectories(out / f"trajectory{SUFFIX}", trajectories)
    rows = [
        {
            "name": item.name,
            "regime": item.regime,
            "seed": item.seed,
            "data": item.data | {"n": len(item.indices)},
            "threat": item.threat,
            "points": [{"images": point.images} | scalars(point) for point in item.points],
        }
        for item in trajectories
    ]
    ends = {group[0].title: summary_rows(group) for group in alike(trajectories)}
    write_json(out / "trajectory.json", {"format": 1, "trajectories": rows, "ends": ends})
