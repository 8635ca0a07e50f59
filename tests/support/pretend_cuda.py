"""A pretend CUDA GPU: the CPU computes real numbers, tensors know a device, waiting and launches are counted.

Inside ``with PretendCuda() as gpu:`` a tensor made on, or moved to, ``cuda`` is a CPU tensor whose storage carries a
mark (`pretend_cuda_marks`). Views, results and gradients inherit it. Python sees ``tensor.device == cuda:0`` and
``torch.cuda.is_available()``. Then

- an operator that meets tensors of both devices raises what CUDA raises,
- ``tensor.numpy()`` and ``numpy.asarray(tensor)`` refuse, as with CUDA,
- each host synchronisation (``item``, ``bool``, ``tolist``, ``cpu``, ``nonzero``, boolean masks, copies from pageable
  memory, ``unique`` ...) is counted by the project's line that asked for it,
- operators that launch kernels are counted, a CUDA graph as one; streams, memory and speed are not simulated.

The modes hold in the thread that entered the context, not in others nor in other processes.
"""

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from tests.support.pretend_cuda_functions import Functions
from tests.support.pretend_cuda_graphs import graph_functions
from tests.support.pretend_cuda_marks import CUDA, on_gpu, own_device
from tests.support.pretend_cuda_operators import DeviceError, Operators

__all__ = ["DeviceError", "Events", "PretendCuda"]
_ROOTS = ("agents", "attacks", "envs", "eval", "benchmarks")


class Events:
    """What was counted.

    Attributes:
        waits: host synchronisations by (kind, place).
        launches: operators that launch kernels, by name.
    """

    def __init__(self) -> None:
        self.waits: Counter[tuple[str, str]] = Counter()
        self.launches: Counter[str] = Counter()

    @property
    def wait_count(self) -> int:
        return self.waits.total()

    @property
    def launch_count(self) -> int:
        return self.launches.total()

    def report(self, most: int = 40) -> str:
        lines = [f"{self.wait_count} waits, {self.launch_count} launches"]
        lines += [
            f"  wait {count:6d}  {kind:28s} {place}" for (kind, place), count in self.waits.most_common(most)
        ]
        lines += [f"  launch {count:6d}  {name}" for name, count in self.launches.most_common(most)]
        return "\n".join(lines)


