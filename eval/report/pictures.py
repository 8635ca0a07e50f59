"""Pictures inside the page: plots as the directory has them, and adversarial images pixel by pixel."""

import base64
import io
import warnings
from dataclasses import dataclass

import numpy as np
from PIL import Image

from envs.errors import InputError
from eval.report.safe_folder import Folder

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PLOT_BYTES = 32 * 2**20
_PLOT_PIXELS = 50_000_000
_COLOURS = 256


@dataclass(frozen=True)
class Picture:
    """An image as a ``data:`` address, with its size in pixels."""

    uri: str
    width: int
    height: int


def read_png(folder: Folder, file: str) -> Picture:
    """Return a PNG of the directory, in 256 colours where that makes it smaller: a chart needs no more.

    Raises:
        InputError: it cannot be read, is no PNG, or is larger than any plot.
    """
    content = folder.read(file, _PLOT_BYTES)
    if not content.startswith(_SIGNATURE):
        raise InputError(f"{folder.path / file} is no PNG; draw it again")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # Pillow only warns of images that are too large to be honest
            image = Image.open(io.BytesIO(content), formats=["PNG"])
            if image.width * image.height > _PLOT_PIXELS:
                raise InputError(
                    f"{folder.path / file} has {image.width} x {image.height} pixels; draw it smaller"
                )
            paper = Image.new("RGBA", image.size, "white")
            paper.alpha_composite(image.convert("RGBA"))
    except (OSError, ValueError, SyntaxError, EOFError, Warning, Image.DecompressionBombError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{folder.path / file} is damaged ({error}); draw it again") from None
    smaller = _encode(paper.convert("RGB").quantize(_COLOURS, dither=Image.Dither.NONE))
    return Picture(_uri(min(content, smaller, key=len)), image.width, image.height)


def pixels(image: np.ndarray) -> Picture:
    """Return an image, uint8 (C, H, W) with one or three channels, as PNG: no pixel changes."""
    channels, height, width = image.shape
    picture = Image.fromarray(image[0] if channels == 1 else np.ascontiguousarray(image.transpose(1, 2, 0)))
    return Picture(_uri(_encode(picture)), width, height)


def _encode(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def _uri(content: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(content).decode()
