"""Converts options given as NumPy scalars or one-element tensors to Python numbers."""

import dataclasses
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from envs.plain import plain

P = ParamSpec("P")
R = TypeVar("R")


class PlainNumbers:
    """Base of frozen dataclasses, whose fields JSON and the command line must be able to hold."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = plain(getattr(self, field.name))
            if isinstance(value, dict):
                value = {key: plain(item) for key, item in value.items()}
            object.__setattr__(self, field.name, value)


def takes_numbers(function: Callable[P, R]) -> Callable[P, R]:
    """Make ``function`` take NumPy's numbers and 0-d tensors by keyword as Python's own."""

    @wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> R:
        return function(*args, **{name: plain(value) for name, value in kwargs.items()})  # type: ignore[arg-type]

    return called
