"""Checks of values that come from a file: unknown keys and wrong types end with one line that names them."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import msgspec

from envs.errors import InputError, unknown_name

T = TypeVar("T")


def check_keys(where: str, values: Any, valid: Iterable[str]) -> None:
    """Raise an InputError if ``values`` is no table or has a key that is not ``valid``; it names the nearest one."""
    if not isinstance(values, Mapping):
        raise InputError(f"{where} is {values!r}; expected a table, such as [{where}]")
    valid = list(valid)
    for key in values:
        if key not in valid:
            raise unknown_name(f"key of {where}", key, valid)


def build(kind: type[T], values: Any, where: str) -> T:
    """Return the dataclass ``kind`` with ``values`` for its fields, their types and ranges checked.

    Raises:
        InputError: a key is unknown, a field is missing, or a value is of the wrong type or out of range.
    """
    check_keys(where, values, get_type_hints(kind))
    try:
        return msgspec.convert(values, kind, dec_hook=_path)
    except msgspec.ValidationError as error:
        reason, _, place = str(error).partition(" - at `$.")
        key = re.split(r"\W", place)[0]
        found = f"{key} is {values[key]!r}" if key in values else where
        raise InputError(f"{found} in {where}: {reason[:1].lower()}{reason[1:].replace('`', '')}") from None


def _path(kind: type, value: Any) -> Any:
    """Return the path that a text names; msgspec does not know the kind."""
    if kind is not Path or not isinstance(value, str | Path):
        raise TypeError(f"expected a path, got {value!r}")
    return Path(value).expanduser()
