"""Pictures inside the page: plots as PNG, and adversarial images of an ``.npz`` file, read without unpickling."""

import base64
import io
import math
import warnings
import zipfile
import zlib
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from envs.errors import InputError, cause
from eval.report.safe_folder import Folder

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PLOT_BYTES = 32 * 2**20
_PLOT_PIXELS = 50_000_000
_COLOURS = 256
_FILE_BYTES = 256 * 2**20
_ARRAY_BYTES = 512 * 2**20
_MOST_SIDE = 1024
_ARRAYS = ("clean", "adversarial", "labels", "predicted", "confidences")


class Picture(NamedTuple):
    """An image as a ``data:`` address, with its size in pixels."""

    uri: str
    width: int
    height: int


def read_png(folder: Folder, file: str) -> Picture:
    """Return a PNG of the directory, in 256 colours where that makes it smaller: a chart needs no more.

    Raises InputError where it cannot be read, is no PNG, or is larger than any plot.
    """
    content, where = folder.read(file, _PLOT_BYTES), folder.path / file
    if not content.startswith(_SIGNATURE):
        raise InputError(f"{where} is no PNG; draw it again")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # Pillow only warns of images that are too large to be honest
            image = Image.open(io.BytesIO(content), formats=["PNG"])
            if image.width * image.height > _PLOT_PIXELS:
                raise InputError(f"{where} has {image.width} x {image.height} pixels; draw it smaller")
            paper = Image.new("RGBA", image.size, "white")
            paper.alpha_composite(image.convert("RGBA"))
    except InputError:
        raise
    except (OSError, ValueError, SyntaxError, EOFError, Warning, Image.DecompressionBombError) as error:
        raise InputError(f"{where} is damaged ({error}); draw it again") from None
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


class Example(NamedTuple):
    """One image before and after the attack, as pictures, with the difference around grey, magnified by ``factor``.

    ``label``: true class; ``before``, ``after``: class that the model sees, with which confidence, None where it is not
    recorded; ``fooled``: the attacked image is seen as another class than the true one.
    """

    clean: Picture
    attacked: Picture
    change: Picture
    factor: float
    label: str
    before: str | None
    sure_before: float | None
    after: str
    sure_after: float | None
    fooled: bool


def pack_gallery(
    clean: Tensor,
    attacked: Tensor,
    labels: Tensor,
    clean_logits: Tensor,
    attacked_logits: Tensor,
    indices: Tensor | None = None,
) -> bytes:
    """Return a gallery file as `read_gallery` takes it.

    Args:
        clean: images in [0, 1], (n, C, H, W); stored in 8 bits.
        attacked: the same images attacked.
        labels: true classes, (n,).
        clean_logits, attacked_logits: the model's answers, (n, K).
        indices: places of the images in their data set, (n,), where they are to be kept.
    """
    answers = [logits.float().softmax(1).nan_to_num(0).max(1) for logits in (clean_logits, attacked_logits)]
    clean, attacked = ((part * 255).round().clamp(0, 255).to(torch.uint8) for part in (clean, attacked))
    arrays = {"clean": clean.contiguous(), "adversarial": attacked.contiguous(), "labels": labels}
    arrays["predicted"] = torch.stack([classes for _, classes in answers], 1)
    arrays["confidences"] = torch.stack([values for values, _ in answers], 1)
    arrays |= {} if indices is None else {"indices": indices}
    plain, buffer = {name: item.cpu().numpy() for name, item in arrays.items()}, io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **plain)
    return buffer.getvalue()


def read_gallery(folder: Folder, file: str, classes: tuple[str, ...] = (), most: int = 8) -> list[Example]:
    """Return the first ``most`` images of ``file``, those that fool the model before those that do not.

    The file holds ``clean`` and ``adversarial``, uint8 (n, C, H, W); ``labels`` (n,); ``predicted`` and
    ``confidences``, (n,) of the attacked images or (n, 2) of the clean and the attacked ones. An InputError says where
    it is missing, damaged, too large, or its arrays do not fit together.
    """
    where = str(folder.path / file)
    arrays = _checked(_load(folder.read(file, _FILE_BYTES), where), where)
    order = np.argsort(arrays["predicted"][:, -1] == arrays["labels"], kind="stable")[:most]
    return [_example(arrays, int(row), classes) for row in order]


