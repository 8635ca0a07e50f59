"""The handwritten digits that come with scikit-learn."""

import importlib.util
from pathlib import Path

import numpy as np

from envs.data.source import Allocate, Arrays, Decoded, Source
from envs.data.splits import arrange


def digits_source(image_size: int | None) -> Source:
    """Return the 1,797 scans of 8x8 pixels, whose values 0..16 become round(255 v / 16)."""

    def read(allocate: Allocate) -> Decoded:
        pixels, labels = _scans()
        images = np.round(pixels * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)
        parts = {"all": Arrays(images, labels.astype(np.int64))}
        return arrange("digits", tuple("0123456789"), parts, allocate, image_size)

    return Source("digits", "digits", "", read)


def _scans() -> tuple[np.ndarray, np.ndarray]:
    """Return pixels ``(1797, 64)``, 0..16, and labels ``(1797,)``, float64."""
    found = importlib.util.find_spec("sklearn")  # does not import it, which takes over a second
    file = Path(found.origin or "").parent / "datasets/data/digits.csv.gz" if found else None
    if file is not None and file.is_file():
        rows = np.loadtxt(file, delimiter=",")
        return rows[:, :-1], rows[:, -1]
    from sklearn.datasets import load_digits  # another release may keep them elsewhere

    return load_digits(return_X_y=True)
