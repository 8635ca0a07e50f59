"""Decode image files and fit pixels to a size, on all cores."""

import os
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from envs.data.source import readable, wrong

EXTENSIONS = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
# Only decoders that run inside this process: Pillow hands EPS files, for one, to an external interpreter.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
_GRAY = ("1", "L", "LA")
_COLOUR = ("CMYK", "P", "PA", "RGB", "RGBA", "RGBX", "YCbCr", "LAB", "HSV")
_MAX_PIXELS = 64_000_000
_BATCH = 64
PATIENCE = 1.0  # seconds without a progress bar


class Header(NamedTuple):
    """Width and height in pixels, and whether the pixels have no colour."""

    width: int
    height: int
    gray: bool


def read_header(path: str) -> Header:
    """Return size and kind of an image file without decoding it.

    Raises:
        InputError: it is not an image, or has over 64 million pixels, or more than 8 bits a channel.
    """
    with open_image(path) as image:
        return Header(*image.size, image.mode in _GRAY)


def decode(path: str, channels: int, side: int | None) -> np.ndarray:
    """Return the first frame of an image file as uint8 (C, H, W); transparency and orientation tags are ignored.

    ``channels``: 3 for RGB, gray files included; 1 for gray. ``side``: fit the image to a square of so many pixels;
    None keeps its size.

    Raises:
        InputError: as ``read_header``, or the file is truncated or damaged, or has colour where gray is expected.
    """
    with open_image(path) as image:
        if channels == 1 and image.mode not in _GRAY:
            raise wrong(path, "is in colour; expected gray like the first images", "convert all to one kind")
        pixels = image.convert("L" if channels == 1 else "RGB")
        array = np.asarray(pixels if side is None else _fit(pixels, side))
        return array[None] if channels == 1 else array.transpose(2, 0, 1)


@contextmanager
def open_image(path: str) -> Iterator[Image.Image]:
    """Open an image file, its header read and its size checked.

    Raises:
        InputError: it cannot be read, is too large, or has other pixels than 8 bits a channel.
    """
    with readable(path, "replace or remove the file"):
        _check_size(path, webp_size(path))  # Pillow allocates the whole canvas of a WebP file to open it
    with readable(path, "replace or remove the file"), Image.open(path, formats=_FORMATS) as image:
        _check_size(path, image.size)
        if image.mode not in _GRAY + _COLOUR:
            raise wrong(path, f"has pixels of kind {image.mode!r}; expected 8 bits a channel", "convert it")
        yield image


def _check_size(path: str, size: tuple[int, int]) -> None:
    if size[0] * size[1] > _MAX_PIXELS:
        raise wrong(path, f"has {size[0]} x {size[1]} pixels; expected at most {_MAX_PIXELS:,}", "shrink it")


def webp_size(path: str) -> tuple[int, int]:
    """Return width and height from the first chunk of a WebP file (RFC 9649); (0, 0) for other files."""
    with open(path, "rb") as file:
        head = file.read(30)
    if head[:4] != b"RIFF" or head[8:12] != b"WEBP" or len(head) < 30:
        return 0, 0
    if head[12:16] == b"VP8X":
        return 1 + int.from_bytes(head[24:27], "little"), 1 + int.from_bytes(head[27:30], "little")
    if head[12:16] == b"VP8L":
        bits = int.from_bytes(head[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    return int.from_bytes(head[26:28], "little") & 0x3FFF, int.from_bytes(head[28:30], "little") & 0x3FFF


def place(out: np.ndarray, positions: np.ndarray, images: np.ndarray) -> None:
    """Write images (M, C, h, w) to ``out[positions]`` (N, C, H, W), fitted to the square H x W if sizes differ."""
    if out.shape[1:] == images.shape[1:]:
        out[positions] = images
        return

    def fit_one(row: int) -> None:
        for channel, plane in enumerate(images[row]):
            out[positions[row], channel] = np.asarray(_fit(Image.fromarray(plane), out.shape[2]))

    parallel(fit_one, len(images), "resizing images")


def parallel(work: Callable[[int], None], count: int, title: str) -> None:
    """Call ``work(0)`` ... ``work(count - 1)`` on threads; what takes over a second shows a progress bar.

    The first error, in order of the index, is raised and stops the rest. Decoders and resizing release Python's
    lock, so threads use the cores, without the start-up time and the ``__main__`` guards of processes.
    """

    def run(start: int) -> int:
        stop = min(start + _BATCH, count)
        for index in range(start, stop):
            work(index)
        return stop

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    task = bar.add_task(title, total=count)
    begun = time.monotonic()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with warnings.catch_warnings(), ThreadPoolExecutor(cores) as pool:
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # open_image has a limit of its own
        try:
            for done in pool.map(run, range(0, count, _BATCH)):
                bar.update(task, completed=done)
                if time.monotonic() - begun > PATIENCE:
                    bar.start()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            if bar.live.is_started:  # stopping prints a line even where nothing was shown
                bar.stop()


def _fit(image: Image.Image, side: int) -> Image.Image:
    """Scale the largest centred square to ``side`` pixels, bilinear with antialiasing: shapes are not stretched."""
    width, height = image.size
    edge = min(width, height)
    left, top = (width - edge) / 2, (height - edge) / 2
    return image.resize((side, side), Image.Resampling.BILINEAR, box=(left, top, left + edge, top + edge))
