"""Reads NumPy archives without unpickling, in chunks, so that they may be larger than memory.

Keys are ``images, labels`` (split stratified: 20 % test, then 10 % of the rest validation); or ``x_train, y_train,
x_test, y_test``, or ``train_images, train_labels, test_images, test_labels``, optionally with the same for ``val``
(without, it is 10 % of train). ``classes`` may name the classes.

Images are (N, H, W), (N, H, W, C) or (N, C, H, W) with 1 to 4 channels; uint8, or floats in [0, 1], which become
round(255 x). Labels are integers 0..K-1, (N,) or (N, 1).
"""

import math
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from envs.data.images import place
from envs.data.source import (
    Allocate,
    Arrays,
    Decoded,
    Source,
    check_classes,
    check_labels,
    readable,
    stamp_files,
    wrong,
)
from envs.data.splits import plan_splits
from envs.errors import InputError

_REMEDY = "write it again with np.savez"
CHUNK = 1 << 26
_MAX_CHANNELS = 4
_MAX_LABELS = 1 << 30  # bytes; labels and class names are read whole

# Key patterns for images and labels, tried in this order.
_PATTERNS = (("x_{}", "y_{}"), ("{}_images", "{}_labels"))


class _Member(NamedTuple):
    """An array in the archive; of images, also the axes of channel, height and width, 0 where there is no channel."""

    key: str
    shape: tuple[int, ...]
    dtype: np.dtype
    axes: tuple[int, int, int] = (0, 1, 2)


def npz_source(name: str, path: Path, image_size: int | None) -> Source:
    """Find a NumPy archive. Raises InputError: no such file, or no permission."""

    def read(allocate: Allocate) -> Decoded:
        with readable(path, _REMEDY), zipfile.ZipFile(path) as archive:
            return _read(name, archive, allocate, image_size)

    return Source(name, f"npz\0{path}\0{image_size}", stamp_files([path]), read)


def _read(name: str, archive: zipfile.ZipFile, allocate: Allocate, image_size: int | None) -> Decoded:
    keys = _choose_keys(name, archive)
    members = {part: _image_member(name, archive, image_key) for part, (image_key, _) in keys.items()}
    labels = {
        part: check_labels(_read_small(archive, key), members[part].shape[0], None, f"{name}: {key}")
        for part, (_, key) in keys.items()
    }
    classes = _class_names(name, archive, labels)
    check_classes(labels["all" if "all" in labels else "train"], classes, name)
    sizes = {tuple(member.shape[axis] if axis else 1 for axis in member.axes) for member in members.values()}
    if len(sizes) > 1:
        problem = f"images of the splits differ in shape, {sorted(sizes)}"
        raise wrong(f"{name}:", problem, "expected one (C, H, W)")
    channels, height, width = sizes.pop()
    plan = plan_splits(labels, name)
    splits = {}
    for split, (part, index) in plan.items():
        shape = (len(index), channels, image_size or height, image_size or width)
        splits[split] = Arrays(allocate(split, shape), labels[part][index])
    for part, member in members.items():
        for start, rows in _chunks(archive, member):
            for split, (source, index) in plan.items():
                if source == part:
                    first, last = np.searchsorted(index, (start, start + len(rows)))
                    place(splits[split].images, np.arange(first, last), rows[index[first:last] - start])
    return Decoded(classes, splits)


def _choose_keys(name: str, archive: zipfile.ZipFile) -> dict[str, tuple[str, str]]:
    """Return the keys of images and labels for each part of the data set."""
    present = {member.removesuffix(".npy") for member in archive.namelist()}
    if {"images", "labels"} <= present:
        return {"all": ("images", "labels")}
    for images, labels in _PATTERNS:
        pairs = {part: (images.format(part), labels.format(part)) for part in ("train", "val", "test")}
        found = {part: pair for part, pair in pairs.items() if set(pair) <= present}
        if {"train", "test"} <= set(found):
            return found
    raise InputError(
        f"{name} has the keys {str(sorted(present)[:8])[1:-1] or 'none'}; expected images and labels, or x_train,"
        " y_train, x_test, y_test (x_val, y_val); rename them with np.savez"
    )


