"""CUDA graphs: a step of fixed shapes, recorded once and replayed by one launch, which small networks wait for.

Off unless the environment says LABELBANDIT_CUDA_GRAPHS=1, until what they gain has been measured on a GPU. What is
recorded must be plain (see `traced_forward.is_plain`), and proves itself on the step taken before it.
"""

import os
from collections.abc import Callable

import torch
from torch import Tensor

from attacks.core.errors import is_out_of_memory
from attacks.core.model import CountedModel
from attacks.core.traced_forward import is_plain

Tensors = tuple[Tensor, ...]
_SWITCH = "LABELBANDIT_CUDA_GRAPHS"
_WORTHWHILE = 6  # steps: the first runs as it is, the second is recorded, which takes as long
_CLOSE = 1e-4


def record(step: Callable[[], Tensors]) -> tuple[Tensors, Callable[[], None]]:
    """Record ``step()`` without running it: the tensors that will hold what it gives, and what runs it."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        made = step()
    return made, graph.replay


def warm_up(step: Callable[[], Tensors]) -> Tensors:
    """Run ``step()`` on a stream of its own, as PyTorch wants it before a recording."""
    here, side = torch.cuda.current_stream(), torch.cuda.Stream()
    side.wait_stream(here)
    with torch.cuda.stream(side):
        made = step()
    here.wait_stream(side)
    return made


def replayed(step: Callable[[Tensor], Tensors], counted: CountedModel, like: Tensor, steps: int) -> Callable:
    """``step`` of points like ``like`` (n, ...), to be taken so many ``steps``: replayed where that is on and possible.

    It must ask ``counted`` about the same rows each time, never the host about a tensor, and may use other tensors
    only if they stay where they are. What it returns last is taken to be the logits.
    """
    fit = like.is_cuda and counted.samples == 1 and steps >= _WORTHWHILE and is_plain(counted.model)
    return _Replayed(step, counted, like) if fit and os.environ.get(_SWITCH) == "1" else step


class _Replayed:
    """A step that runs as it is at first, then is recorded, then replayed."""

    def __init__(self, step: Callable[[Tensor], Tensors], counted: CountedModel, like: Tensor) -> None:
        self.step, self.counted, self.point = step, counted, like.clone()
        self.before: Tensors | None = None  # what was asked and answered at first
        self.replay: Callable[[], None] | None = None
        self.given_up = False

    def __call__(self, point: Tensor) -> Tensors:
        if self.given_up:
            return self.step(point)
        if self.before is None:
            made = warm_up(lambda: self.step(point))
            self.before = point, made[-1]
            return made
        if self.replay is None:
            self._record()
            return self(point)
        return self._run(point)

    def _run(self, point: Tensor) -> Tensors:
        assert self.replay is not None
        self.point.copy_(point)
        self.replay()
        self.count()
        return tuple(one.clone() for one in self.made)

    def _record(self) -> None:
        """Record the step, and repeat the first by it: random answers, for instance, differ."""
        assert self.before is not None
        try:
            (self.made, self.replay), self.count = self.counted.uncounted(
                lambda: record(lambda: self.step(self.point))
            )
        except RuntimeError as error:  # it asked the host, or does what no graph can hold
            if is_out_of_memory(error):
                raise
            self.given_up = True
            return
        point, expected = self.before
        found, _ = self.counted.uncounted(lambda: self._run(point)[-1])
        self.given_up = not torch.allclose(found, expected, rtol=_CLOSE, atol=_CLOSE, equal_nan=True)
