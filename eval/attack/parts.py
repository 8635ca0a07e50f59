"""Finished parts of an unfinished evaluation, so that a killed one goes on where it stopped."""

import contextlib
import fcntl
import io
import os
import shutil
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from envs.errors import InputError
from envs.files import write_atomic

_STATE = "state.pt"
REQUIRED = ("success", "clean_correct", "distance", "queries", "backwards", "broken_by")


class _Words(msgspec.Struct):
    """What the file of a part says beside its columns."""

    names: tuple[str, ...]
    warnings: tuple[str, ...]
    seconds: float


@dataclass(frozen=True)
class Part:
    """Outcomes of the samples ``start <= row < stop``."""

    start: int  #: first row
    stop: int  #: one past the last row
    #: per-sample tensors on the CPU; ``broken_by`` holds positions in ``names``, -1 for survivors
    columns: dict[str, Tensor]
    names: tuple[str, ...]  #: of the attacks that ``broken_by`` refers to
    seconds: float  #: what the part took
    warnings: tuple[str, ...] = ()  #: what the attack found doubtful

    @property
    def broken_by(self) -> tuple[str | None, ...]:
        """Per sample, the attack that broke it, or None."""
        return tuple(self.names[code] if code >= 0 else None for code in self.columns["broken_by"].tolist())


@dataclass
class PartialStore:
    """A folder with one file per finished part, each written atomically and checked when read.

    The folder's name contains the hash of the configuration, so parts of other configurations never meet.
    """

    folder: Path  #: where the parts lie; made when the first is written
    required: tuple[str, ...] = REQUIRED  #: columns without which a part counts as missing

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """Keep other processes from the same work until this one ends, however it does; InputError: one is at it."""
        handle = self._lock_folder()
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # not empty: the parts stay for the next call
                self.folder.rmdir()
                self.folder.parent.rmdir()
            os.close(handle)

    def _lock_folder(self) -> int:
        while True:
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                handle = os.open(self.folder, os.O_RDONLY)
            except FileNotFoundError:  # the process that held it has just finished and removed it
                continue
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(handle)
                path = self.folder.parent.parent / f"{self.folder.name}.json"
                remedy = "wait for it, or choose another --results-dir"
                raise InputError(f"another process is making {path}; {remedy}") from None
            if os.fstat(handle).st_nlink:
                return handle
            os.close(handle)  # removed between opening and locking

    def write(self, part: Part) -> None:
        """Keep one part."""
        self.folder.mkdir(parents=True, exist_ok=True)
        columns = {name: values.contiguous() for name, values in part.columns.items()}
        words = msgspec.json.encode(_Words(part.names, part.warnings, part.seconds))
        path = self.folder / f"rows-{part.start:08d}-{part.stop:08d}.safetensors"
        write_atomic(path, save(columns, {"words": words.decode()}))

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
                words = msgspec.json.decode(file.metadata()["words"], type=_Words)
        except (OSError, SafetensorError, ValueError, KeyError, TypeError):  # msgspec's are ValueErrors
            return None
        sound = all(name in columns for name in self.required)
        if not sound or any(len(values) != stop - start for values in columns.values()):
            return None
        return Part(start, stop, columns, words.names, words.seconds, words.warnings)

    def write_state(self, state: dict[str, Any]) -> None:
        """Keep the state of an attack that goes on from it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_atomic(self.folder / _STATE, buffer.getvalue())

    def read_state(self) -> dict[str, Any] | None:
        """Return the state that was kept, on the CPU; None where there is none or it is damaged."""
        try:
            with zipfile.ZipFile(self.folder / _STATE) as archive:
                if archive.testzip() is not None:  # check sums, which PyTorch writes and does not read
                    return None
            state = torch.load(self.folder / _STATE, map_location="cpu", weights_only=True)
        except Exception:  # damaged files raise a dozen kinds
            return None
        return state if isinstance(state, dict) else None

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


def joined(parts: list[Part]) -> Part:
    """Return the parts of a whole as one, in row order; columns that not every part has are left out.

    The parts must name the same attacks.
    """
    parts = sorted(parts, key=lambda part: part.start)
    shared = [name for name in parts[0].columns if all(name in part.columns for part in parts)]
    columns = {name: torch.cat([part.columns[name] for part in parts]) for name in shared}
    warnings = tuple(dict.fromkeys(line for part in parts for line in part.warnings))
    seconds = sum(part.seconds for part in parts)
    return Part(parts[0].start, parts[-1].stop, columns, parts[0].names, seconds, warnings)
