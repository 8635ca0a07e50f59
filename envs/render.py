"""Pictures of environments: the image enlarged, with the answer and the truth beneath."""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

if TYPE_CHECKING:
    from envs.task import ImageTask

_SIDE = 256  # pixels, at least, of the longer side of the enlarged image
_FONT_SIZE = 18
_LINE = 26
_PAPER, _INK, _GREY = (255, 255, 255), (32, 33, 36), (110, 114, 120)
_RIGHT, _WRONG = (24, 128, 56), (200, 30, 30)


class Answer(NamedTuple):
    """What the environments showed last, and the actions taken on it: three int64 (n,)."""

    indices: Tensor
    augment_seeds: Tensor
    actions: Tensor


def render_answers(task: "ImageTask", answer: Answer | None) -> list[np.ndarray]:
    """Return a picture of every environment: what was answered, or the image shown now if nothing was yet."""
    indices, seeds = (answer.indices, answer.augment_seeds) if answer else (task.indices, task.augment_seeds)
    images = task.render_batch(indices, seeds).cpu().numpy()
    truths = task.all_true_labels[indices].tolist()
    actions = answer.actions.tolist() if answer else [None] * task.num_envs
    classes = task.dataset.classes
    return [
        render_image(image, truth=truth, action=action, classes=classes)
        for image, truth, action in zip(images, truths, actions, strict=True)
    ]


def render_image(
    image: np.ndarray, *, truth: int, action: int | None, classes: tuple[str, ...]
) -> np.ndarray:
    """Return a picture of one image.

    Args:
        image: uint8 (C, H, W); 1 channel is grey, 3 are red, green and blue; of others the mean is shown.
        truth: the label; drawn only beside an action, so that pictures do not give the answer away.
        action: the answer, or None before there is one.
        classes: the class names.

    Returns:
        uint8 (height, width, 3), of one size for all images of a shape.
    """
    if len(image) not in (1, 3):
        image = image.mean(axis=0, keepdims=True).astype(np.uint8)
    pixels = np.broadcast_to(image, (3, *image.shape[1:])).transpose(1, 2, 0)
    height, width = pixels.shape[:2]
    scale = max(1, -(-_SIDE // max(height, width)))
    frame = Image.fromarray(np.ascontiguousarray(pixels)).resize(
        (width * scale, height * scale), Image.Resampling.NEAREST
    )
    picture = Image.new("RGB", (max(frame.width, _SIDE), frame.height + 2 * _LINE + 8), _PAPER)
    picture.paste(frame, ((picture.width - frame.width) // 2, 0))
    draw = ImageDraw.Draw(picture)
    top = frame.height + 4
    if action is None:
        _write(draw, top, "action", "not taken yet", _GREY, picture.width)
    else:
        _write(draw, top, "action", classes[action], _RIGHT if action == truth else _WRONG, picture.width)
        _write(draw, top + _LINE, "truth", classes[truth], _INK, picture.width)
    return np.asarray(picture)


def _write(
    draw: ImageDraw.ImageDraw, top: int, name: str, value: str, colour: tuple[int, int, int], width: int
) -> None:
    font = ImageFont.load_default(_FONT_SIZE)
    left = 74
    while value and left + draw.textlength(value, font) > width - 6:
        value = value[:-2] + "…" if len(value) > 2 else ""
    draw.text((8, top), name, _GREY, font)
    draw.text((left, top), value, colour, font)
