"""Snapshots: weights saved at chosen moments of training, to follow robustness over time."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback

from agents.common.run_dir import RunDir
from agents.config import TrainConfig
from agents.models.classifier_files import save_classifier
from agents.models.extraction import extract_classifier
from agents.training.schedule import phase_ends
from envs.errors import InputError

MAX_SNAPSHOTS = 100
MAX_BYTES = 4 * 2**30  # of all snapshots of a run together
_EXPECTED = "expected a number of snapshots such as 12, or passes such as 1,5,20"


def snapshot_moments(config: TrainConfig, train_size: int) -> list[int]:
    """Return the images seen, in rising order, at which ``config.snapshots`` asks for one.

    A whole number N asks for N snapshots spaced evenly in the logarithm, from one pass to the end; a list with
    commas names passes over the training set.

    Raises:
        InputError: the option cannot be read, asks for too many, or for one after the end.
    """
    option = config.snapshots
    if option is None:
        return []
    total = phase_ends(config, train_size)[-1]
    if re.fullmatch(r"\s*\d{1,9}\s*", option):
        count = int(option)
        moments = [float(total)]
        if 1 < count <= MAX_SNAPSHOTS:
            moments = np.geomspace(min(train_size, total), total, count).tolist()
    else:
        try:
            passes = [float(part) for part in option.split(",") if part.strip()]
        except ValueError:
            passes = []
        if not passes or not all(0 < value < float("inf") for value in passes):
            raise InputError(f"--snapshots is {option!r}; {_EXPECTED}")
        count, moments = len(passes), [value * train_size for value in passes]
        if max(moments) > total:
            raise InputError(
                f"--snapshots asks for {max(passes):g} passes, and training ends after {total / train_size:g}; "
                "expected no more than that"
            )
    if not 1 <= count <= MAX_SNAPSHOTS:
        raise InputError(f"--snapshots asks for {count}; expected 1 to {MAX_SNAPSHOTS}")
    return sorted({max(round(moment), 1) for moment in moments})


def check_size(moments: Sequence[int], size: int) -> None:
    """Refuse snapshots of ``size`` bytes each that would fill the disk.

    Raises:
        InputError: they need more than 4 GiB together.
    """
    if (needed := len(moments) * size) > MAX_BYTES:
        problem = f"--snapshots needs {needed / 2**30:.1f} GiB for {len(moments)} snapshots of this network"
        raise InputError(f"{problem}; expected at most {MAX_BYTES / 2**30:g} GiB: ask for fewer")


def snapshot_paths(run: RunDir) -> dict[int, Path]:
    """Return the file of each snapshot in the run by the number of images seen, in rising order."""
    found = run.snapshots_dir.glob("*.safetensors")
    return {int(path.stem): path for path in sorted(found) if path.stem.isdecimal()}


class SnapshotCallback(BaseCallback):
    """Keeps the weights at the first rollout that starts at or after each moment.

    It must act before the checkpoint of the same moment is written: a run that is continued from there lacks none. They
    are kept as ``snapshots/<images seen>.safetensors``, which :func:`agents.load_classifier` reads. ``moments``: images
    seen, rising, from :func:`snapshot_moments`; ``begun``: images that the run has already seen: snapshots from after
    that are of a future that will be trained again, and are deleted.
    """

    def __init__(self, run: RunDir, moments: Sequence[int], begun: int = 0) -> None:
        super().__init__()
        self.run = run
        self.pending = [moment for moment in moments if moment > begun]
        for images, path in snapshot_paths(run).items():
            if images > begun:
                path.unlink()

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        self.keep()

    def keep(self) -> None:
        """Write a snapshot if one is due."""
        images = self.model.num_timesteps
        if not self.pending or images < self.pending[0]:
            return
        self.pending = [moment for moment in self.pending if moment > images]
        self.run.snapshots_dir.mkdir(exist_ok=True)
        path = self.run.snapshots_dir / f"{images:012d}.safetensors"
        save_classifier(extract_classifier(self.model.policy), path)
