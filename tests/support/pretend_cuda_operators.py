"""PyTorch's side of `pretend_cuda`: every operator's inputs are checked, its results marked, launches counted."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.support.pretend_cuda_marks import (
    CPU,
    fits_either,
    names,
    on_gpu,
    put_on_either,
    put_on_gpu,
    tensors_of,
)

if TYPE_CHECKING:
    from tests.support.pretend_cuda import PretendCuda

# Views, allocations and metadata: no kernel.
_FREE = names(
    "detach alias view _unsafe_view _reshape_alias as_strided expand permute t transpose unsqueeze "
    "squeeze select slice split split_with_sizes unbind unfold diagonal empty empty_like empty_strided "
    "new_empty new_empty_strided lift_fresh lift set_ resize_ is_same_size _local_scalar_dense is_nonzero "
    "result_type _has_compatible_shallow_copy_type real _conj _neg_view view_as_real sym_size chunk "
    "unsafe_split unsafe_chunk record_stream is_pinned"
)
# CUDA itself copies CPU indices over (a copy that waits), so this mixture is legal.
_INDEXING = names("index index_put index_put_ _index_put_impl_ _unsafe_index _unsafe_index_put")
# Operators whose result's size, or Python value, comes from the data.
_WAITS = names(
    "_local_scalar_dense nonzero nonzero_numpy argwhere masked_select unique _unique _unique2 unique_dim "
    "unique_consecutive unique_dim_consecutive bincount equal is_nonzero multinomial _linalg_check_errors "
    "linalg_inv_ex_ histc"
)
_TAKES_SCALARS = names("fill_ fill where masked_fill masked_fill_ lerp index_fill index_fill_")
_COPIES = names("copy_ _to_copy _copy_from _copy_from_and_resize")


class DeviceError(RuntimeError):
    """Tensors of two devices met."""


class Operators(TorchDispatchMode):
    """Checks devices, hands the mark on, counts."""

    def __init__(self, gpu: "PretendCuda") -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        gpu, name = self.gpu, func._schema.name.partition("::")[2]
        device = kwargs.get("device")
        if isinstance(device, torch.device) and device.type == "cuda":  # asked for inside PyTorch
            with gpu.making(True):
                found = self.__torch_dispatch__(func, types, args, {**kwargs, "device": CPU})
            for tensor in tensors_of(found):
                put_on_gpu(tensor)
            return found
        if gpu.is_moving:
            return func(*args, **kwargs)
        inputs = list(tensors_of((args, kwargs)))
        there = [on_gpu(tensor) for tensor in inputs]
        either = [not marked and fits_either(tensor) for tensor, marked in zip(inputs, there, strict=True)]
        involved = any(there)
        if involved:
            fits = [marked or free for marked, free in zip(there, either, strict=True)]
            if not all(fits):
                self._check_mixture(func, name, inputs, fits, args)
            self._note_wait(name, args, kwargs, inputs)
        found = func(*args, **kwargs)
        if (
            not involved and not gpu.was_asked and all(either)
        ):  # or no tensors: a factory called inside PyTorch
            for tensor in tensors_of(found):
                put_on_either(tensor)
        if involved or gpu.makes_on_gpu:
            if name not in _FREE and not func.is_view:
                gpu.launch(name, _kernels(name, args))
            for tensor in tensors_of(found):
                put_on_gpu(tensor)
        return found

    def _check_mixture(self, func: Any, name: str, inputs: list[Tensor], fits: list[bool], args: Any) -> None:
        """Raise what CUDA raises, unless the mixture of devices is one of those that it allows."""
        if name in _COPIES:
            self.gpu.wait("copy between devices (copy_)")
            return
        others = [tensor for tensor, fit in zip(inputs, fits, strict=True) if not fit]
        if name in _INDEXING:
            indices = [index for index in (args[1] or ()) if index is not None]
            plain = [tensor for tensor in others if not any(tensor is index for index in indices)]
            if on_gpu(args[0]) and all(tensor.ndim == 0 for tensor in plain):
                if len(plain) < len(others):
                    self.gpu.wait("CPU index into a GPU tensor")
                return
        elif torch.Tag.pointwise in func.tags or name in _TAKES_SCALARS:
            arguments = zip(args, func._schema.arguments, strict=False)
            written = [
                id(value)
                for value, argument in arguments
                if isinstance(value, Tensor)
                and argument.alias_info is not None
                and argument.alias_info.is_write
            ]
            if all(tensor.ndim == 0 and id(tensor) not in written for tensor in others):
                return
        shapes = ", ".join(
            f"{'cuda:0' if fit else 'cpu'}{tuple(tensor.shape)}"
            for tensor, fit in zip(inputs, fits, strict=True)
        )
        raise DeviceError(
            "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! "
            f"(when calling aten::{name}: {shapes}) at {self.gpu.place()}"
        )

    def _note_wait(self, name: str, args: Any, kwargs: Any, inputs: list[Tensor]) -> None:
        gpu = self.gpu
        if name in _WAITS:
            gpu.wait({"_local_scalar_dense": "item/bool/float/int"}.get(name, name))
        elif name in _INDEXING:
            indices = [index for index in (args[1] or ()) if index is not None]
            masks = [index for index in indices if index.dtype in (torch.bool, torch.uint8)]
            # One mask and a Python number: PyTorch turns it into masked_fill.
            fills = name.startswith("index_put") and len(masks) == len(indices) == 1 and args[2].numel() == 1
            if masks and not (fills and not on_gpu(args[2])):
                gpu.wait("boolean mask", len(masks))
        elif name == "repeat_interleave" and not kwargs.get("output_size"):
            gpu.wait("repeat_interleave by a tensor")
        elif (
            name == "isin"
            and len(inputs) == 2
            and inputs[1].numel() >= 10 * max(inputs[0].numel(), 1) ** 0.145
        ):
            gpu.wait("isin, which sorts (unique)")


def _kernels(name: str, args: Any) -> int:
    """How many kernels an operator launches: one for a whole list of tensors only where all are of one type."""
    if not name.startswith("_foreach_") or len({tensor.dtype for tensor in tensors_of(args)}) < 2:
        return 1
    return len(args[0])
