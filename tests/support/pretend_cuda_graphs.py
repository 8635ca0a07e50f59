"""CUDA graphs of `pretend_cuda`: operators are recorded with their tensors, and replayed into the same memory.

As on a GPU, what happens inside a capture has no effect: memory that was there before is restored, and new memory holds
NaN until the first replay. The host may not wait meanwhile. Replays know no Python: only operators run again.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.support.pretend_cuda_marks import on_gpu, tensors_of

if TYPE_CHECKING:
    from tests.support.pretend_cuda import PretendCuda


class PretendGraph:
    """Takes the place of ``torch.cuda.CUDAGraph``."""

    def __init__(self, gpu: "PretendCuda") -> None:
        self.gpu = gpu
        self.calls: list[tuple[Any, Any, Any, list[Tensor]]] = []

    def pool(self) -> tuple[int, int]:
        return (0, 0)

    @torch.no_grad()
    def replay(self) -> None:
        """Run every operator again; what it returns goes where it went when it was recorded."""
        one = self.gpu.as_one_kernel("CUDA graph")
        with one, self.gpu.making(True), torch._C.DisableTorchFunction():
            for func, args, kwargs, recorded in self.calls:
                found = list(tensors_of(func(*args, **kwargs)))
                for new, old in zip(found, recorded, strict=True):
                    if new.shape != old.shape:
                        raise AssertionError(f"{func} makes {new.shape} and was recorded with {old.shape}")
                    if new.data_ptr() != old.data_ptr():
                        old.copy_(new)


class _Recorder(TorchDispatchMode):
    """Notes every operator, and what it overwrites that was there before."""

    def __init__(self, graph: PretendGraph) -> None:
        super().__init__()
        self.graph = graph
        self.before: dict[int, tuple[Tensor, Tensor]] = {}
        self.made: dict[int, Tensor] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        arguments = func._schema.arguments
        named = [*zip(args, arguments, strict=False)]
        named += [(kwargs[argument.name], argument) for argument in arguments if argument.name in kwargs]
        for value, argument in named:
            if argument.alias_info is not None and argument.alias_info.is_write:
                for tensor in tensors_of(value):
                    self._note(tensor)
        if "batch_norm" in func._schema.name:  # whose signature hides that it writes running statistics
            for tensor in tensors_of(args):
                self._note(tensor)
        inputs = {_memory(tensor) for tensor in tensors_of((args, kwargs))}
        found = func(*args, **kwargs)
        results = list(tensors_of(found))
        if any(map(on_gpu, [*results, *tensors_of((args, kwargs))])):
            self.graph.calls.append((func, args, kwargs, results))
        self.made.update({_memory(tensor): tensor for tensor in results if _memory(tensor) not in inputs})
        return found

    def _note(self, tensor: Tensor) -> None:
        if _memory(tensor) not in self.made and tensor.data_ptr() not in self.before:
            self.before[tensor.data_ptr()] = (tensor, tensor.clone())

    def undo(self) -> None:
        for tensor, value in self.before.values():
            tensor.data.copy_(value)  # unseen by autograd
        for tensor in self.made.values():
            if tensor.is_floating_point() and on_gpu(tensor):
                tensor.data.fill_(torch.nan)


@contextmanager
def capture(gpu: "PretendCuda", graph: PretendGraph, pool: Any = None, stream: Any = None) -> Iterator[None]:
    """Take the place of ``torch.cuda.graph``."""
    random, launches, recorder = torch.get_rng_state(), gpu.events.launches.copy(), _Recorder(graph)
    try:
        with gpu.capturing(), recorder:
            yield
    finally:
        with torch.no_grad():
            recorder.undo()
        torch.set_rng_state(random)
        gpu.events.launches = launches


def graph_functions(gpu: "PretendCuda") -> dict[str, Any]:
    """What ``torch.cuda`` offers for graphs."""
    return {
        "CUDAGraph": lambda: PretendGraph(gpu),
        "graph": lambda graph, pool=None, stream=None: capture(gpu, graph, pool, stream),
        "Stream": mock.MagicMock,
        "current_stream": lambda device=None: mock.MagicMock(),
        "stream": lambda stream: mock.MagicMock(),
        "is_current_stream_capturing": lambda: gpu.is_capturing,
    }


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