class PretendCuda:
    """The pretend GPU; a context manager.

    Args:
        roots: top-level packages whose lines events are charged to.
        forbid_waits: raise at the first synchronisation.
        devices: how many GPUs ``torch.cuda.device_count`` claims; all are one.
    """

    def __init__(self, roots: tuple[str, ...] = _ROOTS, forbid_waits: bool = False, devices: int = 1) -> None:
        self.roots, self.forbid_waits, self.devices = roots, forbid_waits, devices
        self.events = Events()
        self.current = 0  # what set_device said; kept, and no more
        self._moving = self._making = self._asked = 0
        self.compiled: list[Any] = []  # what was given to torch.compile, which runs as it is
        self.is_capturing = False
        self._places: dict[str, str | None] = {}
        self._stack = ExitStack()

    @contextmanager
    def counting(self) -> Iterator[Events]:
        """Count from zero inside; yields the `Events`."""
        before, self.events = self.events, Events()
        try:
            yield self.events
        finally:
            self.events = before

    @contextmanager
    def waits_forbidden(self) -> Iterator[None]:
        """Raise AssertionError at the first synchronisation inside."""
        before, self.forbid_waits = self.forbid_waits, True
        try:
            yield
        finally:
            self.forbid_waits = before

    def check_index(self, device: torch.device) -> None:
        if (device.index or 0) >= self.devices:
            raise RuntimeError("CUDA error: invalid device ordinal")

    @contextmanager
    def making(self, here: bool) -> Iterator[None]:
        """What is made inside lies on the GPU, if ``here``."""
        self._making += here
        try:
            yield
        finally:
            self._making -= here

    @contextmanager
    def moving(self) -> Iterator[None]:
        """What happens inside is a copy between devices, and neither checked nor marked."""
        self._moving += 1
        try:
            yield
        finally:
            self._moving -= 1

    @contextmanager
    def asked_for_device(self) -> Iterator[None]:
        """The program, not PyTorch, makes tensors inside, and decides by that where they lie."""
        self._asked += 1
        try:
            yield
        finally:
            self._asked -= 1

    @contextmanager
    def capturing(self) -> Iterator[None]:
        """A graph is recorded inside, where waiting is an error."""
        self.is_capturing = True
        try:
            yield
        finally:
            self.is_capturing = False

    @property
    def is_moving(self) -> bool:
        return self._moving > 0

    @property
    def makes_on_gpu(self) -> bool:
        return self._making > 0

    @property
    def was_asked(self) -> bool:
        return self._asked > 0

    def wait(self, kind: str, times: int = 1) -> None:
        """Count ``times`` synchronisations."""
        place = self.place()
        self.events.waits[kind, place] += times
        if self.is_capturing:
            raise RuntimeError(
                f"CUDA error: operation not permitted when stream is capturing ({kind} at {place})"
            )
        if self.forbid_waits:
            raise AssertionError(f"the host waits for the GPU: {kind} at {place}")

    def launch(self, name: str, times: int = 1) -> None:
        """Count kernels."""
        self.events.launches[name] += times

    @contextmanager
    def as_one_kernel(self, name: str | None) -> Iterator[None]:
        """Count what is launched inside as one kernel ``name``; None: as what it is."""
        before = self.events.launches.copy()
        yield
        if name is not None and self.events.launches != before:
            self.events.launches = before
            self.launch(name)

    def place(self) -> str:
        """The innermost line of the project on the stack."""
        frame = sys._getframe(1)
        while frame is not None:
            path = frame.f_code.co_filename
            if path not in self._places:
                parts = Path(path).parts
                roots = [number for number, part in enumerate(parts) if part in self.roots]
                ours = roots and "site-packages" not in parts and "tests" not in parts
                self._places[path] = "/".join(parts[roots[-1] :]) if ours else None
            if self._places[path]:
                return f"{self._places[path]}:{frame.f_lineno}"
            frame = frame.f_back
        return "elsewhere"

    def __enter__(self) -> "PretendCuda":
        self._stack = ExitStack()
        for target, replacements in (
            (Tensor, _tensor_attributes()),
            (torch.cuda, self._cuda_module()),
            (torch.accelerator, self._accelerator_module()),
            (torch._C, {"_group_tensors_by_device_and_dtype": _grouping()}),
            (torch.autocast, {"__init__": _autocast()}),
            (torch, {"compile": self._compile}),
        ):
            for name, value in replacements.items():
                self._stack.enter_context(mock.patch.object(target, name, value, create=True))
        self._stack.enter_context(Operators(self))
        self._stack.enter_context(Functions(self))
        return self

    def __exit__(self, *_: Any) -> None:
        self._stack.close()

    def _cuda_module(self) -> dict[str, Any]:
        return {
            "is_available": lambda: True,
            "is_initialized": lambda: True,
            "device_count": lambda: self.devices,
            "current_device": lambda: self.current,
            "set_device": lambda device: setattr(self, "current", device),
            "get_device_name": lambda device=None: "Pretend GPU",
            "get_device_capability": lambda device=None: (9, 0),
            "is_bf16_supported": lambda including_emulation=True: True,
            "synchronize": lambda device=None: self.wait("torch.cuda.synchronize"),
            "empty_cache": lambda: None,
            "manual_seed": lambda seed: None,
            "manual_seed_all": lambda seed: None,
            "get_rng_state": lambda device="cuda": torch.zeros(16, dtype=torch.uint8),
            "set_rng_state": lambda state, device="cuda": _check_random_state(state),
            "memory_allocated": lambda device=None: 0,
            "max_memory_allocated": lambda device=None: 0,
            "reset_peak_memory_stats": lambda device=None: None,
            "mem_get_info": lambda device=None: (80 << 30, 80 << 30),
            "_lazy_init": lambda: None,
            **graph_functions(self),
        }

    def _compile(self, function: Any, **_: Any) -> Any:
        self.compiled.append(function)
        return function

    def _accelerator_module(self) -> dict[str, Any]:
        return {
            "is_available": lambda: True,
            "device_count": lambda: self.devices,
            "current_accelerator": lambda check_available=False: torch.device("cuda"),
            "current_device_index": lambda: 0,
            "current_stream": lambda device=None: mock.Mock(is_capturing=lambda: False),
            "synchronize": lambda device=None: self.wait("torch.accelerator.synchronize"),
        }


def _tensor_attributes() -> dict[str, Any]:
    def device(tensor: Tensor) -> torch.device:
        with torch._C.DisableTorchFunction():
            found = own_device(tensor)
        return CUDA if found.type == "cpu" and on_gpu(tensor) else found

    return {
        "device": property(device),
        "is_cuda": property(lambda tensor: tensor.device.type == "cuda"),
        "is_cpu": property(lambda tensor: tensor.device.type == "cpu"),
        "get_device": lambda tensor: 0 if on_gpu(tensor) else -1,
    }


def _grouping() -> Any:
    """Optimisers group parameters by device, in C++."""
    group = torch._C._group_tensors_by_device_and_dtype

    def grouped(lists: Any, with_indices: bool = False) -> Any:
        found = group(lists, with_indices)
        first = next((tensor for tensor in lists[0] if tensor is not None), None) if lists else None
        if first is None or not on_gpu(first):
            return found
        return {
            (CUDA if device.type == "cpu" else device, dtype): rest for (device, dtype), rest in found.items()
        }

    return grouped


def _autocast() -> Any:
    original = torch.autocast.__init__

    def init(self: Any, device_type: str, *args: Any, **kwargs: Any) -> None:
        original(self, "cpu" if device_type == "cuda" else device_type, *args, **kwargs)

    return init


def _check_random_state(state: Tensor) -> None:
    if state.device.type != "cpu" or state.dtype != torch.uint8:
        raise TypeError("RNG state must be a torch.ByteTensor")
