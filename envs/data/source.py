"""The interface between the readers of formats and the cache, and the checks and folders that they share."""

import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from envs.errors import InputError, cause

try:
    import fcntl
except ImportError:  # Windows has no such locks: two processes do the same work, and the first to finish wins
    fcntl = None  # type: ignore[assignment]

NOTES = logging.getLogger("labelbandit.data")
_MAX_CLASSES = 1_000_000

Allocate = Callable[[str, tuple[int, int, int, int]], np.ndarray]
"""Returns the array of a split, uint8 of the given shape (N, C, H, W), for a reader to fill."""


def wrong(where: object, problem: str, remedy: str = "download it again") -> InputError:
    """Return the error that names a file or data set, what is wrong there, and the remedy."""
    return InputError(f"{where} {problem}; {remedy}")


class Arrays(NamedTuple):
    """One split: images uint8 (N, C, H, W), labels int64 (N,), and the SHA-256 of its content where that is known."""

    images: np.ndarray
    labels: np.ndarray
    fingerprint: str = ""


class Decoded(NamedTuple):
    """Class names, and the splits train, val and test or some of them."""

    classes: tuple[str, ...]
    splits: dict[str, Arrays]


@dataclass(frozen=True)
class Source:
    """A data set on disk that has been found but not decoded."""

    name: str  #: as the user gave it
    identity: str  #: what chooses the cache entry: where the files are and the options
    #: what the decoded copy depends on (sizes and times of the files); another stamp makes it stale
    stamp: str
    #: reads, checks and returns everything; its images go into arrays that it asks for
    decode: Callable[[Allocate], Decoded]


def stamp_files(files: Iterable[str | Path]) -> str:
    """Return a hash of the files' paths, sizes and modification times.

    Raises:
        InputError: a file has gone or may not be read.
    """
    digest = hashlib.sha256()
    for file in files:
        with readable(file):
            status = os.stat(file)
        digest.update(os.fsencode(file) + f"\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


@contextmanager
def readable(path: str | Path, remedy: str = "restore it or remove it") -> Iterator[None]:
    """Turn any error caused by a missing, forbidden, damaged or hostile file into one line.

    Raises:
        InputError: anything was raised inside; its message names the file, the cause and the remedy.
    """
    try:
        yield
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"no file or folder {error.filename or path}; {remedy}") from None
    except PermissionError as error:
        where, advice = error.filename or path, "make it readable (chmod a+rX) or choose another"
        raise InputError(f"no permission to read {where}; {advice}") from None
    except OSError as error:
        problem = error.strerror or cause(error, 200)
        raise InputError(f"cannot read {error.filename or path}: {problem}; {remedy}") from error
    except Exception as error:  # decoders of damaged files raise nearly anything
        raise InputError(f"cannot read {path}: {cause(error, 200)}; {remedy}") from error


def check_labels(labels: np.ndarray, num_images: int, num_classes: int | None, where: str) -> np.ndarray:
    """Return ``labels``, integers (N,) or (N, 1), as int64 (N,); ``where`` names them in messages.

    ``num_classes``: K, or None where the labels alone say it (up to a million).

    Raises:
        InputError: another type, shape or number of labels, or a label outside 0..K-1.
    """
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        expected = "expected one integer an image, shape (N,); take the argmax of one-hot rows"
        raise InputError(f"{where}: labels are {labels.dtype} {labels.shape}; {expected}")
    if len(labels) != num_images or num_images == 0:
        problem = f"{len(labels)} labels for {num_images} images"
        raise wrong(f"{where}:", problem, "expected as many, at least one")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= (_MAX_CLASSES if num_classes is None else num_classes):
        top = "K-1" if num_classes is None else num_classes - 1
        raise InputError(f"{where}: labels span {low}..{high}; expected 0..{top}; correct or renumber them")
    return labels.astype(np.int64)


def check_classes(labels: np.ndarray, classes: tuple[str, ...], where: str) -> None:
    """Check that there are two classes or more, that each has an image among the training labels (N,), and a name.

    Raises:
        InputError: otherwise.
    """
    if len(classes) < 2:
        raise InputError(f"{where}: {len(classes)} class; expected at least two, to choose between")
    for name in classes:
        if not is_plain(name):
            problem = f"class name {name!r:.99}; expected printable characters"
            raise wrong(f"{where}:", problem, "rename the class")
    missing = sorted(set(range(len(classes))) - set(np.unique(labels).tolist()))
    if missing:
        fault = f"{where}: class {missing[0]} ({classes[missing[0]]!r}) has no training image"
        raise InputError(f"{fault}; expected one at least; add images or renumber the labels")


def is_plain(name: object) -> bool:
    """Whether a class name is safe to print: control characters could rewrite a terminal."""
    return isinstance(name, str) and name.isprintable() and name != ""


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


@contextmanager
def scratch_folder(home: Path, name: str) -> Iterator[Path]:
    """Make a folder in ``home`` that ends with this context; those that killed processes left go before.

    Only for the holder of the lock on ``name``: nobody else builds under it.
    """
    for leftover in home.glob(f".{name}.*.tmp"):
        shutil.rmtree(leftover, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{name}.", suffix=".tmp", dir=home))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
