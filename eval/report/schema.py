"""Taking values out of foreign JSON: a missing one is its default, a wrong one an error that says where."""

import math
from typing import Any

from envs.errors import InputError

TEXT_LENGTH = 20_000
_DEPTH = 8
_MOST_SETTINGS = 1_000


class Fields:
    """One JSON object and the place it comes from.

    Args:
        value: the decoded object.
        where: for errors, such as ``study.json: cells[3]``.

    Raises:
        InputError: it is no object.
    """

    def __init__(self, value: Any, where: str) -> None:
        if not isinstance(value, dict):
            raise InputError(f"{where} is {describe(value)}; expected an object")
        self.value, self.where = value, where

    def text(self, key: str, default: str = "") -> str:
        """Return a text; numbers are written out.

        Raises:
            InputError: it is something else, or too long.
        """
        found = self.value.get(key)
        if found is None:
            return default
        if isinstance(found, int | float) and not isinstance(found, bool):
            return f"{self.number(key):.6g}"
        if not isinstance(found, str) or len(found) > TEXT_LENGTH:
            raise self.error(key, f"a text of at most {TEXT_LENGTH} characters")
        return found

    def number(self, key: str, default: float | None = None) -> float | None:
        """Return a finite number.

        Raises:
            InputError: it is something else.
        """
        found = self.value.get(key)
        if found is None:
            return default
        number = finite(found)
        if number is None:
            raise self.error(key, "a finite number")
        return number

    def share(self, key: str) -> float | None:
        """Return a number from 0 to 1.

        Raises:
            InputError: it is something else.
        """
        number = self.number(key)
        if number is not None and not 0 <= number <= 1:
            raise self.error(key, "a number from 0 to 1")
        return number

    def items(self, key: str, most: int) -> list[Any]:
        """Return a list.

        Raises:
            InputError: it is something else, or has more than ``most`` items.
        """
        found = self.value.get(key)
        if found is None:
            return []
        if not isinstance(found, list):
            raise self.error(key, "a list")
        if len(found) > most:
            raise InputError(f"{self.where}: {key} has {len(found)} items; at most {most} are shown")
        return found

    def objects(self, key: str, most: int) -> list["Fields"]:
        """Return a list of objects; errors as `items`."""
        return [
            Fields(item, f"{self.where}: {key}[{place}]") for place, item in enumerate(self.items(key, most))
        ]

    def mapping(self, key: str) -> dict[str, Any]:
        """Return an object as it is.

        Raises:
            InputError: it is something else.
        """
        found = self.value.get(key)
        if found is None:
            return {}
        if not isinstance(found, dict):
            raise self.error(key, "an object")
        return found

    def error(self, key: str, expected: str) -> InputError:
        """Return the error for a wrong value of ``key``."""
        return InputError(f"{self.where}: {key} is {describe(self.value.get(key))}; expected {expected}")


def finite(value: Any) -> float | None:
    """Return ``value`` as a float if it is a finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def describe(value: Any) -> str:
    """Return a short word for a value in an error."""
    if isinstance(value, dict | list):
        return f"a {'list' if isinstance(value, list) else 'JSON object'} of {len(value)}"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def plain(value: Any, depth: int = 0) -> str:
    """Return any JSON value as text; what is nested too deeply to be read is left out."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "–"
    if isinstance(value, dict | list) and depth >= _DEPTH:
        return "…"
    if isinstance(value, dict):
        return ", ".join(f"{key}: {plain(item, depth + 1)}" for key, item in value.items())[:TEXT_LENGTH]
    if isinstance(value, list):
        return ", ".join(plain(item, depth + 1) for item in value)[:TEXT_LENGTH]
    return f"{value:.6g}" if isinstance(value, float) else str(value)[:TEXT_LENGTH]


def flatten(value: dict[str, Any]) -> dict[str, str]:
    """Return nested settings as ``outer.inner`` to text, as many as a page can show; lists stay one entry."""
    flat: dict[str, str] = {}
    waiting = [("", value, 0)]
    while waiting and len(flat) < _MOST_SETTINGS:
        prefix, found, depth = waiting.pop()
        inner = []
        for key, item in list(found.items())[:_MOST_SETTINGS]:
            name = f"{prefix}{key}"[:200]
            if isinstance(item, dict) and item and depth < _DEPTH:
                inner.append((f"{name}.", item, depth + 1))
            else:
                flat[name] = plain(item)
        waiting += reversed(inner)
    return flat
