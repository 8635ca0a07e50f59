"""Reads CIFAR's batches, which are pickles, without executing anything.

Pickles name functions to call. This reader answers the four names that a pickled NumPy array needs with stand-ins
that only collect the array's description, and refuses any other.
"""

import io
import pickle
import pickletools
from pathlib import Path
from typing import Any

import numpy as np

from envs.data.source import Arrays, check_labels, readable, wrong

_MAX_SIZE = 1 << 28  # bytes; the largest real file, CIFAR-100's train, has 155 million
_PIXELS = 3 * 32 * 32


def read_batch(path: Path, label_key: str, num_classes: int) -> Arrays:
    """Return the images uint8 (N, 3, 32, 32) and labels int64 (N,) of one batch file.

    Raises:
        InputError: the file is missing, damaged, names a function, or holds something else.
    """
    entry = _read_mapping(path)
    data, labels = entry.get("data"), entry.get(label_key)
    if not isinstance(data, np.ndarray) or data.ndim != 2 or data.shape[1] != _PIXELS:
        raise wrong(path, f"has no array data of shape (N, {_PIXELS}); expected a CIFAR batch")
    if not isinstance(labels, list) or not all(type(label) is int for label in labels):
        raise wrong(path, f"has no list {label_key!r} of integers; expected a CIFAR batch")
    images = data.reshape(-1, 3, 32, 32)
    return Arrays(images, check_labels(np.array(labels), len(images), num_classes, str(path)))


def read_class_names(path: Path, key: str) -> tuple[str, ...]:
    """Return the class names that a CIFAR meta file lists under ``key``. Raises InputError: as ``read_batch``."""
    names = _read_mapping(path).get(key)
    if not isinstance(names, list) or not all(isinstance(name, str | bytes) for name in names):
        raise wrong(path, f"has no list {key!r} of names; expected CIFAR's meta file")
    with readable(path):
        return tuple(name if isinstance(name, str) else name.decode() for name in names)


def _read_mapping(path: Path) -> dict[str, Any]:
    with readable(path, "download it again"):
        if path.stat().st_size > _MAX_SIZE:
            raise wrong(path, f"is larger than {_MAX_SIZE:,} bytes; expected a CIFAR file")
        pickled = path.read_bytes()
        for count, (opcode, place, _) in enumerate(pickletools.genops(pickled)):
            # A place in the unpickler's table that no real file uses: memory would be reserved up to it.
            if opcode.name in ("PUT", "LONG_BINPUT") and place is not None and place > count:
                raise ValueError(f"place {place} after {count} instructions")
        # The files are Python 2's: its strings come back as bytes, both keys and pixels.
        content = _ArrayUnpickler(io.BytesIO(pickled), encoding="bytes").load()
        if not isinstance(content, dict):
            raise wrong(path, f"holds a {type(content).__name__}; expected CIFAR's mapping")
        return {
            key.decode("latin1") if isinstance(key, bytes) else str(key): _to_array(value)
            for key, value in content.items()
        }


class _ArrayState:
    """Stands in for an array while it is unpickled: keeps the state that NumPy would have been given."""

    state: Any = None

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _TypeState(_ArrayState):
    """Stands in for a dtype; ``code`` is such as ``u1``."""

    def __init__(self, code: Any = None, *_: Any) -> None:
        self.code = code


def _encode(text: str, encoding: str) -> bytes:
    """Python 3 writes bytes into old pickle protocols as latin-1 text that is to be encoded again."""
    if encoding != "latin1" or not isinstance(text, str):
        raise pickle.UnpicklingError("an encoding other than latin1")
    return text.encode("latin1")


_STAND_INS: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _ArrayState,
    ("numpy._core.multiarray", "_reconstruct"): _ArrayState,
    ("numpy", "ndarray"): None,
    ("numpy", "dtype"): _TypeState,
    ("_codecs", "encode"): _encode,
}


class _ArrayUnpickler(pickle.Unpickler):
    """Knows NumPy's arrays, lists, mappings, strings and numbers; nothing else, and no function at all."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _STAND_INS:
            raise pickle.UnpicklingError(f"the file asks to run {module}.{name}, which is refused")
        return _STAND_INS[module, name]


def _to_array(value: Any) -> Any:
    """Build the uint8 array that a stand-in describes; other values pass."""
    if not isinstance(value, _ArrayState):
        return value
    _, shape, dtype, fortran, content = value.state
    if dtype.code not in (b"u1", "u1") or fortran or not isinstance(content, bytes):
        raise ValueError("an array is not of bytes in C order")
    return np.frombuffer(content, dtype=np.uint8).reshape(shape)