def _load(content: bytes, where: str) -> dict[str, np.ndarray]:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return {name: _array(archive, name, where) for name in _ARRAYS}
    except InputError:
        raise
    except KeyError as error:
        raise InputError(f"{where} lacks {error}; write it again") from None
    except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, OSError, RuntimeError) as error:
        damaged = f"{where} is no archive of arrays, or is damaged"
        raise InputError(f"{damaged}; write it again ({cause(error, 80)})") from None


def _array(archive: zipfile.ZipFile, name: str, where: str) -> np.ndarray:
    """Return one array; its size is compared with the header before any memory is taken for it."""
    info = archive.getinfo(f"{name}.npy")
    if info.file_size > _ARRAY_BYTES:
        raise InputError(f"{where}: {name} has {info.file_size} bytes; at most {_ARRAY_BYTES} are read")
    with archive.open(info) as member:
        stream = io.BytesIO(member.read(_ARRAY_BYTES))
    version = np.lib.format.read_magic(stream)
    if version != (1, 0):
        raise InputError(f"{where}: {name} is of .npy version {version}; expected (1, 0), as np.savez writes")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    rest = stream.getbuffer()[stream.tell() :]
    if dtype.kind not in "uif" or fortran or math.prod(shape) * dtype.itemsize != len(rest):
        raise InputError(f"{where}: {name} is {dtype} {shape}; expected a whole array of numbers in C order")
    return np.frombuffer(rest, dtype).reshape(shape)


def _checked(arrays: dict[str, np.ndarray], where: str) -> dict[str, np.ndarray]:
    """Return the arrays, answers as (n, 1) of the attacked images or (n, 2) of the clean and the attacked ones."""
    clean, attacked, labels = arrays["clean"], arrays["adversarial"], arrays["labels"]
    fits = clean.dtype == np.uint8 == attacked.dtype and clean.ndim == 4 and clean.shape == attacked.shape
    fits = fits and clean.shape[1] in (1, 3) and all(0 < side <= _MOST_SIDE for side in clean.shape[2:])
    if not fits:
        raise InputError(
            f"{where}: clean is {clean.dtype} {clean.shape}, adversarial {attacked.dtype} {attacked.shape}; "
            f"expected uint8 (n, 1 or 3, H, W) of at most {_MOST_SIDE} pixels a side, twice"
        )
    n, answers = len(clean), {name: arrays[name] for name in ("predicted", "confidences")}
    for name, values in answers.items():
        if values.shape not in ((n,), (n, 1), (n, 2)):
            raise InputError(f"{where}: {name} has shape {values.shape}; expected ({n},) or ({n}, 2)")
        answers[name] = values.reshape(n, -1) if n else values.reshape(0, 1)
    if labels.shape != (n,) or labels.dtype.kind not in "ui" or answers["predicted"].dtype.kind not in "ui":
        found = f"labels are {labels.dtype} {labels.shape}"
        raise InputError(f"{where}: {found}; expected whole numbers, one per image")
    sure = answers["confidences"]
    if not ((sure >= 0) & (sure <= 1.001)).all():  # NaN is neither; softmax may round above 1
        raise InputError(f"{where}: a confidence is not within 0 to 1; write the file again")
    return arrays | answers


def _example(arrays: dict[str, np.ndarray], row: int, classes: tuple[str, ...]) -> Example:
    clean, attacked, label, predicted, sure = (arrays[name][row] for name in _ARRAYS)
    change = attacked.astype(np.int16) - clean
    largest = max(int(np.abs(change).max()), 1)
    magnified = np.round(127.5 + change * (127.5 / largest)).astype(np.uint8)

    def name(number: int) -> str:
        return classes[number] if 0 <= number < len(classes) else str(number)

    return Example(
        clean=pixels(clean),
        attacked=pixels(attacked),
        change=pixels(magnified),
        factor=127.5 / largest,
        label=name(int(label)),
        before=name(int(predicted[0])) if len(predicted) == 2 else None,
        sure_before=float(sure[0]) if len(sure) == 2 else None,
        after=name(int(predicted[-1])),
        sure_after=float(sure[-1]),
        fooled=int(predicted[-1]) != int(label),
    )
