"""Marks on the storage of CPU tensors, by which `pretend_cuda` knows what lies on its GPU.

A view shares its storage and thereby its mark. Marks are attributes of ``UntypedStorage`` objects; PyTorch keeps such
an object alive as long as the storage lives.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_iter

CUDA = torch.device("cuda", 0)
CPU = torch.device("cpu")
GPU_MARK = "_pretend_cuda"
EITHER_MARK = "_pretend_either"  # made inside PyTorch, whose options say CPU here and would say CUDA there
_Base = torch._C.TensorBase
own_device = _Base.device.__get__


def names(text: str) -> frozenset[str]:
    return frozenset(text.split())


def on_gpu(tensor: Tensor) -> bool:
    """Whether the tensor lies on the pretend GPU."""
    return _has(tensor, GPU_MARK)


def fits_either(tensor: Tensor) -> bool:
    """Whether PyTorch's own code made the tensor, so that on a GPU it would lie where it is needed."""
    return _has(tensor, EITHER_MARK)


def put_on_gpu(tensor: Tensor) -> None:
    _set(tensor, GPU_MARK)


def put_on_either(tensor: Tensor) -> None:
    _set(tensor, EITHER_MARK)


def put_on_cpu(tensor: Tensor) -> None:
    with torch._C.DisableTorchFunction():
        vars(_storage(tensor)).pop(GPU_MARK, None)


def share_storage(one: Tensor, other: Tensor) -> bool:
    return _storage(one) is _storage(other)


def tensors_of(found: Any) -> Iterable[Tensor]:
    """All tensors in nested lists, tuples and dictionaries."""
    return (value for value in tree_iter(found) if isinstance(value, Tensor))


def as_device(value: Any) -> torch.device | None:
    """The device that an argument names, or None."""
    if isinstance(value, torch.device):
        return value
    if isinstance(value, str):
        try:
            return torch.device(value)
        except RuntimeError:
            return None
    return torch.device("cuda", value) if isinstance(value, int) and not isinstance(value, bool) else None


def _storage(tensor: Tensor) -> Any:
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return _Base.untyped_storage(tensor)


def _has(tensor: Tensor, mark: str) -> bool:
    with torch._C.DisableTorchFunction():
        if own_device(tensor).type != "cpu" or tensor.layout != torch.strided:
            return False
        try:
            return hasattr(_storage(tensor), mark)
        except (NotImplementedError, RuntimeError):  # a tensor without storage
            return False


def _set(tensor: Tensor, mark: str) -> None:
    with torch._C.DisableTorchFunction():
        if own_device(tensor).type == "cpu":
            setattr(_storage(tensor), mark, True)
