"""When a GPU may round float32 products to TF32, and whether a device computes in bfloat16.

TF32 keeps 10 of float32's 23 bits and is some times as fast on tensor cores. The policy: what trains may use it, what
evaluates or attacks does not, so that results are float32's on every device.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

_X86_FLAGS = ("avx512_bf16", "amx_bf16")


def emulates_bf16(device: torch.device) -> bool:
    """Return whether ``device`` is known to have no bfloat16 arithmetic, so that it would be slower than float32.

    On a Xeon without AVX512-BF16 and AMX, bf16 training of ``cnn4`` took 2.8 times as long as fp32.
    """
    if device.type == "cuda":
        return not torch.cuda.is_bf16_supported(including_emulation=False)
    known = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return known.get("architecture") == "x86_64" and not any(known.get(flag) for flag in _X86_FLAGS)


def use_tf32(allowed: bool) -> None:
    """Let GPUs round float32 matrix products and convolutions to TF32 from now on, or not."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed


def uses_tf32() -> bool:
    """Return whether GPUs may round float32 products to TF32 at present."""
    return torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Within this context GPUs may round float32 products to TF32, or not; then PyTorch's settings are as before."""
    before = (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)
    use_tf32(allowed)
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
