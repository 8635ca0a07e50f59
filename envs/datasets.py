"""Data sets by name: uint8 images and int64 labels on one device, moved there once."""

import math
import operator
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch

from envs.data.cache import content_fingerprint, load
from envs.data.folder import folder_source, imagenet100_source
from envs.data.npz import npz_source
from envs.data.published import PUBLISHED, digits_source, published_source
from envs.data.source import Source, is_plain
from envs.errors import InputError, unknown_name

DATASETS = ("digits", *PUBLISHED, "imagenet100")
SPLITS = ("train", "val", "test")
CHUNK = 1 << 26  # bytes hashed or counted at a time
_MAX_SIDE = 4096


@dataclass(frozen=True, eq=False)
class ImageDataset:
    """Labelled images of one split.

    Raises:
        InputError: a tensor has the wrong type, shape or device, or a label is out of range.
    """

    name: str  #: the data set's name, as given to ``load_dataset``
    split: str  #: ``train``, ``val`` or ``test``
    images: torch.Tensor  #: uint8 (N, C, H, W)
    labels: torch.Tensor  #: int64 (N,), in 0..K-1, on the images' device
    classes: tuple[str, ...]  #: the K class names

    def __post_init__(self) -> None:
        images, labels, where = self.images, self.labels, f"data set {self.name!r}"
        for key, value in (("images", images), ("labels", labels)):
            if not isinstance(value, torch.Tensor):
                kind = type(value).__name__
                raise InputError(f"{where}: {key} is a {kind}; expected a tensor (torch.from_numpy)")
        if images.dtype != torch.uint8 or images.ndim != 4 or images.numel() == 0:
            found = f"{images.dtype} of shape {tuple(images.shape)}"
            raise InputError(f"{where}: images are {found}; expected uint8 (N, C, H, W)")
        if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
            found = f"{labels.dtype} {tuple(labels.shape)}"
            raise InputError(f"{where}: labels are {found}; expected int64 ({len(images)},)")
        if labels.device != images.device:
            places = f"labels are on {labels.device}, images on {images.device}"
            raise InputError(f"{where}: {places}; move both to one device")
        if not isinstance(self.classes, tuple) or not all(is_plain(name) for name in self.classes):
            raise InputError(
                f"{where}: class names {self.classes!r:.200}; expected a tuple of printable strings"
            )
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= len(self.classes):
            expected = f"expected 0..{len(self.classes) - 1}, one per class name"
            raise InputError(f"{where}: labels span {low}..{high}; {expected}")

    def __len__(self) -> int:
        return len(self.images)

    def __deepcopy__(self, memo: object) -> "ImageDataset":
        return self  # it is never changed; Gymnasium copies the arguments of ``make`` with every ``env.spec``

    def __repr__(self) -> str:
        size = "x".join(map(str, self.shape))
        images = f"{len(self)} images {size}, {self.num_classes} classes, {self.device}"
        return f"ImageDataset({self.name!r}, {self.split!r}, {images})"

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width (C, H, W) of every image."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    @property
    def num_classes(self) -> int:
        """Number of classes K."""
        return len(self.classes)

    @property
    def device(self) -> torch.device:
        """Where images and labels are."""
        return self.images.device

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of shape, pixels, labels and class names; name, split and device do not matter."""
        chunks = (chunk.cpu().numpy() for chunk in self._chunks())
        return content_fingerprint(self.images.shape, chunks, self.labels.cpu().numpy(), self.classes)

    def to(self, device: str | torch.device) -> "ImageDataset":
        """Return the data set on ``device`` (itself when it is there already)."""
        target = check_device(device)
        images = self.images.to(target)
        if images is self.images:
            return self
        moved = replace(self, images=images, labels=self.labels.to(target))
        if "fingerprint" in self.__dict__:
            moved.__dict__["fingerprint"] = self.fingerprint
        return moved

    def take(self, indices: torch.Tensor | Sequence[int]) -> "ImageDataset":
        """Return the images at ``indices`` (M,), in that order and copied.

        Raises:
            InputError: an index is outside 0..N-1, or none is given.
        """
        index = torch.as_tensor(indices, dtype=torch.int64).reshape(-1).to(self.device)
        if len(index) == 0 or int(index.min()) < 0 or int(index.max()) >= len(self):
            span = f"{int(index.min())}..{int(index.max())}" if len(index) else "none"
            raise InputError(f"image indices {span}; expected at least one, all in 0..{len(self) - 1}")
        return replace(self, images=self.images[index], labels=self.labels[index])

    def channel_stats(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean (C,) and standard deviation (C,) of the pixels in [0, 1], float32 on the CPU.

        They come from exact counts of the 256 values; a constant channel has deviation 0.
        """
        return self._channel_stats

    @cached_property
    def _channel_stats(self) -> tuple[torch.Tensor, torch.Tensor]:
        counts = torch.zeros(self.shape[0], 256, dtype=torch.int64, device=self.device)
        for chunk in self._chunks():
            for channel, row in enumerate(counts):
                row += torch.bincount(chunk[:, channel].reshape(-1), minlength=256)
        mean, std = [], []
        # In whole numbers, so that nothing is lost before the last division.
        for histogram in counts.tolist():
            total, first, second = (
                sum(value**power * count for value, count in enumerate(histogram)) for power in range(3)
            )
            mean.append(first / (255 * total))
            std.append(math.sqrt((total * second - first * first) / (255 * total) ** 2))
        return torch.tensor(mean), torch.tensor(std)

    def _chunks(self) -> Iterator[torch.Tensor]:
        return iter(self.images.split(max(1, CHUNK // self.images[0].numel())))


def default_root() -> Path:
    """Return the data root of users who choose none: ``$LABELBANDIT_DATA``, else ``~/.cache/labelbandit/data``."""
    chosen = os.environ.get("LABELBANDIT_DATA")
    return Path(chosen).expanduser().absolute() if chosen else user_root()


def user_root() -> Path:
    """Return ``~/.cache/labelbandit/data``, where decoded copies go when the data root cannot be written."""
    return Path("~/.cache/labelbandit/data").expanduser().absolute()


class Splits(NamedTuple):
    """The three splits of one data set."""

    train: ImageDataset
    val: ImageDataset
    test: ImageDataset


def load_dataset(
    name: str,
    split: str = "train",
    *,
    data_root: str | Path | None = None,
    image_size: int | None = None,
    device: str | torch.device = "cpu",
) -> ImageDataset:
    """Load one split of a data set by name.

    The first call decodes all images and keeps a copy under ``data_root/decoded``; later calls map that copy into
    memory, so that on the CPU a data set may be larger than memory. Splits are stratified and never change.

    - ``digits``: bundled with scikit-learn. 20 % of every class are the test split, 10 % of the rest validation.
    - ``mnist``, ``fashion-mnist``, ``cifar10``, ``cifar100``, ``stl10``: found under ``data_root`` where torchvision
      puts them, or downloaded; validation is 10 % of train.
    - ``imagenet100``: image files in ``data_root/imagenet100/{train,val}/CLASS``, 100 classes, fitted to 224 pixels
      by default; ``val`` is the test split, validation 10 % of train.
    - ``folder:PATH``: image files in class folders, see ``envs.data.folder``.
    - ``npz:PATH``: a NumPy archive, see ``envs.data.npz``.

    Args:
        name: the data set.
        split: ``train``, ``val`` or ``test``.
        data_root: where downloads and decoded copies live; default ``$LABELBANDIT_DATA``, else
            ``~/.cache/labelbandit/data``.
        image_size: fit images to squares of so many pixels: the largest centred square, scaled (bilinear,
            antialiased). By default images keep their size, which must then be the same for all.
        device: where the tensors go.

    Raises:
        InputError: an unknown name or split, a missing or bad file, a wrong size or device.
    """
    if split not in SPLITS:
        raise unknown_name("split", split, SPLITS)
    return _load(name, (split,), data_root, image_size, device)[0]


def load_splits(
    name: str,
    *,
    data_root: str | Path | None = None,
    image_size: int | None = None,
    device: str | torch.device = "cpu",
) -> Splits:
    """Load train, validation and test of a data set; arguments and errors as in ``load_dataset``."""
    return Splits(*_load(name, SPLITS, data_root, image_size, device))


def _load(
    name: str,
    splits: tuple[str, ...],
    data_root: str | Path | None,
    image_size: int | None,
    device: str | torch.device,
) -> list[ImageDataset]:
    target = check_device(device)
    if image_size is not None:
        try:
            side = operator.index(image_size)
        except TypeError:
            side = 0
        if not 1 <= side <= _MAX_SIDE:
            raise InputError(
                f"image size {image_size!r}; expected a whole number of pixels, 1 to {_MAX_SIDE}"
            )
        image_size = side
    root = Path(data_root).expanduser().absolute() if data_root else default_root()
    if root.exists() and not root.is_dir():
        remedy = "set --data-root or $LABELBANDIT_DATA"
        raise InputError(f"data root {root} is a file; expected a directory; {remedy}")
    homes = [] if name == "digits" else [home / "decoded" for home in dict.fromkeys([root, user_root()])]
    loaded = load(_find(name, root, image_size), homes, splits)
    datasets = []
    for split in splits:
        images, labels, fingerprint = loaded.splits[split]
        data = ImageDataset(name, split, torch.from_numpy(images), torch.from_numpy(labels), loaded.classes)
        data.__dict__["fingerprint"] = fingerprint  # known to the cache: saves hashing the images again
        datasets.append(data.to(target))
    return datasets


def _find(name: str, root: Path, image_size: int | None) -> Source:
    """Return the source of the data set called ``name``."""
    if name == "digits":
        return digits_source(image_size)
    if name == "imagenet100":
        return imagenet100_source(root, image_size)
    if name in PUBLISHED:
        return published_source(name, root, image_size)
    kind, _, path = str(name).partition(":")
    if kind not in ("folder", "npz"):
        raise unknown_name("data set", name, [*DATASETS, "folder:PATH", "npz:PATH"])
    if not path:
        raise InputError(f"data set {name!r} names no path; expected {kind}:PATH")
    find = folder_source if kind == "folder" else npz_source
    return find(name, Path(os.path.abspath(os.path.expanduser(path))), image_size)


def check_device(device: str | torch.device) -> torch.device:
    """Return ``device`` as a torch device that this machine has.

    Raises:
        InputError: the name is not a device, or CUDA or that GPU is not available.
    """
    try:
        target = torch.device(device)
    except (RuntimeError, TypeError):
        raise InputError(f"device {device!r} is not one; expected cpu, cuda or cuda:N") from None
    if target.type == "cuda" and not torch.cuda.is_available():
        remedy = "use cpu or install a CUDA build"
        raise InputError(f"device {device!r}: this PyTorch sees no CUDA device; {remedy}")
    if target.type == "cuda" and (target.index or 0) >= torch.cuda.device_count():
        raise InputError(f"device {device!r}; expected cuda:0 to cuda:{torch.cuda.device_count() - 1} here")
    return target
