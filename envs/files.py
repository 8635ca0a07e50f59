"""Files are written atomically (temporary file, fsync, rename); JSON is read with clear errors."""

import contextlib
import fcntl
import glob
import json
import math
import os
import tempfile
from pathlib import Path
from typing import Any

from envs.errors import InputError


def write_atomic(path: str | Path, content: bytes | memoryview | str) -> None:
    """Write ``content`` to ``path`` so that readers see the old file or the whole new one, even after a crash.

    Raises:
        OSError: the directory is missing or read-only, or the disk is full; the old file is then left as it was.
    """
    path = Path(path)
    data = content.encode() if isinstance(content, str) else content
    for name in path.parent.glob(f".{glob.escape(path.name)}.????????.tmp"):
        with (
            contextlib.suppress(OSError),
            name.open("rb") as abandoned,
        ):  # the writer was killed, its lock has ended
            fcntl.flock(abandoned, fcntl.LOCK_EX | fcntl.LOCK_NB)
            name.unlink()
    handle, temporary = _new_temporary(path)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _new_temporary(path: Path) -> tuple[int, str]:
    """Return the descriptor and the name of a new file beside ``path``, locked as long as it is open."""
    while True:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        with contextlib.suppress(OSError):  # without locks, no file is ever found abandoned
            fcntl.flock(handle, fcntl.LOCK_EX)
        if os.fstat(handle).st_nlink:  # else another process took it for abandoned before it was locked
            return handle, name
        os.close(handle)


def write_json(path: str | Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically; NaN and infinities become null, as JSON has neither."""
    write_atomic(path, json.dumps(nulled(value), indent=1, allow_nan=False) + "\n")


def nulled(value: Any) -> Any:
    """Return plain JSON with None in place of NaN and infinities."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: nulled(item) for key, item in value.items()}
    return [nulled(item) for item in value] if isinstance(value, list | tuple) else value


def read_json(path: str | Path) -> Any:
    """Return what the JSON file holds; InputError where it is missing, unreadable or not JSON."""
    path = Path(path)
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"no file {path}; expected a JSON file there") from None
    except OSError as error:
        remedy = "check the path and its permissions"
        raise InputError(f"cannot read {path}: {error.strerror}; {remedy}") from None
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON ({error}); restore it or write it again") from None
