"""Random flips and shifts of image batches, every image by its own seed, without a loop over images."""

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from torch import Tensor

from envs.errors import InputError, unknown_name
from envs.plain import plain
from envs.rng import hash_ints, hash_tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

# How an image's 63 random bits are spent: two for the flips, then 15 for each of four shifts.
_SHIFT_BITS = 15
_SHIFT_MASK = (1 << _SHIFT_BITS) - 1
PARTS = ("hflip", "vflip", "translate:FRACTION", "crop:PIXELS")
_NUMBERS: dict[str, tuple[str, type, str]] = {
    "translate": ("translate", float, "translate:0.1"),
    "crop": ("crop_padding", int, "crop:4"),
}
_Bits = TypeVar("_Bits", int, Tensor)


@dataclass(frozen=True)
class Augmentation:
    """What is drawn for each image: flips, then one shift by the sum of both draws; zeros fill the gaps."""

    hflip: bool = False  #: mirror left and right with probability 1/2
    vflip: bool = False  #: mirror top and bottom with probability 1/2
    #: fraction in [0, 1]; shift each axis by a uniform whole number of pixels, at most ``round(translate * size)``
    translate: float = 0.0
    crop_padding: int = 0  #: pixels, at least 0; pad every side by this much and crop back at a uniform place

    def __post_init__(self) -> None:
        for name in ("translate", "crop_padding"):
            object.__setattr__(self, name, plain(getattr(self, name)))
        if not 0 <= self.translate <= 1:
            raise InputError(f"translate is {self.translate}; expected a fraction of the size, such as 0.1")
        if self.crop_padding < 0 or self.crop_padding != int(self.crop_padding):
            expected = "expected a whole number of pixels, such as 0 or 4"
            raise InputError(f"crop_padding is {self.crop_padding}; {expected}")

    @property
    def is_identity(self) -> bool:
        """Whether every image stays as it is."""
        return not (self.hflip or self.vflip or self.translate or self.crop_padding)

    @property
    def copies(self) -> int:
        """How many copies of an image rows come from: itself, and its mirror image where there are flips."""
        return 1 + self.hflip

    def max_shifts(self, size: int) -> tuple[int, int]:
        """Return the largest translation and crop shift, in pixels, of an axis with ``size`` pixels."""
        largest = _SHIFT_MASK // 2
        return min(round(self.translate * size), largest), min(self.crop_padding, largest)

    @classmethod
    def parse(cls, text: str) -> "Augmentation":
        """Return the augmentation called ``text``: a preset, or a list such as "hflip,translate:0.1,crop:4".

        Presets: ``none``; ``paper`` (both flips, translation by up to 10 %); ``standard`` (hflip, crop with
        padding 4).

        Raises:
            InputError: an unknown name, or a number missing, superfluous, malformed or out of range.
        """
        if text in PRESETS:
            return PRESETS[text]
        fields: dict[str, bool | float | int] = {}
        for part in map(str.strip, text.split(",")):
            name, _, number = part.partition(":")
            if name in ("hflip", "vflip"):
                fields[name] = True
                if number:
                    raise InputError(f"augmentation {part!r} takes no number; write {name!r}")
            elif name in _NUMBERS:
                field, kind, example = _NUMBERS[name]
                try:
                    fields[field] = kind(number)
                except ValueError:
                    problem = f"augmentation {part!r} lacks a number"
                    raise InputError(f"{problem}; write it like {example!r}") from None
            else:
                raise unknown_name("augmentation", name, (*PRESETS, *PARTS))
        return cls(**fields)  # type: ignore[arg-type]


PRESETS = {
    "none": Augmentation(),
    "paper": Augmentation(hflip=True, vflip=True, translate=0.1),
    "standard": Augmentation(hflip=True, crop_padding=4),
}


def as_augmentation(augmentation: Augmentation | str | None) -> Augmentation:
    """Return the augmentation that is given itself, as text, or as None, which is no augmentation.

    Raises:
        InputError: it is none of these, or unknown.
    """
    if isinstance(augmentation, str):
        return Augmentation.parse(augmentation)
    if augmentation is not None and not isinstance(augmentation, Augmentation):
        expected = "expected an Augmentation, text such as 'hflip,crop:4', or None"
        raise InputError(f"augmentation is {augmentation!r}; {expected}")
    return augmentation or Augmentation()


