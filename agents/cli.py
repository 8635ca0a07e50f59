"""The frame around every command line: typed options in, one line of error out."""

import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import tyro

from attacks.errors import AttackError
from envs.errors import InputError

USAGE_ERROR = 2
INTERRUPTED = 130


def parse_number(text: str) -> float:
    """Read ``0.1`` or a fraction such as ``8/255``.

    Raises:
        ValueError: the text is neither.
    """
    match = re.fullmatch(r"\s*([^/\s]+)\s*(?:/\s*([^/\s]+)\s*)?", text)
    if match is None:
        raise ValueError(f"{text!r} is not a number; expected e.g. 0.1 or 8/255")
    try:
        return float(match[1]) / float(match[2] or 1)
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"{text!r} is not a number; expected e.g. 0.1 or 8/255") from None


def run_cli(
    main: Callable[[Any], int | None],
    config_class: Any,
    prog: str,
    argv: Sequence[str] | None = None,
    defaults: Callable[[Sequence[str]], Any | None] | None = None,
) -> int:
    """Parse ``argv`` into ``config_class``, call ``main`` with it, and return the exit status.

    Errors meant for people (:class:`InputError`, :class:`AttackError`, :class:`OSError`) become one line on standard
    error and status 2; Ctrl-C becomes status 130. ``--debug`` anywhere on the line shows the traceback as well.
    ``defaults`` may look at the arguments and return the configuration that they override.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        start = defaults(arguments) if defaults else None
        known = {} if start is None else {"default": start}
        config = tyro.cli(config_class, prog=prog, args=arguments, description=main.__doc__, **known)
        return main(config) or 0
    except SystemExit as stop:  # tyro has printed its own message, help included
        return stop.code if isinstance(stop.code, int) else USAGE_ERROR
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (InputError, AttackError, OSError) as error:
        if debug:
            traceback.print_exc()
        print(f"error: {_one_line(error)}", file=sys.stderr)
        return USAGE_ERROR
    except KeyboardInterrupt as interrupt:
        if debug:
            traceback.print_exc()
        print(str(interrupt) or "interrupted", file=sys.stderr)
        return INTERRUPTED


def _one_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror and not isinstance(error, InputError):
        where = f" {error.filename!r}" if error.filename else ""
        return f"{error.strerror}:{where}; check the path, its permissions and the free space"
    return " ".join(str(error).split())
