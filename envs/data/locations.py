"""Data folders, and locks between processes that share them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from envs.data.source import NOTES

try:
    import fcntl
except ImportError:  # Windows has no such locks: two processes do the same work, and the first to finish wins
    fcntl = None  # type: ignore[assignment]


def default_root() -> Path:
    """Return the data root of users who choose none: ``$LABELBANDIT_DATA``, else ``~/.cache/labelbandit/data``."""
    chosen = os.environ.get("LABELBANDIT_DATA")
    return Path(chosen).expanduser().absolute() if chosen else user_root()


def user_root() -> Path:
    """Return ``~/.cache/labelbandit/data``, where decoded copies go when the data root cannot be written."""
    return Path("~/.cache/labelbandit/data").expanduser().absolute()


def make_directory(path: Path) -> None:
    """Create a directory that can be written; one marked read-only is left alone, even by root, who could write.

    Raises:
        OSError: it, or the nearest parent that exists, is read-only or not a directory.
    """
    parent = path
    while not parent.exists():
        parent = parent.parent
    if not parent.stat().st_mode & 0o222 or not os.access(parent, os.W_OK | os.X_OK):
        raise PermissionError(13, f"{parent} is read-only")
    path.mkdir(parents=True, exist_ok=True)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on the file ``path``; it ends with the process, however that ends."""
    with path.open("w") as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                NOTES.warning("waiting for another process that is preparing the same data (%s)", path)
                fcntl.flock(file, fcntl.LOCK_EX)
        yield
