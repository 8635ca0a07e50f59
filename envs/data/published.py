"""The digits of scikit-learn, and what torchvision downloads: MNIST, Fashion-MNIST, CIFAR-10, CIFAR-100 and STL-10.

torchvision fetches and checks files, in the layout that its own classes read. Reading is ours, since its reader of
CIFAR unpickles, and its reader of MNIST insists on unpacked files.
"""

import gzip
import hashlib
import importlib.util
import math
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from envs.data.cifar import read_batch, read_class_names
from envs.data.source import (
    NOTES,
    Allocate,
    Arrays,
    Decoded,
    Source,
    check_labels,
    locked,
    make_directory,
    readable,
    scratch_folder,
    stamp_files,
    wrong,
)
from envs.data.splits import arrange
from envs.errors import InputError, cause
from envs.lazy_imports import import_torchvision

Contents = tuple[tuple[str, ...], dict[str, Arrays]]
"""Class names and the parts train and test."""
_AGAIN = "delete it and download it again"
_MAX_SIZE = 1 << 32  # bytes of pixels that an IDX header may announce


def digits_source(image_size: int | None) -> Source:
    """Return the 1,797 scans of 8x8 pixels that come with scikit-learn; values 0..16 become round(255 v / 16)."""

    def read(allocate: Allocate) -> Decoded:
        found = importlib.util.find_spec("sklearn")  # does not import it, which takes over a second
        file = Path(found.origin or "").parent / "datasets/data/digits.csv.gz" if found else None
        if file is not None and file.is_file():
            rows = np.loadtxt(file, delimiter=",")
            pixels, labels = rows[:, :-1], rows[:, -1]
        else:
            from sklearn.datasets import load_digits  # another release may keep them elsewhere

            pixels, labels = load_digits(return_X_y=True)
        images = np.round(pixels * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)
        parts = {"all": Arrays(images, labels.astype(np.int64))}
        return arrange("digits", _DIGITS, parts, allocate, image_size)

    return Source("digits", "digits", "", read)


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
            NOTES.warning("downloading %s to %s", name, root)
            with scratch_folder(root, name) as temporary:
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


def read_idx(path: Path, ndim: int) -> np.ndarray:
    """Return the uint8 array of an IDX file, plain or ``.gz``.

    The format: two zero bytes, 8 for unsigned bytes, the number of axes (expected: ``ndim``, 3 for images and 1 for
    labels), each axis as a big-endian 32-bit size, then the values. Raises InputError: the file is missing, damaged,
    cut off, longer than it says, or of another kind.
    """
    with readable(path, _AGAIN):
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            magic = file.read(4)
            if magic != bytes((0, 0, 8, ndim)):
                expected = f"expected 000008{ndim:02x}, an IDX file of bytes with {ndim} axes"
                raise wrong(path, f"begins with {magic.hex() or 'nothing'}; {expected}", _AGAIN)
            shape = struct.unpack(f">{ndim}I", file.read(4 * ndim))
            size = math.prod(shape)
            if size > _MAX_SIZE:
                raise wrong(path, f"announces {shape} values; expected at most 4 GiB")
            content = file.read(size + 1)
        if len(content) != size:
            found = "more" if len(content) > size else f"{len(content):,}"
            raise wrong(path, f"announces {size:,} values but holds {found}", _AGAIN)
        return np.frombuffer(content, dtype=np.uint8).reshape(shape)


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
        images, labels = (np.concatenate([batch[i] for batch in batches]) for i in (0, 1))
        return classes, {
            "train": Arrays(images, labels),
            "test": read_batch(test_path, label_key, num_classes),
        }

    return read


def _read_stl10(paths: list[Path]) -> Contents:
    """Return what STL-10's files hold: images column by column, and labels counted from 1."""
    parts, shape = {}, (3, 96, 96)
    for part, (image_path, label_path) in {"train": paths[:2], "test": paths[2:]}.items():
        with readable(image_path, "download it again"):
            size, each = os.path.getsize(image_path), math.prod(shape)
            if size == 0 or size % each:
                raise wrong(image_path, f"has {size:,} bytes; expected a multiple of {each:,}")
            images = np.fromfile(image_path, dtype=np.uint8).reshape(-1, *shape).transpose(0, 1, 3, 2)
        with readable(label_path, "download it again"):
            labels = np.fromfile(label_path, dtype=np.uint8).astype(np.int64) - 1
        parts[part] = Arrays(images, check_labels(labels, len(images), len(_STL10), f"{label_path} (from 0)"))
    return _STL10, parts


_DIGITS = tuple("0123456789")
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
    "mnist": Published("MNIST", 28, "MNIST/raw", _IDX, _read_mnist(_DIGITS), False),
    "fashion-mnist": Published("FashionMNIST", 28, "FashionMNIST/raw", _IDX, _read_mnist(_FASHION), False),
    "cifar10": Published("CIFAR10", 32, "cifar-10-batches-py", _CIFAR10, _read_cifar10),
    "cifar100": Published("CIFAR100", 32, "cifar-100-python", _CIFAR100, _read_cifar100),
    "stl10": Published("STL10", 96, "stl10_binary", _BINARY, _read_stl10),
}
