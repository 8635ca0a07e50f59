"""Validation accuracy through a training, as its ``metrics.jsonl`` has it."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from envs.errors import InputError


class Validation(NamedTuple):
    """Images trained on, seconds of training until then, and the accuracy on the validation split."""

    images: int
    seconds: float
    accuracy: float


class _Line(msgspec.Struct):
    step: int
    rate: float | None = msgspec.field(default=None, name="time/images_per_second")
    accuracy: float | None = msgspec.field(default=None, name="val/accuracy")


def read_curve(path: Path) -> tuple[Validation, ...]:
    """Return every validation of the run that wrote ``path``; () where the file is missing.

    Raises:
        InputError: a line cannot be read.
    """
    if not path.is_file():
        return ()
    try:
        lines = [msgspec.json.decode(line, type=_Line) for line in path.read_bytes().splitlines()]
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is damaged ({error}); train the run again") from None
    found, seconds, before = [], 0.0, 0
    for line in lines:
        if line.rate:
            seconds += (line.step - before) / line.rate
            before = line.step
        if line.accuracy is not None:
            found.append(Validation(line.step, seconds, line.accuracy))
    return tuple(found)


def reached(curve: Sequence[Validation], level: float) -> Validation | None:
    """Return the first validation with at least this accuracy; None where there is none."""
    return next((point for point in curve if point.accuracy >= level), None)
