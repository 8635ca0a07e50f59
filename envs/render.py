"""Renders environments: the enlarged image, with the action and the true label below."""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

if TYPE_CHECKING:
    from envs.task import ImageTask

_SIDE = 256  # pixels, at least, of the longer side of the enlarged image
_FONT_SIZE = 18
_LINE = 26
_MARGIN = 10
_PAPER, _INK, _GREY = (255, 255, 255), (32, 33, 36), (110, 114, 120)
_RIGHT, _WRONG = (24, 128, 56), (200, 30, 30)


class Answer(NamedTuple):
    """What the environments showed last, and the actions taken on it, -1 for none: three int64 (n,)."""

    indices: Tensor
    augment_seeds: Tensor
    actions: Tensor

    def without(self, mask: Tensor, task: "ImageTask") -> "Answer":
        """Return the answer with the images that ``task`` shows now, unanswered, where the mask (n,) is true."""
        return Answer(
            self.indices.where(~mask, task.indices),
            self.augment_seeds.where(~mask, task.augment_seeds),
            self.actions.masked_fill(mask, -1),
        )


def render_answers(task: "ImageTask", answer: Answer | None) -> list[np.ndarray]:
    """Return a picture of every environment: what was answered, or the image shown now if nothing was yet."""
    indices, seeds = (answer.indices, answer.augment_seeds) if answer else (task.indices, task.augment_seeds)
    images = task.render_batch(indices, seeds).cpu().numpy()
    actions = answer.actions.tolist() if answer else [-1] * len(images)
    pairs = zip(actions, task.all_true_labels[indices].tolist(), strict=True)
    known = [{"action": action, "truth": truth} if action >= 0 else {} for action, truth in pairs]
    shown = zip(images, known, strict=True)
    return [render_image(image, task.dataset.classes, **answers) for image, answers in shown]


def render_image(
    image: np.ndarray, classes: tuple[str, ...], *, action: int | None = None, truth: int | None = None
) -> np.ndarray:
    """Return a picture of one image uint8 (C, H, W): uint8 (height, width, 3), of one size for all images of a shape.

    1 channel is grey, 3 are red, green and blue; of others the mean is shown. ``action``: the answer, or None before
    there is one; ``truth``: the label, left out before there is an answer, so that pictures do not give it away.
    """
    if len(image) not in (1, 3):
        image = image.mean(axis=0, keepdims=True).astype(np.uint8)
    pixels = np.broadcast_to(image, (3, *image.shape[1:])).transpose(1, 2, 0)
    height, width = pixels.shape[:2]
    scale = max(1, -(-_SIDE // max(height, width)))
    size = (width * scale, height * scale)
    enlarged = Image.fromarray(np.ascontiguousarray(pixels)).resize(size, Image.Resampling.NEAREST)
    inner = max(enlarged.width, _SIDE)
    top = _MARGIN + enlarged.height + 4
    picture = Image.new("RGB", (inner + 2 * _MARGIN, top + 2 * _LINE + _MARGIN // 2), _PAPER)
    picture.paste(enlarged, (_MARGIN + (inner - enlarged.width) // 2, _MARGIN))
    draw = ImageDraw.Draw(picture)
    shade = _GREY if action is None else _RIGHT if action == truth else _WRONG
    _write(draw, top, "action", "not taken yet" if action is None else classes[action], shade, inner)
    if truth is not None:
        _write(draw, top + _LINE, "truth", classes[truth], _INK, inner)
    return np.asarray(picture)


def _write(
    draw: ImageDraw.ImageDraw, top: int, name: str, value: str, colour: tuple[int, int, int], width: int
) -> None:
    font = ImageFont.load_default(_FONT_SIZE)
    left = _MARGIN + 66
    while value and left + draw.textlength(value, font) > _MARGIN + width:
        value = value[:-2] + "…" if len(value) > 2 else ""
    draw.text((_MARGIN, top), name, _GREY, font)
    draw.text((left, top), value, colour, font)
