"""Data sets by name: uint8 images and int64 labels on one device, moved there once."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from envs.data.splits import three_way_split
from envs.errors import InputError, unknown_name

DATASETS = ("digits", "mnist", "fashion-mnist", "cifar10", "cifar100", "stl10", "imagenet100")
SPLITS = ("train", "val", "test")
_CHUNK = 1 << 26  # bytes hashed or counted at a time


@dataclass(frozen=True, eq=False)
class ImageDataset:
    """Labelled images of one split.

    Attributes:
        name: the data set's name, as given to ``load_dataset``.
        split: ``train``, ``val`` or ``test``.
        images: uint8 (N, C, H, W).
        labels: int64 (N,), in 0..K-1, on the images' device.
        classes: the K class names.

    Raises:
        InputError: a tensor has the wrong type, shape or device, or a label is out of range.
    """

    name: str
    split: str
    images: torch.Tensor
    labels: torch.Tensor
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        _check(self)

    def __len__(self) -> int:
        return len(self.images)

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
        digest = hashlib.sha256(repr((tuple(self.images.shape), self.classes)).encode())
        rows = max(1, _CHUNK // self.images[0].numel())
        for start in range(0, len(self), rows):
            digest.update(self.images[start : start + rows].cpu().contiguous().numpy().data)
        digest.update(self.labels.cpu().contiguous().numpy().data)
        return digest.hexdigest()

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
        channels = self.shape[0]
        counts = torch.zeros(channels, 256, dtype=torch.int64, device=self.device)
        rows = max(1, _CHUNK // self.images[0].numel())
        for start in range(0, len(self), rows):
            chunk = self.images[start : start + rows]
            for channel in range(channels):
                counts[channel] += torch.bincount(chunk[:, channel].reshape(-1), minlength=256)
        counts, values = counts.double().cpu(), torch.arange(256, dtype=torch.float64) / 255
        total = counts.sum(1)
        mean = counts @ values / total
        variance = (counts * (values - mean[:, None]).square()).sum(1) / total
        return mean.float(), variance.sqrt().float()


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

    Args:
        name: one of ``DATASETS``, ``folder:PATH`` or ``npz:PATH``.
        split: ``train``, ``val`` or ``test``.
        data_root: where downloads and decoded copies live; default ``$LABELBANDIT_DATA``, else
            ``~/.cache/labelbandit/data``.
        image_size: side in pixels to which images are resized; default: the data set's own.
        device: where the tensors go.

    Raises:
        InputError: an unknown name or split, a missing or bad file, a wrong size or device.
    """
    if split not in SPLITS:
        raise unknown_name("split", split, SPLITS)
    return getattr(load_splits(name, data_root=data_root, image_size=image_size, device=device), split)


def load_splits(
    name: str,
    *,
    data_root: str | Path | None = None,
    image_size: int | None = None,
    device: str | torch.device = "cpu",
) -> Splits:
    """Load train, validation and test of a data set; arguments and errors as in ``load_dataset``."""
    target = check_device(device)
    if name not in _LOADERS:
        raise unknown_name("data set", name, [*DATASETS, "folder:PATH", "npz:PATH"])
    images, labels, classes = _LOADERS[name]()
    parts = zip(SPLITS, three_way_split(labels), strict=True)
    return Splits(
        *(
            ImageDataset(
                name, split, torch.from_numpy(images[index]), torch.from_numpy(labels[index]), classes
            ).to(target)
            for split, index in parts
        )
    )


def check_device(device: str | torch.device) -> torch.device:
    """Return ``device`` as a torch device that this machine has.

    Raises:
        InputError: the name is not a device, or CUDA is not available.
    """
    try:
        target = torch.device(device)
    except (RuntimeError, TypeError):
        raise InputError(f"device {device!r} is not one; expected cpu, cuda or cuda:N") from None
    if target.type == "cuda" and not torch.cuda.is_available():
        raise InputError(
            f"device {device!r}: this PyTorch sees no CUDA device; use cpu or install a CUDA build"
        )
    return target


def _digits() -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """scikit-learn's 1,797 scans of 8x8 pixels with values 0..16, stretched to 0..255."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.round(bunch.images * (255 / 16)).astype(np.uint8)[:, None]
    return images, bunch.target.astype(np.int64), tuple("0123456789")


_LOADERS: dict[str, Callable[[], tuple[np.ndarray, np.ndarray, tuple[str, ...]]]] = {"digits": _digits}


def _check(data: ImageDataset) -> None:
    """Cheap checks of a data set's tensors."""
    images, labels, where = data.images, data.labels, f"data set {data.name!r}"
    for key, value in (("images", images), ("labels", labels)):
        if not isinstance(value, torch.Tensor):
            raise InputError(
                f"{where}: {key} is a {type(value).__name__}; expected a tensor (torch.from_numpy)"
            )
    if images.dtype != torch.uint8 or images.ndim != 4 or images.numel() == 0:
        raise InputError(
            f"{where}: images are {images.dtype} of shape {tuple(images.shape)}; expected uint8 (N, C, H, W)"
        )
    if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
        raise InputError(
            f"{where}: labels are {labels.dtype} {tuple(labels.shape)}; expected int64 ({len(images)},)"
        )
    if labels.device != images.device:
        raise InputError(
            f"{where}: labels are on {labels.device}, images on {images.device}; move both to one device"
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= len(data.classes):
        raise InputError(
            f"{where}: labels span {low}..{high}; expected 0..{len(data.classes) - 1}, one per class name"
        )
