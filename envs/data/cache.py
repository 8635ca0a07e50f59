"""Decoded copies of data sets: written once, atomically, and mapped into memory from then on.

An entry is a directory ``<home>/<name>-<hash of path and options>`` with, for each split, ``<split>-images.npy`` and
``<split>-labels.npy``, and ``entry.json`` with the stamp of the files it came from, shapes and checksums. It is built
in a temporary folder and renamed; a lock lets a second process wait instead of decoding the same files.
"""

import hashlib
import json
import math
import mmap
import os
import re
import shutil
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import msgspec
import numpy as np

from envs.data.source import NOTES, Arrays, Decoded, Source, locked, make_directory, scratch_folder
from envs.errors import InputError

_FORMAT = 1
WHOLE_CHECK = 1 << 30  # entries up to a GiB are checked whole at each load, larger ones in samples
_CHUNK = 1 << 26
_SAMPLE = 1 << 16
_SAMPLES = 1024


class _SplitEntry(msgspec.Struct):
    """What ``entry.json`` says of a split."""

    shape: tuple[int, ...]
    fingerprint: str
    samples: str


class _Entry(msgspec.Struct):
    """What ``entry.json`` holds."""

    format: int
    stamp: str
    classes: tuple[str, ...]
    splits: dict[str, _SplitEntry]
    name: str = ""


class _Damaged(Exception):
    """An entry does not hold what it says it holds."""


def content_fingerprint(
    shape: Iterable[int], chunks: Iterable[np.ndarray], labels: np.ndarray, classes: tuple[str, ...]
) -> str:
    """Return the SHA-256 (hex) of an image tensor's shape and bytes (in chunks), labels and class names."""
    digest = hashlib.sha256(repr((tuple(int(size) for size in shape), classes)).encode())
    for chunk in chunks:
        digest.update(np.ascontiguousarray(chunk).data)
    digest.update(np.ascontiguousarray(labels, dtype=np.int64).data)
    return digest.hexdigest()


def load(source: Source, homes: list[Path], splits: Iterable[str]) -> Decoded:
    """Return splits of a data set from its decoded copy; where there is none, decode the source and keep a copy.

    Images are perhaps mapped. ``homes``: directories for decoded copies, the preferred one first.

    Raises:
        InputError: the source is bad, or no copy can be kept and the images do not fit in memory.
    """
    slug = re.sub(r"[^A-Za-z0-9]+", "-", source.name)[-40:].strip("-")
    name, splits = f"{slug}-{hashlib.sha256(source.identity.encode()).hexdigest()[:16]}", tuple(splits)
    for home in homes:
        found = _read(home / name, source.stamp, splits, report=False)
        if found is not None:
            return found
    trouble: OSError | None = None
    for home in homes:
        try:
            make_directory(home)
            if trouble is not None:
                NOTES.warning("the decoded copy of %s goes to %s: %s", source.name, home, trouble)
            with locked(home / f".{name}.lock"):
                found = _read(home / name, source.stamp, splits, report=True)
                if found is None:
                    _build(source, home, name)
                    found = _read(home / name, source.stamp, splits, report=True)
                if found is not None:
                    return found
        except OSError as error:
            trouble = error
    if trouble is not None:
        NOTES.warning("no decoded copy of %s is kept: %s", source.name, trouble)
    return _in_memory(source, splits)


# Writing


