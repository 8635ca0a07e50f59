"""The handwritten digits that come with scikit-learn."""

import numpy as np

from envs.data.source import Allocate, Arrays, Decoded, Source
from envs.data.splits import arrange


def digits_source(image_size: int | None) -> Source:
    """Return the 1,797 scans of 8x8 pixels, whose values 0..16 become round(255 v / 16)."""

    def read(allocate: Allocate) -> Decoded:
        from sklearn.datasets import load_digits  # takes over a second to import

        digits = load_digits()
        images = np.round(digits.images * (255 / 16)).astype(np.uint8)[:, None]
        parts = {"all": Arrays(images, digits.target.astype(np.int64))}
        return arrange("digits", tuple("0123456789"), parts, allocate, image_size)

    return Source("digits", "digits", "", read)
