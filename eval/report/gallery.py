"""Adversarial images of one model as an ``.npz`` file, read without unpickling."""

import io
import math
import zipfile
import zlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from envs.errors import InputError
from eval.report.pictures import Picture, pixels
from eval.report.safe_folder import Folder

_FILE_BYTES = 256 * 2**20
_ARRAY_BYTES = 512 * 2**20
_MOST_SIDE = 1024
_ARRAYS = ("clean", "adversarial", "labels", "predicted", "confidences")


@dataclass(frozen=True)
class Example:
    """One image before and after the attack.

    Attributes:
        clean, attacked: the pictures.
        change: their difference around grey, magnified by ``factor``.
        label: true class.
        before, after: class that the model sees, None where it is not recorded; sure_before and sure_after: with
            which confidence.
        fooled: the attacked image is seen as another class than the true one.
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
    arrays = {
        "clean": _to_bytes(clean),
        "adversarial": _to_bytes(attacked),
        "labels": labels.cpu().numpy(),
        "predicted": np.stack([classes.cpu().numpy() for _, classes in answers], 1),
        "confidences": np.stack([values.cpu().numpy() for values, _ in answers], 1),
    }
    if indices is not None:
        arrays["indices"] = indices.cpu().numpy()
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def _to_bytes(images: Tensor) -> np.ndarray:
    return (images * 255).round().clamp(0, 255).to(torch.uint8).cpu().contiguous().numpy()


def read_gallery(folder: Folder, file: str, classes: tuple[str, ...] = (), most: int = 8) -> list[Example]:
    """Return the first ``most`` images of ``file``, those that fool the model before those that do not.

    The file holds ``clean`` and ``adversarial``, uint8 (n, C, H, W); ``labels`` (n,); ``predicted`` and
    ``confidences``, (n,) of the attacked images or (n, 2) of the clean and the attacked ones.

    Raises:
        InputError: it is missing, damaged, too large, or its arrays do not fit together.
    """
    arrays = _checked(_load(folder.read(file, _FILE_BYTES), str(folder.path / file)), str(folder.path / file))
    predicted, labels = arrays["predicted"], arrays["labels"]
    order = np.argsort(predicted[:, -1] == labels, kind="stable")[:most]
    return [_example(arrays, int(row), classes) for row in order]


def _load(content: bytes, where: str) -> dict[str, np.ndarray]:
    damaged = f"{where} is no archive of arrays, or is damaged; write it again"
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return {name: _array(archive, name, where) for name in _ARRAYS}
    except InputError:
        raise
    except KeyError as error:
        raise InputError(f"{where} lacks {error}; write it again") from None
    except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, OSError, RuntimeError) as error:
        raise InputError(f"{damaged} ({' '.join(str(error).split())[:80]})") from None


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
    clean, attacked = arrays["clean"], arrays["adversarial"]
    fits = clean.dtype == np.uint8 == attacked.dtype and clean.ndim == 4 and clean.shape == attacked.shape
    fits = fits and clean.shape[1] in (1, 3) and all(0 < side <= _MOST_SIDE for side in clean.shape[2:])
    if not fits:
        raise InputError(
            f"{where}: clean is {clean.dtype} {clean.shape}, adversarial {attacked.dtype} {attacked.shape}; "
            f"expected uint8 (n, 1 or 3, H, W) of at most {_MOST_SIDE} pixels a side, twice"
        )
    n, labels = len(clean), arrays["labels"]
    predicted, sure = (_columns(arrays[name], n, f"{where}: {name}") for name in ("predicted", "confidences"))
    if labels.shape != (n,) or labels.dtype.kind not in "ui" or predicted.dtype.kind not in "ui":
        raise InputError(
            f"{where}: labels are {labels.dtype} {labels.shape}; expected whole numbers, one per image"
        )
    if not ((sure >= 0) & (sure <= 1.001)).all():  # NaN is neither; softmax may round above 1
        raise InputError(f"{where}: a confidence is not within 0 to 1; write the file again")
    return arrays | {"predicted": predicted, "confidences": sure}


def _columns(values: np.ndarray, n: int, where: str) -> np.ndarray:
    """Return (n, 1) or (n, 2): of the attacked images, or of the clean ones and the attacked ones."""
    if values.shape not in ((n,), (n, 1), (n, 2)):
        raise InputError(f"{where} has shape {values.shape}; expected ({n},) or ({n}, 2)")
    return values.reshape(n, -1) if n else values.reshape(0, 1)


def _example(arrays: dict[str, np.ndarray], row: int, classes: tuple[str, ...]) -> Example:
    clean, attacked = arrays["clean"][row], arrays["adversarial"][row]
    change = attacked.astype(np.int16) - clean
    largest = max(int(np.abs(change).max()), 1)
    magnified = np.round(127.5 + change * (127.5 / largest)).astype(np.uint8)
    predicted, sure, label = arrays["predicted"][row], arrays["confidences"][row], int(arrays["labels"][row])

    def name(number: int) -> str:
        return classes[number] if 0 <= number < len(classes) else str(number)

    return Example(
        clean=pixels(clean),
        attacked=pixels(attacked),
        change=pixels(magnified),
        factor=127.5 / largest,
        label=name(label),
        before=name(int(predicted[0])) if len(predicted) == 2 else None,
        sure_before=float(sure[0]) if len(sure) == 2 else None,
        after=name(int(predicted[-1])),
        sure_after=float(sure[-1]),
        fooled=int(predicted[-1]) != label,
    )
