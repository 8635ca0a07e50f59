"""Safe reading of untrusted directories: no file outside the directory, no links, nothing too large."""

import os
import stat
from itertools import islice
from pathlib import Path
from typing import TypeVar

from envs.errors import InputError
from eval.core.records import decode

JSON_BYTES = 64 * 2**20
_NAME_BYTES = 4096
_MOST_ENTRIES = 10_000
T = TypeVar("T")


class Folder:
    """A directory whose files are read without leaving it: no ``..``, no absolute paths, no symbolic links.

    The directory itself may be a link, for the user named it; an InputError says where there is none.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not os.path.isdir(path):
            raise InputError(f"no directory at {self.path}; give the directory of a study or of a run")

    def read(self, name: str, limit: int) -> bytes:
        """Return the bytes of the regular file ``name``, a relative path.

        Raises InputError where the path leads out of the directory or through a link, or the file is missing,
        unreadable, not a regular file, or larger than ``limit`` bytes.
        """
        shown = self._show(name)
        try:
            handle = self._open(name)
        except OSError as error:
            reason = f"{error.strerror}; a report reads plain files, no links"
            raise InputError(f"cannot read {shown}: {reason}") from None
        with os.fdopen(handle, "rb") as file:
            found = os.fstat(handle)
            if not stat.S_ISREG(found.st_mode):
                raise InputError(f"{shown} is no regular file; remove it or restore it")
            if found.st_size > limit:
                raise InputError(f"{shown} has {found.st_size} bytes; at most {limit} are read for a report")
            return file.read(limit)

    def record(self, name: str, kind: type[T]) -> T:
        """Return what the JSON file holds, as ``kind``; errors as `read` and `eval.core.records.decode`."""
        return decode(self.read(name, JSON_BYTES), kind, self._show(name))

    def names(self, name: str = "", suffix: str = "") -> list[str]:
        """Return the paths of the regular files right in the folder ``name``, sorted; none if it is missing."""
        try:
            handle = self._open(name, directory=True)
        except (OSError, InputError):
            return []
        try:
            with os.scandir(handle) as entries:
                found = [entry.name for entry in islice(entries, _MOST_ENTRIES)]
            # Not through links.
            files = [item for item in found if stat.S_ISREG(os.lstat(item, dir_fd=handle).st_mode)]
        except OSError:
            return []
        finally:
            os.close(handle)
        prefix = f"{name}/" if name else ""
        return sorted(prefix + file for file in files if file.endswith(suffix) and not file.startswith("."))

    def _open(self, name: str, directory: bool = False) -> int:
        """Return a descriptor; every part of the path is opened in the one before, so that no link is followed."""
        parts = _parts(name)
        handle = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        for place, part in enumerate(parts):
            last = place == len(parts) - 1 and not directory
            kind = os.O_NONBLOCK if last else os.O_DIRECTORY  # a pipe must not block
            try:
                inner = os.open(part, os.O_RDONLY | os.O_NOFOLLOW | kind, dir_fd=handle)
            finally:
                os.close(handle)
            handle = inner
        return handle

    def _show(self, name: str) -> str:
        return str(self.path / name)[:300]


def _parts(name: str) -> list[str]:
    if not isinstance(name, str) or len(name.encode(errors="replace")) > _NAME_BYTES or "\0" in name:
        raise InputError(f"the path {str(name)[:60]!r} is not usable; expected one relative to the directory")
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        raise InputError(f"the path {name[:60]!r} is not usable; it holds half a character") from None
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts or "\\" in name:
        raise InputError(f"the path {name[:100]!r} leads out of the directory; expected one inside it")
    return parts
