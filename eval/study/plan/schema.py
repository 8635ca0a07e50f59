"""Checks of values that come from a file: unknown keys and wrong types end with one line that names them."""

import dataclasses
from collections.abc import Iterable, Mapping
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from envs.errors import InputError, unknown_name

T = TypeVar("T")


def check_keys(where: str, values: Mapping[str, Any], valid: Iterable[str]) -> None:
    """Raise an InputError that names the nearest valid key if ``values`` has one that is not ``valid``."""
    valid = list(valid)
    for key in values:
        if key not in valid:
            raise unknown_name(f"key of {where}", key, valid)


def check_mapping(where: str, value: Any) -> Mapping[str, Any]:
    """Return ``value`` if it is a table; else raise an InputError."""
    if not isinstance(value, Mapping):
        raise InputError(f"{where} is {value!r}; expected a table, such as [{where}]")
    return value


def check_list(where: str, value: Any) -> tuple[Any, ...]:
    """Return ``value`` as a tuple if it is a list; else raise an InputError."""
    if not isinstance(value, list | tuple):
        raise InputError(f"{where} is {value!r}; expected a list, such as [{value!r}]")
    return tuple(value)


def build(kind: type[T], values: Mapping[str, Any], where: str) -> T:
    """Return the dataclass ``kind`` with ``values`` for its fields, their types checked.

    Raises:
        InputError: a key is unknown, a field is missing, or a value is of the wrong type.
    """
    hints = get_type_hints(kind)
    check_keys(where, values, hints)
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    for name, value in values.items():
        if not _fits(value, hints[name]):
            raise InputError(f"{name} of {where} is {value!r}; expected {_words(hints[name])}")
    required = [item.name for item in dataclasses.fields(kind) if _is_required(item)]  # type: ignore[arg-type]
    for name in required:
        if name not in values:
            raise InputError(f"{where} has no {name}; add it")
    return kind(**values)


def _is_required(item: dataclasses.Field) -> bool:
    return item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING


def _fits(value: Any, hint: Any) -> bool:
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        return any(_fits(value, part) for part in get_args(hint))
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(item, get_args(hint)[0]) for item in value)
    if origin is dict:
        return isinstance(value, Mapping)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def _words(hint: Any) -> str:
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        return " or ".join(_words(part) for part in get_args(hint) if part is not type(None))
    if origin is tuple:
        return f"a list of {_words(get_args(hint)[0])}s"
    return {int: "integer", float: "number", str: "text", bool: "true or false"}.get(
        hint, getattr(hint, "__name__", str(hint))
    )
