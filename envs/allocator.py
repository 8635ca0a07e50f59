"""Tells the C library to keep freed memory, which is worth a quarter of the training speed on a CPU."""

import ctypes
import os
import platform

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # malloc.h
_NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Keep freed memory in the process, for this process and from now on; return whether that was possible.

    By default glibc asks the system for every activation of a batch and gives it back at once; the system then clears
    each page again. Kept, memory is reused. The process holds its largest use until it ends. Command lines call this;
    a library must not decide it for its host, so call it yourself in programs of your own.

    Nothing is changed off Linux and glibc, or where the environment sets ``MALLOC_*`` or ``GLIBC_TUNABLES`` itself.
    """
    configured = any(name.startswith("MALLOC_") for name in os.environ)
    configured |= "malloc" in os.environ.get("GLIBC_TUNABLES", "")
    if platform.libc_ver()[0] != "glibc" or configured:
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, _NEVER))