def _build(source: Source, home: Path, name: str) -> None:
    with scratch_folder(home, name) as temporary:

        def create(split: str, shape: tuple[int, ...]) -> np.ndarray:
            path = temporary / f"{split}-images.npy"
            images = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
            if hasattr(os, "posix_fallocate"):  # a mapped write to a full disk kills the process
                with path.open("r+b") as file:
                    os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
            return images

        decoded = source.decode(create)
        entries = {}
        for split, (images, labels, _) in decoded.splits.items():
            np.save(temporary / f"{split}-labels.npy", labels, allow_pickle=False)
            if isinstance(images, np.memmap):
                images.flush()
            rows = max(1, _CHUNK // images[0].size)
            chunks = (images[start : start + rows] for start in range(0, len(images), rows))
            fingerprint = content_fingerprint(images.shape, chunks, labels, decoded.classes)
            entries[split] = _SplitEntry(images.shape, fingerprint, _sample_hash(images, labels))
        entry = _Entry(_FORMAT, source.stamp, decoded.classes, entries, source.name)
        (temporary / "entry.json").write_text(json.dumps(msgspec.to_builtins(entry), indent=1))
        aside = temporary.with_suffix(".old.tmp")
        with suppress(FileNotFoundError):  # a stale or damaged entry, which others may still have mapped
            (home / name).rename(aside)
        try:
            temporary.rename(home / name)
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def _in_memory(source: Source, splits: tuple[str, ...]) -> Decoded:
    def allocate(split: str, shape: tuple[int, ...]) -> np.ndarray:
        size, memory = math.prod(shape), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if size > 0.8 * memory:
            raise InputError(
                f"{source.name}: {split} takes {size / 2**30:.1f} GiB, this machine has {memory / 2**30:.1f};"
                " set --data-root to a directory with that much free space, or reduce --image-size"
            )
        return np.empty(shape, dtype=np.uint8)

    classes, decoded = source.decode(allocate)
    parts = {}
    for split in splits:
        images, labels, _ = decoded[split]
        fingerprint = content_fingerprint(images.shape, [images], labels, classes)
        parts[split] = Arrays(images, labels, fingerprint)
    return Decoded(classes, parts)


# Reading


def _read(entry: Path, stamp: str, splits: tuple[str, ...], report: bool) -> Decoded | None:
    """Return the entry's splits, or None if there is none, or it is stale, or damaged, which a note may ``report``."""
    try:
        found = msgspec.json.decode((entry / "entry.json").read_bytes(), type=_Entry)
        if (found.format, found.stamp) != (_FORMAT, stamp):
            return None
        parts = {split: _read_split(entry, split, found.classes, found.splits[split]) for split in splits}
        return Decoded(found.classes, parts)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return None
    except (OSError, ValueError, KeyError, EOFError, RecursionError, _Damaged) as error:
        if report:
            NOTES.warning("the decoded copy in %s is damaged (%s); decoding the data again", entry, error)
        return None


def _read_split(entry: Path, split: str, classes: tuple[str, ...], described: _SplitEntry) -> Arrays:
    images = _map(entry / f"{split}-images.npy")
    labels = np.load(entry / f"{split}-labels.npy", allow_pickle=False)
    if images.dtype != np.uint8 or images.shape != described.shape:
        raise _Damaged(f"{split} images are {images.dtype} {images.shape}")
    if images.nbytes > WHOLE_CHECK:
        sound = _sample_hash(images, labels) == described.samples
    else:
        sound = content_fingerprint(images.shape, [images], labels, classes) == described.fingerprint
    if not sound:
        raise _Damaged(f"the checksum of {split} differs")
    return Arrays(images, labels, described.fingerprint)


def _map(path: Path) -> np.ndarray:
    """Map a .npy file so that it takes no memory until read and writes to the array stay private to the process."""
    with path.open("rb") as file:
        if np.lib.format.read_magic(file) != (1, 0):
            raise _Damaged(f"{path.name} is no .npy file of format 1.0")
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        start = file.tell()
        if os.fstat(file.fileno()).st_size != start + math.prod(shape) * dtype.itemsize:
            raise _Damaged(f"{path.name} has the wrong size")
        if not hasattr(mmap, "MAP_PRIVATE"):
            return np.load(path, mmap_mode="c", allow_pickle=False)
        # Linux may refuse private mappings larger than its memory unless told not to reserve any; Python names
        # that flag from 3.13 on.
        flags = mmap.MAP_PRIVATE | getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)
        mapped = mmap.mmap(file.fileno(), 0, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    return np.frombuffer(mapped, dtype=dtype, offset=start).reshape(shape)


def _sample_hash(images: np.ndarray, labels: np.ndarray) -> str:
    """Hash 64 MiB spread evenly over the images (all of them where there is less), and the labels."""
    flat = images.reshape(-1)
    step = max(_SAMPLE, len(flat) // _SAMPLES)
    digest = hashlib.sha256(np.ascontiguousarray(labels).data)
    for start in range(0, len(flat), step):
        digest.update(flat[start : start + _SAMPLE].data)
    return digest.hexdigest()
