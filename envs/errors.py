"""Errors meant for users: one line with the value, what was expected, and the remedy."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """A wrong input; command lines print its message without a traceback."""


def cause(error: BaseException, most: int = 120) -> str:
    """Return what an error says as one line of at most ``most`` characters, or its kind where it says nothing."""
    return " ".join(str(error).split())[:most] or type(error).__name__


def unknown_name(kind: str, value: str, valid: Iterable[str]) -> InputError:
    """Return the error for an unknown ``kind`` called ``value``: it lists the valid names and the nearest one."""
    names = list(valid)
    close = difflib.get_close_matches(str(value), names, n=1, cutoff=0.4)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return InputError(f"unknown {kind} {value!r}; valid: {', '.join(names)}.{hint}")
