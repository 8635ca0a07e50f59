"""What ``--help`` and ``--help-all`` print: the options that a command's class names in ``FIRST``, or all of them."""

import copy
import dataclasses
from collections.abc import Collection
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import tyro

_WORDS = {str: "STR", int: "INT", float: "FLOAT", Path: "PATH"}


def print_help(config_class: Any, prog: str, description: str | None, start: Any, everything: bool) -> None:
    """Print the help of the command called ``prog``, which does ``description``, and raise SystemExit.

    The class variable ``FIRST`` of ``config_class``, a dataclass of the options, names the fields that are shown
    without ``everything``, as ``data.n`` where they are in a nested dataclass; without it, all are. Defaults are the
    values of ``start``, or the class's own where that is None.
    """
    first = () if everything else getattr(config_class, "FIRST", "").split()
    if first:
        description = f"{description}\n\nThese are the options used most; --help-all shows all of them."
    shown = _shown(config_class, start, first)
    tyro.cli(shown, prog=prog, description=description, args=["--help"])


def _shown(options: Any, start: Any, first: Collection[str], prefix: str = "") -> Any:
    """Return a subclass of ``options`` made for its help; where ``first`` names fields, the others are hidden."""
    rows = []
    hints = get_type_hints(options, include_extras=True)
    for item in map(copy.copy, dataclasses.fields(options)):
        hint = hints[item.name]
        kind, *marks = get_args(hint) if get_origin(hint) is Annotated else [hint]
        if start is not None:
            item.default, item.default_factory = getattr(start, item.name), dataclasses.MISSING
        if dataclasses.is_dataclass(kind):
            nested = item.default if item.default_factory is dataclasses.MISSING else item.default_factory()
            kind = _shown(kind, nested, first, f"{prefix}{item.name}.")
            item.default, item.default_factory = dataclasses.MISSING, kind
        elif first and prefix + item.name not in first and tyro.conf.Positional not in marks:
            marks.append(tyro.conf.Suppress)
        else:
            marks.append(_wording(kind, item.default, marks))
        rows.append((item.name, Annotated[(kind, *marks)] if marks else kind, item))
    made: dict[str, Any] = {"frozen": True, "namespace": {"__doc__": options.__doc__}}
    return dataclasses.make_dataclass(options.__name__, rows, bases=(options,), **made)


def _wording(kind: Any, default: Any, marks: list[Any]) -> Any:
    """Return how a value and its default are shown: None and () are not, as the texts say what they stand for."""
    word, parts = None, [part for part in get_args(kind) if part is not type(None)]
    if get_origin(kind) is tuple:
        word = f"{_WORDS[parts[0]]} ..."
        default = default or None
    elif get_origin(kind) in (Union, UnionType):
        word = _WORDS.get(parts[0]) or "{" + ",".join(get_args(parts[0])) + "}"
    if any(isinstance(mark, tyro.constructors.PrimitiveConstructorSpec) for mark in marks):
        word = None  # it brings its own
    if default is None or (get_origin(kind) is tuple and default is dataclasses.MISSING):
        return tyro.conf.arg(metavar=word, help_behavior_hint="")
    return tyro.conf.arg(metavar=word)
