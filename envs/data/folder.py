"""Reads trees of image files with one folder per class.

Either ``PATH/{train,test}/CLASS/...`` with an optional ``val``, or ``PATH/CLASS/...``, which is split stratified. The
names training, testing, valid and validation do as well, in any case. Of ``train`` and ``val`` alone, ``val`` is the
test split, as in ImageNet. Without its own folder, validation is 10 % of train. Classes are the sorted folder names.
Files are found at any depth below a class by their extension. Images are gray (1 channel) if the first of every class
are, else RGB.

Symbolic links are followed where they lead to regular files or class folders, since subsets of large sets are often
made of links; those that leave the tree are counted in a note. Links to folders further down are not followed, and
devices or pipes are never opened.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from envs.data.images import EXTENSIONS, decode, parallel, read_header
from envs.data.source import (
    NOTES,
    Allocate,
    Arrays,
    Decoded,
    Source,
    check_classes,
    is_plain,
    readable,
    stamp_files,
    wrong,
)
from envs.data.splits import plan_splits
from envs.errors import InputError

_REMEDY = "expected folders PATH/CLASS/*.png, or PATH/train/CLASS/*.png with PATH/test/CLASS/*.png"
_IMAGENET_SIDE = 224
_NAMES = {"train": ("train", "training"), "test": ("test", "testing"), "val": ("val", "valid", "validation")}
_PARTS = {name: part for part, names in _NAMES.items() for name in names}
_LISTED = 10


class _Files(NamedTuple):
    """Image files and their labels (N,)."""

    paths: list[str]
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
        # The first image of every class: their size is that of the very first, colour if any has colour.
        rows = ((files, np.unique(files.labels, return_index=True)[1]) for files in parts.values())
        headers = [read_header(files.paths[first]) for files, firsts in rows for first in firsts]
        channels, (width, height, _) = 1 if all(header.gray for header in headers) else 3, headers[0]
        splits = {}
        for split, (part, index) in plan.items():
            images = allocate(split, (len(index), channels, image_size or height, image_size or width))
            paths = [parts[part].paths[i] for i in index]
            _decode_all(images, paths, image_size, f"decoding {split} images")
            splits[split] = Arrays(images, parts[part].labels[index])
        return Decoded(classes, splits)

    return Source(name, f"folder\0{path}\0{image_size}", stamp_files(files), read)


def imagenet100_source(root: Path, image_size: int | None) -> Source:
    """Find ImageNet-100 in ``root/imagenet100/{train,val}``, made by the user: its licence forbids handing it on.

    Raises:
        InputError: as ``folder_source``, or there are not 100 classes.
    """
    path, other = root / "imagenet100", "or use folder:PATH"
    with readable(path, f"put ImageNet's folders of the 100 classes into its train/ and val/, {other}"):
        count = len(_folders(path / "train"))
    if count != 100:
        raise wrong(f"imagenet100: {path / 'train'}", f"has {count} class folders; expected 100", other)
    return folder_source("imagenet100", path, image_size or _IMAGENET_SIDE)


def _find(name: str, root: Path) -> tuple[tuple[str, ...], dict[str, _Files]]:
    """Return the classes, and the files of the parts ``all``, or ``train``, ``test`` and perhaps ``val``."""
    with readable(root, _REMEDY):
        folders = _folders(root)
        found = _split_folders(name, root, folders)
        train = root / found.get("train", "")
        classes = tuple(_folders(train)) if found else tuple(folders)
        if not found:
            parts = {"all": _find_files(root, classes)}
        elif "test" in found:
            names = (part for part in ("train", "val", "test") if part in found)
            parts = {part: _find_files(root / found[part], classes) for part in names}
        elif "val" in found:
            parts = {"train": _find_files(train, classes), "test": _find_files(root / found["val"], classes)}
        else:
            problem = "has train/ but neither test/ nor val/"
            raise wrong(f"{name}: {root}", problem, "add one, or lift train/ a level")
    for part, files in parts.items():
        counts = np.bincount(files.labels, minlength=len(classes)).tolist()
        listed = [f"{label} {count}" for label, count in zip(classes, counts, strict=True)]
        more = f", ... ({len(classes)} classes)" if len(classes) > _LISTED else ""
        NOTES.info("%s, %s: %s%s", root, part, ", ".join(listed[:_LISTED]), more)
    check_classes(next(iter(parts.values())).labels, classes, f"{name}: {root}")
    return classes, parts


def _split_folders(name: str, root: Path, folders: list[str]) -> dict[str, str]:
    """Return the folder of every split under ``root``; {} where its folders are classes.

    Raises:
        InputError: two folders for one split, or folders of splits without train or without classes.
    """
    found: dict[str, str] = {}
    named = [folder for folder in folders if folder.lower() in _PARTS]
    deep = [folder for folder in named if _folders(root / folder)]
    for folder in deep:
        part = _PARTS[folder.lower()]
        if part in found:
            problem = f"has {found[part]}/ and {folder}/; expected one {part} split"
            raise wrong(f"{name}: {root}", problem, "join them")
        found[part] = folder
    if found and "train" not in found:
        problem = f"has {deep[0]}/ with classes but no train/"
        raise wrong(f"{name}: {root}", problem, f"add it, or rename {deep[0]}/")
    if named and len(named) == len(folders) and not deep:
        raise InputError(f"{name}: {root} has {', '.join(named)} without class folders inside; {_REMEDY}")
    return found


def _folders(root: Path) -> list[str]:
    with os.scandir(root) as entries:
        names = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    for name in names:
        _check_name(root, name)
    return names


def _check_name(folder: str | Path, name: str) -> None:
    if not is_plain(name):
        raise InputError(f"{folder} holds {name!r:.99}; expected names of printable characters; rename it")


def _find_files(root: Path, classes: tuple[str, ...]) -> _Files:
    """List the images of every class folder under ``root``, by class and name."""
    present = _folders(root)
    unknown = sorted(set(present) - set(classes))
    if unknown:
        raise wrong(root, f"has a class folder {unknown[0]!r} that train/ lacks", "remove it or add it there")
    listing = _Listing(os.path.realpath(root))
    paths: list[str] = []
    labels: list[int] = []
    for name in present:
        images = sorted(listing.walk(os.path.join(root, name)))
        if not images:
            problem = f"holds no image ({' '.join(EXTENSIONS)})"
            raise wrong(root / name, problem, "add images or remove the folder")
        paths += images
        labels += [classes.index(name)] * len(images)
    if not paths:
        raise InputError(f"{root} holds no class folders with images; {_REMEDY}")
    if listing.ignored:
        text = "%s: ignored %d files without an image's extension, e.g. %s"
        NOTES.warning(text, root, len(listing.ignored), listing.ignored[0])
    if outside := listing.outside:
        NOTES.warning("%s: %d links lead out of the folder, e.g. %s", root, len(outside), outside[0])
    return _Files(paths, np.array(labels, dtype=np.int64))


class _Listing:
    """Lists image files below class folders, and remembers files of other kinds and links that lead out of ``home``."""

    def __init__(self, home: str) -> None:
        self.home = home
        self.ignored: list[str] = []
        self.outside: list[str] = []

    def walk(self, folder: str) -> Iterator[str]:
        """Yield the image files at any depth; hidden files and Windows' own do not count."""
        self._follow(folder, os.path.islink(folder))
        with os.scandir(folder) as entries:
            for entry in entries:
                name = entry.name.lower()
                if name.startswith(".") or name in ("thumbs.db", "desktop.ini"):
                    continue
                _check_name(folder, entry.name)
                if entry.is_dir(follow_symlinks=False):
                    yield from self.walk(entry.path)
                elif not name.endswith(EXTENSIONS):
                    self.ignored.append(entry.path)
                elif not entry.is_file():
                    raise InputError(f"{entry.path} is a broken link or not a regular file; remove it")
                else:
                    self._follow(entry.path, entry.is_symlink())
                    yield entry.path

    def _follow(self, path: str, is_link: bool) -> None:
        if is_link and not os.path.realpath(path).startswith(self.home + os.sep):
            self.outside.append(path)


def _decode_all(images: np.ndarray, files: list[str], side: int | None, title: str) -> None:
    """Decode the files into ``images``, which the first of them gave its shape."""
    channels, height, width = images.shape[1:]

    def decode_one(index: int) -> None:
        pixels = decode(files[index], channels, side)
        if pixels.shape != images.shape[1:]:
            raise InputError(
                f"{files[index]} is {pixels.shape[2]} x {pixels.shape[1]} pixels, the first image {width} x {height};"
                " expected one size; give --image-size to fit all to it"
            )
        images[index] = pixels

    parallel(decode_one, len(files), title)
