"""A stand-in for CUDA graphs: operators are recorded with the very tensors they read and wrote, and run again on them.

As on a GPU, a replay reads and writes the same memory, runs no Python of the program, and fails where the program asked
about a value. Unlike there, the recording itself runs.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_ASKS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal", "is_nonzero")


class FakeGraph(TorchDispatchMode):
    """Records operators while it is entered; ``shapes`` are those of all results."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: list[tuple[Any, Any, Any, list[Tensor]]] = []
        self.shapes: list[torch.Size] = []
        self.replays = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func._schema.name.partition("::")[2] in _ASKS:
            raise RuntimeError("operation not permitted when stream is capturing")
        made = func(*args, **kwargs)
        results = [one for one in torch.utils._pytree.tree_leaves(made) if isinstance(one, Tensor)]
        self.shapes += [one.shape for one in results]
        if not func.is_view:
            self.operators.append((func, args, kwargs, results))
        return made

    def replay(self) -> None:
        self.replays += 1
        for func, args, kwargs, results in self.operators:
            again = torch.utils._pytree.tree_leaves(func(*args, **kwargs))
            for old, new in zip(results, (one for one in again if isinstance(one, Tensor)), strict=True):
                if old is not new and old.data_ptr() != new.data_ptr():
                    old.detach().copy_(new)


class FakeGraphs:
    """Takes the place of ``attacks.core.recording.record``; keeps every recording."""

    def __init__(self) -> None:
        self.made: list[FakeGraph] = []

    def record(self, step: Callable[[], tuple[Tensor, ...]]) -> tuple[tuple[Tensor, ...], Callable[[], None]]:
        graph = FakeGraph()
        with graph:
            made = step()
        self.made.append(graph)
        return made, graph.replay

    @property
    def replays(self) -> int:
        return sum(graph.replays for graph in self.made)
