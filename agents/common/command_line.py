"""Shared by every command line: options are parsed into a dataclass, errors printed as one line.

``--help`` prints the options that the dataclass names in its class variable ``FIRST``, as ``data.n`` where they are in
a nested dataclass, and ``--help-all`` all of them; without it, both print all.
"""

import contextlib
import copy
import dataclasses
import difflib
import importlib
import io
import os
import re
import sys
import traceback
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import tyro

from attacks.core.errors import AttackError
from attacks.starting import interruptible
from envs.allocator import keep_freed_memory
from envs.errors import InputError

USAGE_ERROR = 2
INTERRUPTED = 130
_LONGEST = 1200  # letters of a message
_WORDS = {str: "STR", int: "INT", float: "FLOAT", Path: "PATH"}


def parse_number(text: str) -> float:
    """Read ``0.1`` or a fraction such as ``8/255``. Raises ValueError: the text is neither."""
    above, slash, below = text.partition("/")
    try:
        return float(above) / (float(below) if slash else 1)
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"{text!r} is not a number; expected e.g. 0.1 or 8/255") from None


def run_cli(
    main: str | Callable[[Any], int | None],
    config_class: Any,
    prog: str,
    argv: Sequence[str] | None = None,
    defaults: Callable[[Sequence[str]], Any | None] | None = None,
    first_line: Callable[[Any], str] | None = None,
) -> int:
    """Parse ``argv`` into ``config_class``, call ``main`` with it, and return the exit status.

    ``main`` as "module:function" is imported after parsing: help and wrong options do not wait for PyTorch.

    Errors meant for people (:class:`InputError`, :class:`AttackError`, :class:`OSError`) become one line on standard
    error and status 2; Ctrl-C becomes status 130. ``--debug`` anywhere on the line shows the traceback as well.
    ``defaults`` may look at the arguments and return the configuration that they override. What ``first_line`` makes
    of the configuration is printed on standard error before PyTorch is imported, where that is a terminal.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        start = defaults(arguments) if defaults else None
        known = {} if start is None else {"default": start}
        if asked := {"-h", "--help", "--help-all"}.intersection(arguments):
            description = config_class.__doc__
            first = () if "--help-all" in asked else getattr(config_class, "FIRST", "").split()
            if first:
                description += "\n\nThese are the options used most; --help-all shows all of them."
            shown = _shown(config_class, start, first)
            tyro.cli(shown, prog=prog, description=description, args=["--help"])  # raises SystemExit
        keep_freed_memory()
        config = _parse(config_class, {"prog": prog, "args": arguments, **known})
        if first_line and sys.stderr.isatty() and (line := first_line(config)):
            print(line, file=sys.stderr)
        function: Any = main
        if isinstance(main, str):
            module, _, name = main.partition(":")
            function = getattr(importlib.import_module(module), name)
        from agents.common.precision import tf32

        with interruptible(), tf32(False):
            return function(config) or 0
    except SystemExit as stop:  # the help has been printed
        return stop.code if isinstance(stop.code, int) else USAGE_ERROR
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (InputError, AttackError, OSError) as error:
        if debug:
            traceback.print_exc()
        print(f"error: {one_line(error)}", file=sys.stderr)
        return USAGE_ERROR
    except KeyboardInterrupt as interrupt:
        if debug:
            traceback.print_exc()
        print(str(interrupt) or "interrupted", file=sys.stderr)
        return INTERRUPTED


def _parse(config_class: Any, options: dict[str, Any]) -> Any:
    """Return the configuration that the command line describes; ``options`` are those of ``tyro.cli``.

    Raises:
        InputError: it cannot be read; tyro's own message fills a box.
        SystemExit: it asks for help, which has been printed.
    """
    messages = io.StringIO()
    try:
        with contextlib.redirect_stderr(messages):
            return tyro.cli(config_class, **options)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise InputError(f"{_gist(messages.getvalue())}; see {options['prog']} --help-all") from None


def _gist(message: str) -> str:
    """Return what matters of tyro's message: the problem, and the option that was perhaps meant."""
    lines = [line.strip(" |\u2502") for line in message.splitlines()][1:]  # the first is a title
    problem: list[str] = []
    for line in lines:
        if re.match("[-\u2500\u2570]{3}|Got errors", line):
            if problem:
                break
        else:
            problem.append(line)
    text = " ".join(" ".join(problem).removeprefix("Error parsing ").split()).rstrip(".")
    unknown = re.findall(r"--[\w.-]+", text)
    if not unknown or "Perhaps you meant" not in message:
        return text
    names = [name for line in lines if line.startswith("--") for name in re.findall(r"--[\w.-]+", line)]
    near = difflib.get_close_matches(unknown[0], names, 1, 0.5)
    return text + "".join(f"; did you mean {name}?" for name in near)


def one_line(error: BaseException) -> str:
    """Return what an error says as one line that is safe to print: control characters could rewrite a terminal."""
    if isinstance(error, OSError) and error.strerror and not isinstance(error, InputError):
        where = f": {error.filename!r}" if error.filename else ""
        text = f"{error.strerror}{where}; check the path, its permissions and the free space"
    else:
        text = " ".join(str(error).split())
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST // 2]} ... {text[-_LONGEST // 2 :]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


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
