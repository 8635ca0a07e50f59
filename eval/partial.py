"""Finished parts of an unfinished evaluation, so that a killed one goes on where it stopped."""

import contextlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from envs.files import write_atomic

REQUIRED = ("success", "clean_correct", "distance", "queries", "backwards", "broken_by")


@dataclass(frozen=True)
class Part:
    """Outcomes of the samples ``start <= row < stop``.

    Attributes:
        start: first row.
        stop: one past the last row.
        columns: per-sample tensors on the CPU; ``broken_by`` holds positions in ``names``, -1 for survivors.
        names: of the attacks that ``broken_by`` refers to.
        seconds: what the part took.
    """

    start: int
    stop: int
    columns: dict[str, Tensor]
    names: tuple[str, ...]
    seconds: float


class PartialStore:
    """A folder with one file per finished part, each written atomically and checked when read.

    The folder's name contains the hash of the configuration, so parts of other configurations never meet.

    Args:
        folder: where the parts lie; made when the first is written.
        required: columns without which a part counts as missing.
    """

    def __init__(self, folder: Path, required: tuple[str, ...] = REQUIRED) -> None:
        self.folder = folder
        self.required = required

    def write(self, part: Part) -> None:
        """Keep one part."""
        self.folder.mkdir(parents=True, exist_ok=True)
        columns = {name: values.contiguous() for name, values in part.columns.items()}
        facts = {"names": json.dumps(part.names), "seconds": repr(part.seconds)}
        path = self.folder / f"rows-{part.start:08d}-{part.stop:08d}.safetensors"
        write_atomic(path, save(columns, facts))

    def read(self, n: int) -> list[Part]:
        """Return the sound parts among rows 0..n-1, in order and disjoint; damaged files are left out."""
        parts: list[Part] = []
        for path in sorted(self.folder.glob("rows-*.safetensors")):
            part = self._read_one(path)
            if part is not None and part.stop <= n and (not parts or part.start >= parts[-1].stop):
                parts.append(part)
        return parts

    def _read_one(self, path: Path) -> Part | None:
        try:
            start, stop = (int(text) for text in path.stem.split("-")[1:])
            with safe_open(path, "pt") as file:
                columns = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
                facts = file.metadata()
            part = Part(start, stop, columns, tuple(json.loads(facts["names"])), float(facts["seconds"]))
        except (OSError, SafetensorError, ValueError, KeyError, TypeError):
            return None
        sound = all(name in columns for name in self.required)
        return part if sound and all(len(values) == stop - start for values in columns.values()) else None

    def remove(self) -> None:
        """Delete the parts, and the folder above them when nothing else is there."""
        shutil.rmtree(self.folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            self.folder.parent.rmdir()


def gaps(parts: list[Part], n: int, size: int) -> Iterator[slice]:
    """Yield slices of at most ``size`` rows that cover what the ordered ``parts`` leave of 0..n-1."""
    position = 0
    for begin, end in [*((part.start, part.stop) for part in parts), (n, n)]:
        for start in range(position, begin, size):
            yield slice(start, min(start + size, begin))
        position = end


def joined(parts: list[Part]) -> tuple[dict[str, Tensor], list[str | None], float]:
    """Return the columns of all parts in row order, the names in ``broken_by``, and the seconds they took.

    Columns that not every part has are left out.
    """
    parts = sorted(parts, key=lambda part: part.start)
    shared = [name for name in parts[0].columns if all(name in part.columns for part in parts)]
    columns = {name: torch.cat([part.columns[name] for part in parts]) for name in shared}
    broken_by = [
        part.names[code] if code >= 0 else None
        for part in parts
        for code in part.columns["broken_by"].tolist()
    ]
    return columns, broken_by, sum(part.seconds for part in parts)
