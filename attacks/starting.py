"""Ctrl-C while a program imports PyTorch and the rest: one line and status 130 in place of a traceback.

The packages that are programs (``python -m attacks``, ``python -m agents.train``) import this module before anything
else; for everybody who imports them as libraries it does nothing.
"""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_PROGRAMS = {"agents", "attacks", "eval"}


def _leave(number: int, frame: FrameType | None) -> None:
    os.write(2, b"interrupted\n")
    os._exit(130)  # nothing has been begun; unwinding half-imported libraries would print tracebacks


def _starts_program() -> bool:
    """Return whether Python is looking for one of this project's programs: ``sys.argv[0]`` is ``-m`` until found."""
    words = sys.orig_argv
    module = words[words.index("-m") + 1] if "-m" in words[:-1] else ""
    return sys.argv[:1] == ["-m"] and module.partition(".")[0] in _PROGRAMS


if _starts_program() and threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, _leave)


@contextmanager
def interruptible() -> Iterator[None]:
    """Within, Ctrl-C raises KeyboardInterrupt as usual; after it, while the program ends, it is one line again."""
    starting = signal.getsignal(signal.SIGINT) is _leave
    if starting:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        if starting:
            signal.signal(signal.SIGINT, _leave)
