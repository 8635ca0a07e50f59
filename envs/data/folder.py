"""Trees of image files, one folder a class.

Either ``PATH/{train,test}/CLASS/...`` with an optional ``val``, or ``PATH/CLASS/...``, which is split stratified. Of
``train`` and ``val`` alone, ``val`` is the test split, as in ImageNet. Without its own folder, validation is 10 % of
train. Classes are the sorted folder names. Files are found at any depth below a class by their extension.

Symbolic links are followed where they lead to regular files or class folders, since subsets of large sets are often
made of links; those that leave the tree are counted in a note. Links to folders further down are not followed, and
devices or pipes are never opened.
"""

import os
import stat
from pathlib import Path
from typing import NamedTuple

import numpy as np

from envs.data.images import EXTENSIONS, Header, decode, parallel, read_header
from envs.data.source import NOTES, Allocate, Arrays, Decoded, Source, check_classes, readable, stamp_files
from envs.data.splits import plan_splits
from envs.errors import InputError

_REMEDY = "expected folders PATH/CLASS/*.png, or PATH/train/CLASS/*.png with PATH/test/CLASS/*.png"
_IMAGENET_SIDE = 224


class _Files(NamedTuple):
    """Image files and their labels (N,)."""

    paths: list[Path]
    labels: np.ndarray


def folder_source(name: str, path: Path, image_size: int | None) -> Source:
    """Find a tree of images.

    Raises:
        InputError: no such folder, no classes or images in it, an empty class, or classes that train lacks.
    """
    classes, parts = _find(name, path)
    plan = plan_splits({part: found.labels for part, found in parts.items()}, name)
    files = [file for found in parts.values() for file in found.paths]

    def read(allocate: Allocate) -> Decoded:
        headers = _read_headers(files)
        channels = 1 if all(header.gray for header in headers) else 3
        height, width = (image_size, image_size) if image_size else _common_size(name, files, headers)
        splits = {}
        for split, (part, index) in plan.items():
            images = allocate(split, (len(index), channels, height, width))
            paths = [parts[part].paths[i] for i in index]
            _decode_into(images, paths, image_size, f"decoding {split} images")
            splits[split] = Arrays(images, parts[part].labels[index])
        return Decoded(classes, splits)

    return Source(name, f"folder\0{path}\0{image_size}", stamp_files(files), read)


def imagenet100_source(root: Path, image_size: int | None) -> Source:
    """Find ImageNet-100 in ``root/imagenet100/{train,val}``, made by the user: its licence forbids handing it on.

    Raises:
        InputError: as ``folder_source``, or there are not 100 classes.
    """
    path = root / "imagenet100"
    with readable(
        path, "put ImageNet's folders of the 100 classes into its train/ and val/, or use folder:PATH"
    ):
        count = len(_folders(path / "train"))
    if count != 100:
        raise InputError(
            f"imagenet100: {path / 'train'} has {count} class folders; expected 100; or use folder:PATH"
        )
    return folder_source("imagenet100", path, image_size or _IMAGENET_SIDE)


def _find(name: str, root: Path) -> tuple[tuple[str, ...], dict[str, _Files]]:
    """Return the classes, and the files of the parts ``all``, or ``train``, ``test`` and perhaps ``val``."""
    with readable(root, _REMEDY):
        folders = _folders(root)
        split = "train" in folders and bool(_folders(root / "train"))
        classes = tuple(_folders(root / "train")) if split else tuple(folders)
        if not split:
            parts = {"all": _find_files(root, classes)}
        elif "test" in folders:
            parts = {
                part: _find_files(root / part, classes)
                for part in ("train", "val", "test")
                if part in folders
            }
        elif "val" in folders:
            parts = {
                "train": _find_files(root / "train", classes),
                "test": _find_files(root / "val", classes),
            }
        else:
            raise InputError(
                f"{name}: {root} has train/ but neither test/ nor val/; add one, or lift train/ a level"
            )
    check_classes(next(iter(parts.values())).labels, classes, f"{name}: {root}")
    return classes, parts


def _folders(root: Path) -> list[str]:
    return sorted(
        entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith(".")
    )


def _find_files(root: Path, classes: tuple[str, ...]) -> _Files:
    """List the images of every class folder under ``root``, by class and name."""
    unknown = sorted(set(_folders(root)) - set(classes))
    if unknown:
        raise InputError(
            f"{root} has a class folder {unknown[0]!r} that train/ lacks; remove it or add it there"
        )
    paths, labels = [], []
    ignored: list[Path] = []
    outside: list[Path] = []
    home = root.resolve()
    for label, name in enumerate(classes):
        if not (root / name).is_dir():
            continue
        images = sorted(_walk(root / name, home, ignored, outside))
        if not images:
            raise InputError(
                f"{root / name} holds no image ({' '.join(EXTENSIONS)}); add images or remove the folder"
            )
        paths += images
        labels += [label] * len(images)
    if ignored:
        NOTES.warning(
            "%s: ignored %d files that are not images by extension, e.g. %s", root, len(ignored), ignored[0]
        )
    if outside:
        NOTES.warning("%s: %d links lead out of the folder, e.g. %s", root, len(outside), outside[0])
    if not paths:
        raise InputError(f"{root} holds no class folders with images; {_REMEDY}")
    return _Files(paths, np.array(labels, dtype=np.int64))


def _walk(folder: Path, home: Path, ignored: list[Path], outside: list[Path]) -> list[Path]:
    """Return the image files below ``folder``; hidden files and Windows' thumbnails do not count as files."""
    images = []
    if folder.is_symlink() and not folder.resolve().is_relative_to(home):
        outside.append(folder)

    def fail(error: OSError) -> None:
        raise error

    for directory, inner, names in os.walk(folder, onerror=fail):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        for name in names:
            path = Path(directory, name)
            if name.startswith(".") or name.lower() in ("thumbs.db", "desktop.ini"):
                continue
            if not name.lower().endswith(EXTENSIONS):
                ignored.append(path)
                continue
            images.append(path)
            if path.is_symlink() and not path.resolve().is_relative_to(home):
                outside.append(path)
    return images


def _read_headers(files: list[Path]) -> list[Header]:
    headers: list[Header | None] = [None] * len(files)

    def read_one(index: int) -> None:
        if not stat.S_ISREG(files[index].stat().st_mode):
            raise InputError(f"{files[index]} is not a regular file; remove it")
        headers[index] = read_header(files[index])

    parallel(read_one, len(files), "checking image files")
    return [header for header in headers if header is not None]


def _common_size(name: str, files: list[Path], headers: list[Header]) -> tuple[int, int]:
    first = headers[0]
    for file, header in zip(files, headers, strict=True):
        if header[:2] != first[:2]:
            raise InputError(
                f"{name}: {file} is {header.width} x {header.height}, {files[0]} is {first.width} x {first.height};"
                " expected one size; give --image-size to fit all to it"
            )
    return first.height, first.width


def _decode_into(images: np.ndarray, files: list[Path], side: int | None, title: str) -> None:
    def decode_one(index: int) -> None:
        pixels = decode(files[index], images.shape[1], side)
        if pixels.shape != images.shape[1:]:
            raise InputError(f"{files[index]} changed while it was read; start again")
        images[index] = pixels

    parallel(decode_one, len(files), title)
