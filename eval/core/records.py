"""Reading and writing JSON with msgspec: types and ranges are checked, and any fault is a one-line error."""

from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
import numpy as np
from numpy.typing import ArrayLike

from envs.errors import InputError, cause
from envs.files import write_atomic
from eval.core.stats import Interval, wilson

FORMAT = 1  # of every JSON file of the evaluation
TEXT_LENGTH = 20_000
Text = Annotated[str, msgspec.Meta(max_length=TEXT_LENGTH)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Count = Annotated[int, msgspec.Meta(ge=0)]
T = TypeVar("T")


class _Origin(msgspec.Struct):
    format: Any = FORMAT
    versions: Any = None


def decode(content: bytes, kind: type[T], origin: str, remedy: str = "write it again") -> T:
    """Return JSON as ``kind``: a `msgspec.Struct`, or any other type that msgspec decodes.

    Keys that ``kind`` does not name are ignored, so that newer files can be read. Errors name the file, ``origin``, and
    what to do with one that cannot be used, ``remedy``.

    Raises:
        InputError: it is no JSON (NaN and infinities are none), a value is of the wrong type or out of range, or the
            file is of another format; then the error names the version that wrote it, where the file does.
    """
    try:
        head = msgspec.json.decode(content, type=_Origin)
        if head.format != FORMAT or isinstance(head.format, bool):
            known = head.versions.get("labelbandit") if isinstance(head.versions, dict) else None
            writer = f"labelbandit {known[:40]}" if isinstance(known, str) else "another version"
            raise InputError(
                f"{origin} has format {str(head.format)[:40]}, expected {FORMAT}: {writer} wrote it; "
                "use that version or write the file again"
            )
        return msgspec.json.decode(content, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{origin} cannot be used ({cause(error, 160)}); {remedy}") from None


def read_record(path: Path, kind: type[T], remedy: str = "write it again") -> T:
    """Return what the JSON file at ``path`` holds; errors as `decode`, and where it cannot be read."""
    try:
        content = path.read_bytes()
    except OSError as error:
        remedy = "check the path and its permissions"
        raise InputError(f"cannot read {path}: {error.strerror}; {remedy}") from None
    return decode(content, kind, str(path), remedy)


def write_record(path: Path, record: Any) -> None:
    """Write a `msgspec.Struct` as indented JSON, atomically."""
    write_atomic(path, msgspec.json.format(msgspec.json.encode(record), indent=1) + b"\n")


def bits(mask: ArrayLike) -> str:
    """Return a boolean vector as text: a character per image, 1 where it is true."""
    return "".join("01"[int(value)] for value in np.asarray(mask))


def share(row: str) -> float:
    """Return the share of 1 in such a text."""
    return row.count("1") / len(row)


def interval(row: str) -> Interval:
    """Return Wilson's 95 % interval of that share."""
    return wilson(row.count("1"), len(row))