def augment(
    images: Tensor, seeds: Tensor, augmentation: Augmentation, places: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """Return the images, each flipped and shifted as its seed says.

    Rows of pixels are copied whole rather than gathered pixel by pixel: with enough zeros around them in memory,
    a shifted row is the run of W values that begins as many places earlier.

    ``images`` are uint8 (N, C, H, W), as is the result (``images`` itself if nothing is to be done); ``seeds`` int64
    (N,), on the same device; equal seeds give equal draws; ``places``: `source_places` of the seeds, where known.
    """
    if augmentation.is_identity:
        return images
    count, channels, height, width = images.shape
    rows, pitch = _padded(height, width, augmentation)
    margin = (rows - height) // 2
    memory = images.new_zeros(pitch + count * channels * augmentation.copies * rows * pitch)
    copies = memory[pitch:].view(count, channels, augmentation.copies, rows, pitch)
    copies[:, :, 0, margin : margin + height, :width] = images
    if augmentation.hflip:
        copies[:, :, 1, margin : margin + height, :width] = images.flip(3)

    first, step = source_places(seeds, height, width, augmentation) if places is None else places
    origins, numbers = _counted(count, channels, height, augmentation.copies * rows * pitch, images.device)
    start = torch.addcmul(first.view(-1, 1, 1), step.view(-1, 1, 1), numbers) + origins
    runs = memory.as_strided((memory.numel() - width + 1, width), (1, 1))
    return runs.index_select(0, start.view(-1)).view(images.shape)


def source_places(
    seeds: Tensor, height: int, width: int, augmentation: Augmentation
) -> tuple[Tensor, Tensor]:
    """Return where rows come from: the place of the first, and how far on each next one lies, int64 like ``seeds``.

    Places count pixels of memory in which every image lies in rows of zeros, and beside it its mirror image; before
    all of them is one row more.
    """
    bits = hash_tensor(seeds)
    rows, pitch = _padded(height, width, augmentation)
    upside_down = bits & int(augmentation.vflip)
    direction = 1 - 2 * upside_down
    row = upside_down * (height - 1) - direction * _shift(bits, 0, height, augmentation)
    first = row * pitch - _shift(bits, 1, width, augmentation) + (1 + (rows - height) // 2) * pitch
    if augmentation.hflip:
        first += (bits >> 1 & 1) * (rows * pitch)
    return first, direction * pitch


def augment_one(image: "NDArray[np.uint8]", seed: int, augmentation: Augmentation) -> "NDArray[np.uint8]":
    """Return the image (C, H, W) as ``augment`` makes it in a batch: always a fresh array."""
    if augmentation.is_identity:
        return image.copy()
    bits = hash_ints(seed)
    _, height, width = image.shape
    if augmentation.vflip and bits & 1:
        image = image[:, ::-1]
    if augmentation.hflip and bits >> 1 & 1:
        image = image[:, :, ::-1]
    dy, dx = (_shift(bits, axis, size, augmentation) for axis, size in enumerate((height, width)))
    shifted = np.zeros_like(image, order="C")
    if abs(dy) < height and abs(dx) < width:
        shifted[:, max(dy, 0) : height + min(dy, 0), max(dx, 0) : width + min(dx, 0)] = image[
            :, max(-dy, 0) : height + min(-dy, 0), max(-dx, 0) : width + min(-dx, 0)
        ]
    return shifted


def _padded(height: int, width: int, augmentation: Augmentation) -> tuple[int, int]:
    """Return the rows and the pixels a row that an image takes with the zeros which shifts may bring in."""
    return height + 2 * sum(augmentation.max_shifts(height)), width + sum(augmentation.max_shifts(width))


@lru_cache(maxsize=8)
def _counted(
    count: int, channels: int, height: int, size: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return the place of each image's channel, ``size`` pixels apart: (N, C, 1), and the numbers of rows: (H,)."""
    origins = torch.arange(0, count * channels * size, size, device=device)
    return origins.view(count, channels, 1), torch.arange(height, device=device)


def _shift(bits: _Bits, axis: int, size: int, augmentation: Augmentation) -> _Bits:
    """Return how many pixels the image moves towards the end of the axis, for integers as for tensors."""
    total = bits & 0
    for draw, largest in enumerate(augmentation.max_shifts(size)):
        if largest:
            uniform = (bits >> (2 + (2 * draw + axis) * _SHIFT_BITS)) & _SHIFT_MASK
            total = total + ((uniform * (2 * largest + 1)) >> _SHIFT_BITS) - largest
    return total
