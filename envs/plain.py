"""Numbers of NumPy and PyTorch as Python's own, without importing either."""

from typing import Any

from envs.errors import InputError


def plain(value: Any) -> Any:
    """Return NumPy's numbers, and tensors and arrays of a single number (), as Python's own; all else as it is."""
    return value.item() if not getattr(value, "ndim", 1) else value


def check_count(name: str, value: int) -> int:
    """Return a whole number, at least 1, else raise InputError; NumPy's and 0-d tensors count."""
    number = plain(value)
    if type(number) is not int or number < 1:
        raise InputError(f"{name} is {value!r}; expected a whole number, at least 1")
    return number


def check_seed(seed: Any) -> int | None:
    """Return a seed as Python's own whole number, or None, else raise InputError."""
    number = plain(seed)
    if number is not None and not isinstance(number, int):
        raise InputError(f"seed is {seed!r}; expected a whole number or None")
    return number
