"""What was found at every snapshot of a run, per image, and the file that keeps it."""

import lzma
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from envs.errors import InputError
from envs.files import write_atomic
from eval.core.records import FORMAT, decode

SUFFIX = ".json.xz"
# The paper's call may leave [0, 1]: its points are no images of the threat model, so it breaks nothing here.
OUTSIDE = "pgd-paper"
_DIGITS = 4  # significant ones of what is measured per image: rounding of kernels changes those after them


class Outcome(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One attack, by name, norm, radius and every option, on one snapshot.

    ``robust``: a character per image: 1 where it is classified correctly under the attack, else 0; ``shortened``: per
    image, the share of steps that the floor of the cleverhans protocol shortened.
    """

    robust: str
    attack: dict[str, Any]
    shortened: list[float] | None = None


class Point(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One snapshot after so many ``images`` of training, with the SHA-256 of its weights.

    ``clean``: a character per image: 1 where it is classified correctly, else 0; ``attacks``: by the names that reports
    use; ``indicators``: per image, see `eval.trajectory.measure`, None where undefined.
    """

    images: int
    sha256: str
    clean: str
    attacks: dict[str, Outcome]
    indicators: dict[str, list[float | None]]

    @property
    def left(self) -> str:
        """What every attack inside the box leaves: the worst case per image."""
        inside = (outcome for name, outcome in self.attacks.items() if name != OUTSIDE)
        return worst([outcome.robust for outcome in inside if outcome.attack.get("box", True)])

    def shortened(self, name: str) -> float | None:
        """Return the mean share of shortened steps of an attack, None where it has none."""
        outcome = self.attacks.get(name)
        return None if outcome is None or outcome.shortened is None else float(np.mean(outcome.shortened))

    def indicator(self, name: str, how: str = "median") -> float | None:
        """Return median or mean of an indicator over the images for which it is defined."""
        values = [value for value in self.indicators.get(name, ()) if value is not None]
        return float(getattr(np, how)(values)) if values else None


class Trajectory(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A run followed through training, its points in the order of training.

    ``regime``: such as ``RL`` or ``SL-PGD``; ``threat``: as text, such as ``L2 1.5``; ``data``: ``dataset``, ``split``
    and ``fingerprint``; ``indices``: of the attacked images in the split; ``config``: the training's settings.
    """

    name: str
    regime: str
    seed: int
    threat: str
    data: dict[str, Any]
    indices: list[int]
    config: dict[str, Any]
    versions: dict[str, str]
    points: list[Point]

    @property
    def title(self) -> str:
        """Data set, network and threat model: trajectories that may share a figure have the same."""
        return f"{self.data['dataset']}, {self.config.get('network')}, {self.threat}"

    def __post_init__(self) -> None:
        n = len(self.indices)
        for point in self.points:
            outcomes = point.attacks.values()
            rows = [point.clean, *(outcome.robust for outcome in outcomes)]
            columns: list[Any] = [*rows, *point.indicators.values()]
            columns += [outcome.shortened for outcome in outcomes if outcome.shortened is not None]
            if not n or any(len(column) != n for column in columns) or not set("".join(rows)) <= {"0", "1"}:
                where = f"{self.name} at {point.images} images"
                raise ValueError(f"{where} lacks one outcome for each of {n} images")


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: int
    trajectories: list[Trajectory]


def worst(rows: Sequence[str]) -> str:
    """Return 1 for every image that all of the ``rows`` leave standing."""
    return "".join("1" if set(column) == {"1"} else "0" for column in zip(*rows, strict=True))


def rounded(values: Sequence[float]) -> list[float | None]:
    """Return numbers with four significant digits, None for those that are not finite."""
    return [float(f"{value:.{_DIGITS}g}") if np.isfinite(value) else None for value in values]


def write_trajectories(path: Path, trajectories: Sequence[Trajectory]) -> None:
    """Write everything, per image, as compressed JSON, atomically."""
    content = msgspec.json.encode(_File(FORMAT, list(trajectories)))
    write_atomic(path, lzma.compress(content, preset=9))


def read_trajectories(path: Path) -> list[Trajectory]:
    """Read what `write_trajectories` wrote; errors as `eval.core.records.decode`, and where it cannot be read."""
    try:
        content = lzma.decompress(path.read_bytes())
    except OSError as error:
        expected = "expected a file of eval.trajectory"
        raise InputError(f"cannot read {path}: {error.strerror}; {expected}") from None
    except (lzma.LZMAError, EOFError) as error:
        raise InputError(f"{path} is no file of eval.trajectory ({error}); write it again") from None
    return decode(content, _File, str(path)).trajectories
