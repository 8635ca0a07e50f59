"""Python's side of `pretend_cuda`: the functions by which a program names devices."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from tests.support.pretend_cuda_marks import (
    CPU,
    CUDA,
    GPU_MARK,
    as_device,
    names,
    on_gpu,
    put_on_cpu,
    put_on_gpu,
    share_storage,
    tensors_of,
)

if TYPE_CHECKING:
    from tests.support.pretend_cuda import PretendCuda

_FACTORIES = names(
    "zeros ones full empty arange linspace logspace eye rand randn randint randperm tensor as_tensor "
    "scalar_tensor from_numpy normal tril_indices triu_indices empty_strided"
)
_FROM_DATA = (torch.tensor, torch.as_tensor, torch.asarray, torch.scalar_tensor)


class Functions(TorchFunctionMode):
    """Turns requests for CUDA into marked CPU tensors, and gives marked tensors the manners of CUDA tensors."""

    def __init__(self, gpu: "PretendCuda") -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in _SPECIAL:
            return _SPECIAL[func](self.gpu, func, args, kwargs)
        device = kwargs.get("device")
        if device is None or isinstance(device, Tensor):
            if getattr(func, "__name__", "") not in _FACTORIES:
                return func(*args, **kwargs)
            with self.gpu.asked_for_device():  # of the CPU, by saying nothing
                return func(*args, **kwargs)
        wanted = as_device(device)
        if wanted is None or wanted.type not in ("cuda", "cpu"):
            return func(*args, **kwargs)
        kwargs["device"] = CPU
        if wanted.type == "cuda":
            self.gpu.check_index(wanted)
            generator = kwargs.get("generator")
            if generator is not None and not getattr(generator, GPU_MARK, False):
                raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
        if func in _FROM_DATA:
            return _made_from_data(self.gpu, func, args, kwargs, wanted)
        with self.gpu.asked_for_device(), self.gpu.making(wanted.type == "cuda"):
            found = func(*args, **kwargs)
        for tensor in tensors_of(found):
            (put_on_gpu if wanted.type == "cuda" else put_on_cpu)(tensor)
        return found


def _made_from_data(gpu: "PretendCuda", func: Any, args: Any, kwargs: Any, wanted: torch.device) -> Any:
    data = args[0] if args else kwargs.get("data", kwargs.get("obj"))
    if wanted.type == "cpu":
        moved = isinstance(data, Tensor) and on_gpu(data)
        if moved:
            gpu.wait("copy to the CPU")
        found = func(*args, **kwargs)
        if moved:
            found = found.clone() if share_storage(found, data) else found
            put_on_cpu(found)
        return found
    if isinstance(data, Tensor):
        if func is torch.as_tensor and on_gpu(data):
            return func(*args, **kwargs)
        found = func(*args, **kwargs)
        found = found if func is torch.tensor else Tensor.clone(found)
        if not on_gpu(data):
            gpu.wait("copy to the GPU")
    else:
        found = func(*args, **kwargs)
        found = found if func is torch.tensor else found.clone()  # not the array's own memory
        if func is not torch.scalar_tensor:
            gpu.wait("copy to the GPU")
    put_on_gpu(found)
    return found


def _to(gpu: "PretendCuda", func: Any, args: Any, kwargs: Any) -> Any:
    """``Tensor.to`` in its three forms: another tensor, a dtype, or a device and a dtype."""
    tensor, *rest = args
    wanted, dtype = kwargs.pop("device", None), kwargs.pop("dtype", None)
    wanted = None if wanted is None else as_device(wanted)
    other = kwargs.pop("other", None)
    if rest and isinstance(rest[0], Tensor):
        other, *rest = rest
    elif rest and isinstance(rest[0], torch.dtype):
        dtype, *rest = rest
    elif rest:
        first, *rest = rest
        wanted = as_device(first) if first is not None else wanted
        if rest:
            dtype, *rest = rest
    if other is not None:
        wanted, dtype = other.device, other.dtype
    return _moved(
        gpu, tensor, wanted, dtype, kwargs | dict(zip(("non_blocking", "copy"), rest, strict=False))
    )


def _moved(
    gpu: "PretendCuda",
    tensor: Tensor,
    wanted: torch.device | None,
    dtype: torch.dtype | None,
    options: dict[str, Any],
) -> Tensor:
    options = options if dtype is None else {**options, "dtype": dtype}
    same_dtype = {"dtype": tensor.dtype}
    here = tensor.device
    if wanted is not None and wanted.type == "cuda":
        gpu.check_index(wanted)
    if wanted is None or wanted.type == here.type:
        return Tensor.to(tensor, **(same_dtype | options)) if options else tensor
    if not {wanted.type, here.type} <= {"cpu", "cuda"}:
        found = Tensor.to(tensor, device=CPU if wanted.type == "cuda" else wanted, **options)
        if wanted.type == "cuda":
            put_on_gpu(found)
        return found
    if wanted.type == "cpu" or not options.get("non_blocking"):
        gpu.wait("copy to the GPU" if wanted.type == "cuda" else "copy to the CPU")
    with gpu.moving():
        found = Tensor.to(tensor, **(same_dtype | options | {"copy": True}))
    (put_on_gpu if wanted.type == "cuda" else put_on_cpu)(found)
    return found


def _cpu(gpu: "PretendCuda", func: Any, args: Any, kwargs: Any) -> Any:
    return _moved(gpu, args[0], CPU, None, kwargs)


def _cuda(gpu: "PretendCuda", func: Any, args: Any, kwargs: Any) -> Any:
    return _moved(
        gpu, args[0], CUDA, None, {name: value for name, value in kwargs.items() if name != "device"}
    )


def _numpy(gpu: "PretendCuda", func: Any, args: Any, kwargs: Any) -> Any:
    if on_gpu(args[0]):
        raise TypeError(
            "can't convert cuda:0 device type tensor to numpy. "
            "Use Tensor.cpu() to copy the tensor to host memory first."
        )
    return func(*args, **kwargs)


def _tolist(gpu: "PretendCuda", func: Any, args: Any, kwargs: Any) -> Any:
    if on_gpu(args[0]):
        gpu.wait("tolist")
    return func(*args, **kwargs)


def _type_as(gpu: "PretendCuda", func: Any, args: Any, kwargs: Any) -> Any:
    return _moved(gpu, args[0], args[1].device, args[1].dtype, {})


def _new_tensor(gpu: "PretendCuda", func: Any, args: Any, kwargs: Any) -> Any:
    found = func(*args, **{**kwargs, "device": CPU})
    asked = kwargs.get("device")
    wanted = args[0].device if asked is None else as_device(asked)
    if wanted is not None and wanted.type == "cuda":
        gpu.wait("copy to the GPU")
        put_on_gpu(found)
    return found


def _dropout(gpu: "PretendCuda", func: Any, args: Any, kwargs: Any) -> Any:
    """On a GPU one kernel draws the mask and multiplies; on the CPU there are three operators."""
    with gpu.as_one_kernel("native_dropout" if on_gpu(args[0]) else None):
        return func(*args, **kwargs)


_SPECIAL: dict[Any, Any] = {
    torch.nn.functional.dropout: _dropout,
    Tensor.to: _to,
    Tensor.cpu: _cpu,
    Tensor.cuda: _cuda,
    Tensor.numpy: _numpy,
    Tensor.__array__: _numpy,
    Tensor.tolist: _tolist,
    Tensor.type_as: _type_as,
    Tensor.new_tensor: _new_tensor,
}
