"""Whether training compiles its network, and what happens where that fails."""

import os
import shutil
import sys
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

_COMPILERS = ("torch._dynamo", "torch._inductor", "torch._functorch", "triton")


def compiles(wanted: bool | None, device: torch.device) -> bool:
    """Return whether to compile: as ``wanted``, or by default on a GPU where that is possible; if not, say why."""
    if wanted is not None or device.type != "cuda":
        return bool(wanted)
    if torch.cuda.get_device_capability(device) < (7, 0):
        reason = "Triton needs a GPU of compute capability 7.0"
    elif find_spec("triton") is None:
        reason = "Triton is not installed"
    elif not (os.environ.get("CC") or any(map(shutil.which, ("cc", "gcc", "clang")))):
        reason = "Triton needs a C compiler"
    else:
        return True
    print(f"note: the network is not compiled: {reason}; --no-compile hides this note", file=sys.stderr)
    return False


def compiled(network: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return ``network`` compiled by its first call; if its compilation fails, as it is, after a warning."""
    run: Any = torch.compile(network)

    def call(images: Tensor) -> Tensor:
        nonlocal run
        if run is network:
            return network(images)
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", ".*functools.lru_cache")  # cached constants, safe to trace
                return run(images)
        except Exception as error:  # compilers have no error of their own in common
            if not type(error).__module__.startswith(_COMPILERS):
                raise
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            warnings.warn(f"the network goes on without being compiled: {reason}", stacklevel=2)
            run = network
        return network(images)

    return call
