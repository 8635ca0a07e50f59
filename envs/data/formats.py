"""Plain binary formats: IDX (MNIST and its kin) and STL-10."""

import gzip
import math
import os
import struct
from pathlib import Path

import numpy as np

from envs.data.source import readable, wrong

_AGAIN = "delete it and download it again"
_MAX_SIZE = 1 << 32  # bytes of pixels that an IDX header may announce
_STL10 = (3, 96, 96)


def read_idx(path: Path, ndim: int) -> np.ndarray:
    """Return the uint8 array of an IDX file, plain or ``.gz``.

    The format: two zero bytes, 8 for unsigned bytes, the number of axes (expected: ``ndim``, 3 for images and 1 for
    labels), each axis as a big-endian 32-bit size, then the values.

    Raises:
        InputError: the file is missing, damaged, cut off, longer than it says, or of another kind.
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


def read_stl10(images: Path, labels: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return STL-10's images uint8 (N, 3, 96, 96), stored column by column, and its labels (N,), stored from 1.

    Raises:
        InputError: a file is missing, or its size is not a whole number of images.
    """
    with readable(images, "download it again"):
        size, each = os.path.getsize(images), math.prod(_STL10)
        if size == 0 or size % each:
            raise wrong(images, f"has {size:,} bytes; expected a multiple of {each:,}")
        pixels = np.fromfile(images, dtype=np.uint8).reshape(-1, *_STL10).transpose(0, 1, 3, 2)
    with readable(labels, "download it again"):
        return pixels, np.fromfile(labels, dtype=np.uint8).astype(np.int64) - 1
