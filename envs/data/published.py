"""Data sets that torchvision downloads: MNIST, Fashion-MNIST, CIFAR-10, CIFAR-100 and STL-10.

torchvision fetches and checks them, in the layout that its own classes read. Reading is ours, since its reader of
CIFAR unpickles, and its reader of MNIST insists on unpacked files.
"""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from envs.data.cifar import read_batch, read_class_names
from envs.data.formats import read_idx, read_stl10
from envs.data.locations import locked, make_directory
from envs.data.source import (
    NOTES,
    Allocate,
    Arrays,
    Decoded,
    Source,
    check_labels,
    readable,
    stamp_files,
    wrong,
)
from envs.data.splits import arrange
from envs.errors import InputError, cause
from envs.lazy_imports import import_torchvision

Contents = tuple[tuple[str, ...], dict[str, Arrays]]
"""Class names and the parts train and test."""


@dataclass(frozen=True)
class Published:
    """A data set that torchvision knows."""

    torchvision: str  #: name of its class in ``torchvision.datasets``
    side: int  #: height and width of its images
    folder: str  #: where its files are, relative to the data root
    files: tuple[str, ...]  #: their names; each may end in ``.gz`` instead
    read: Callable[[list[Path]], Contents]  #: from the paths of the files to the contents
    checked: bool = True  #: whether the files must be those whose MD5 sums torchvision lists


def published_source(name: str, root: Path, image_size: int | None) -> Source:
    """Find one of ``PUBLISHED`` under ``root``, or download it there.

    Raises:
        InputError: it is not there and cannot be downloaded or written.
    """
    published = PUBLISHED[name]
    if image_size == published.side:
        image_size = None
    paths = _locate(published, root) or _download(name, published, root)

    def decode(allocate: Allocate) -> Decoded:
        if published.checked:
            _check_sums(published, root)
        classes, parts = published.read(paths)
        return arrange(name, classes, parts, allocate, image_size)

    return Source(name, f"{name}\0{root}\0{image_size}", stamp_files(paths), decode)


def _locate(published: Published, root: Path) -> list[Path] | None:
    paths = []
    for file in published.files:
        places = (root / published.folder / file, root / published.folder / f"{file}.gz")
        paths += [place for place in places if place.exists()][:1]
    return paths if len(paths) == len(published.files) else None


def _download(name: str, published: Published, root: Path) -> list[Path]:
    """Fetch into a temporary folder, then move what is needed into place: nothing half-written is left behind."""
    torchvision_class = _torchvision_class(published)
    remedy = f"put {', '.join(published.files)} into {root / published.folder}, or set --data-root to where they are"
    try:
        make_directory(root)
        with locked(root / f".{name}.lock"):
            paths = _locate(published, root)  # another process may have fetched it while we waited
            if paths:
                return paths
            for leftover in root.glob(f".{name}.*.tmp"):
                shutil.rmtree(leftover, ignore_errors=True)
            NOTES.warning("downloading %s to %s", name, root)
            temporary = Path(tempfile.mkdtemp(prefix=f".{name}.", suffix=".tmp", dir=root))
            try:
                fetcher = torchvision_class.__new__(torchvision_class)  # its constructor would unpickle
                fetcher.root = os.fspath(temporary)
                fetcher.download()
                files = [Path(published.folder, file) for file in published.files]
                for file in files:
                    if not (temporary / file).is_file():
                        raise FileNotFoundError(2, f"the download holds no {file}")
                for file in files:
                    (root / file).parent.mkdir(parents=True, exist_ok=True)
                    os.replace(temporary / file, root / file)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    except Exception as error:  # whatever urllib, ssl, tarfile, gzip or the disk came up with
        raise InputError(f"cannot download {name} to {root}: {cause(error, 300)}; {remedy}") from error
    return [root / published.folder / file for file in published.files]


def _check_sums(published: Published, root: Path) -> None:
    listed = _torchvision_class(published)
    sums = dict(listed.train_list + listed.test_list)
    if hasattr(listed, "meta"):
        sums[listed.meta["filename"]] = listed.meta["md5"]
    for file in published.files:
        path = root / published.folder / file
        with readable(path), path.open("rb") as opened:
            found = hashlib.file_digest(opened, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
        if found != sums[file]:
            problem = f"is not the published file (MD5 {found}, expected {sums[file]})"
            raise wrong(path, problem, "delete it to download it again")


def _torchvision_class(published: Published) -> Any:
    return getattr(import_torchvision("datasets"), published.torchvision)


def _read_mnist(classes: tuple[str, ...]) -> Callable[[list[Path]], Contents]:
    def read(paths: list[Path]) -> Contents:
        parts = {}
        for part, (image_path, label_path) in {"train": paths[:2], "test": paths[2:]}.items():
            images = read_idx(image_path, 3)
            if images.shape[1:] != (28, 28):
                raise wrong(image_path, f"has images of {images.shape[1:]}; expected (28, 28)")
            labels = check_labels(read_idx(label_path, 1), len(images), len(classes), os.fspath(label_path))
            parts[part] = Arrays(images[:, None], labels)
        return classes, parts

    return read


def _read_cifar(label_key: str, name_key: str, num_classes: int) -> Callable[[list[Path]], Contents]:
    def read(paths: list[Path]) -> Contents:
        *train_paths, test_path, meta_path = paths
        classes = read_class_names(meta_path, name_key)
        if len(classes) != num_classes:
            raise wrong(meta_path, f"names {len(classes)} classes; expected {num_classes}")
        batches = [read_batch(path, label_key, num_classes) for path in train_paths]
        train = Arrays(*(np.concatenate(arrays) for arrays in zip(*batches, strict=True)))
        return classes, {"train": train, "test": read_batch(test_path, label_key, num_classes)}

    return read


def _read_stl10(paths: list[Path]) -> Contents:
    parts = {}
    for part, (image_path, label_path) in {"train": paths[:2], "test": paths[2:]}.items():
        images, labels = read_stl10(image_path, label_path)
        parts[part] = Arrays(images, check_labels(labels, len(images), len(_STL10), f"{label_path} (from 0)"))
    return _STL10, parts


_MNIST = tuple("0123456789")
_FASHION = (
    *("T-shirt/top", "trouser", "pullover", "dress", "coat"),
    *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
)
_STL10 = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")
_IDX = tuple(f"{part}-{what}-ubyte" for part in ("train", "t10k") for what in ("images-idx3", "labels-idx1"))

_CIFAR10 = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch", "batches.meta")
_CIFAR100 = ("train", "test", "meta")
_BINARY = tuple(f"{part}_{what}.bin" for part in ("train", "test") for what in "Xy")
_read_cifar10 = _read_cifar("labels", "label_names", 10)
_read_cifar100 = _read_cifar("fine_labels", "fine_label_names", 100)

PUBLISHED = {
    "mnist": Published("MNIST", 28, "MNIST/raw", _IDX, _read_mnist(_MNIST), False),
    "fashion-mnist": Published("FashionMNIST", 28, "FashionMNIST/raw", _IDX, _read_mnist(_FASHION), False),
    "cifar10": Published("CIFAR10", 32, "cifar-10-batches-py", _CIFAR10, _read_cifar10),
    "cifar100": Published("CIFAR100", 32, "cifar-100-python", _CIFAR100, _read_cifar100),
    "stl10": Published("STL10", 96, "stl10_binary", _BINARY, _read_stl10),
}
