"""Errors of the attacks: one line with the value, what was expected, and the remedy."""

import difflib
from collections.abc import Iterable


class AttackError(ValueError):
    """A wrong input or a model that makes the attack's result meaningless."""


def unknown_name(kind: str, value: object, valid: Iterable[str]) -> AttackError:
    """Return the error for an unknown ``kind`` called ``value``: it lists the valid names and the nearest
    one.
    """
    names = list(valid)
    close = difflib.get_close_matches(str(value), names, n=1, cutoff=0.4)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return AttackError(f"unknown {kind} {value!r}; valid: {', '.join(names)}.{hint}")
