"""Errors of the attacks: one line with the value, what was expected, and the remedy."""

import difflib
from collections.abc import Iterable

_MACHINE = ("cuda", "cudnn", "cublas", "hip error", "mps backend", "device-side")
_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


class AttackError(ValueError):
    """A wrong input or a model that makes the attack's result meaningless."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out; the CPU's allocator and cuDNN say so by their message alone."""
    import torch  # not sooner, for command lines answer before it is imported

    known = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    return known or any(sign in str(error) for sign in _MEMORY)


def is_machine_error(error: BaseException) -> bool:
    """Whether a device or a lack of memory is to blame and not the model; code that goes on after errors raises these.

    An error of a GPU may surface late, in another call than the one that caused it, and what follows is void.
    """
    import torch

    known = is_out_of_memory(error) or isinstance(error, getattr(torch, "AcceleratorError", ()))
    return known or any(sign in str(error).lower() for sign in _MACHINE)


def unknown_name(kind: str, value: object, valid: Iterable[str]) -> AttackError:
    """Return the error for an unknown ``kind`` called ``value``: it lists the valid names and the nearest one."""
    names = list(valid)
    close = difflib.get_close_matches(str(value), names, n=1, cutoff=0.4)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return AttackError(f"unknown {kind} {value!r}; valid: {', '.join(names)}.{hint}")