@contextmanager
def _open(archive: zipfile.ZipFile, key: str) -> Iterator[tuple[IO[bytes], _Member]]:
    """Open an array of the archive after its header, which must agree with the size of what follows."""
    entry = archive.getinfo(f"{key}.npy")
    with archive.open(entry) as file:
        version = np.lib.format.read_magic(file)
        where = f"{key} in {archive.filename}"
        if version not in ((1, 0), (2, 0)):
            raise wrong(where, f"has .npy format {version}; expected 1.0", _REMEDY)
        headers = (np.lib.format.read_array_header_1_0, np.lib.format.read_array_header_2_0)
        shape, fortran, dtype = headers[version[0] - 1](file)
        if dtype.hasobject:
            raise wrong(where, "holds Python objects, which are never loaded", "save plain arrays")
        if fortran and len(shape) > 1:
            raise wrong(where, "is in Fortran order", f"save np.ascontiguousarray({key})")
        if entry.file_size != file.tell() + math.prod(shape) * dtype.itemsize:
            raise wrong(where, "is cut off or has a false header", _REMEDY)
        yield file, _Member(key, shape, dtype)


def _read_small(archive: zipfile.ZipFile, key: str) -> np.ndarray:
    with _open(archive, key) as (file, member):
        size = math.prod(member.shape) * member.dtype.itemsize
        if size > _MAX_LABELS:
            limit = f"expected at most {_MAX_LABELS:,}"
            raise wrong(f"{key} in {archive.filename}", f"takes {size:,} bytes", limit)
        content = file.read(size)
        file.read(1)  # zipfile compares the checksum when it sees the end
        return np.frombuffer(content, dtype=member.dtype).reshape(member.shape)


def _image_member(name: str, archive: zipfile.ZipFile, key: str) -> _Member:
    """Return an array of images with its axes; those of the channels must be the first or the last, and not both."""
    with _open(archive, key) as (_, member):
        pass
    where, shape = f"{name}: {key}", member.shape
    if member.dtype != np.uint8 and member.dtype.kind != "f":
        raise wrong(where, f"is {member.dtype}; expected uint8 or floats in [0, 1]", "convert it with astype")
    if len(shape) not in (3, 4) or 0 in shape:
        raise wrong(where, f"has the shape {shape}", "expected (N, H, W), (N, H, W, C) or (N, C, H, W)")
    if len(shape) == 3:
        return member
    first, last = shape[1] <= _MAX_CHANNELS, shape[3] <= _MAX_CHANNELS
    if first == last:
        raise InputError(
            f"{where} has the shape {shape}, where {'either' if first else 'neither'} end could be the channels;"
            f" expected 1 to {_MAX_CHANNELS} channels on one side and larger images; transpose it"
        )
    return member._replace(axes=(1, 2, 3) if first else (3, 1, 2))


def _chunks(archive: zipfile.ZipFile, member: _Member) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (index of the first image, images uint8 (M, C, H, W)) in order."""
    where = f"{member.key} in {archive.filename}"
    row_size = math.prod(member.shape[1:]) * member.dtype.itemsize
    with _open(archive, member.key) as (file, _):
        step = max(1, CHUNK // row_size)
        for start in range(0, member.shape[0], step):
            count = min(step, member.shape[0] - start)
            content = np.frombuffer(file.read(count * row_size), dtype=member.dtype)
            rows = content.reshape(count, *member.shape[1:])
            if rows.dtype != np.uint8:
                if not np.isfinite(rows).all():
                    raise InputError(
                        f"{where} has NaN or infinite values; expected numbers in [0, 1]; clean it"
                    )
                low, high = float(rows.min()), float(rows.max())
                if low < 0 or high > 1:
                    problem = f"has floats from {low:g} to {high:g}; expected [0, 1], or uint8 for 0..255"
                    raise wrong(where, problem, "rescale and save again")
                rows = np.round(rows * rows.dtype.type(255)).astype(np.uint8)
            yield start, rows.transpose(0, *member.axes) if member.axes[0] else rows[:, None]
        file.read(1)  # zipfile compares the checksum when it sees the end


def _class_names(name: str, archive: zipfile.ZipFile, labels: dict[str, np.ndarray]) -> tuple[str, ...]:
    """Return the class names, from the archive or else the numbers up to the largest label."""
    top = max(int(part.max()) for part in labels.values())
    if "classes.npy" not in archive.namelist():
        images = max(len(part) for part in labels.values())
        if top >= images:
            problem = f"labels up to {top} for {images} images"
            raise wrong(f"{name}:", problem, "expected 0..K-1, each class with images")
        return tuple(str(label) for label in range(top + 1))
    names = _read_small(archive, "classes")
    if names.ndim != 1 or names.dtype.kind != "U":
        expected = "expected names, (K,), such as np.array(['a', 'b'])"
        raise wrong(f"{name}:", f"classes is {names.dtype} {names.shape}", expected)
    if top >= len(names):
        expected = f"expected 0..{len(names) - 1}, as classes has {len(names)} names"
        raise wrong(f"{name}:", f"labels reach {top}", expected)
    return tuple(names.tolist())
