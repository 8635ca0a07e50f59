"""CUDA graphs: a step of fixed shapes, recorded once and replayed by one launch, which small networks wait for.

Off unless the environment says LABELBANDIT_CUDA_GRAPHS=1, until what they gain has been measured on a GPU. What is
recorded must be plain (see `traced_forward.is_plain`), and proves itself on the step taken before it.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

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


@contextmanager
def apart(stream: torch.cuda.Stream) -> Iterator[None]:
    """Run on ``stream``; it and the present one wait for what the other did before."""
    here = torch.cuda.current_stream()
    stream.wait_stream(here)
    with torch.cuda.stream(stream):
        yield
    here.wait_stream(stream)


def warm_up(step: Callable[[], Tensors]) -> Tensors:
    """Run ``step()`` on a stream of its own, as PyTorch wants it before a recording."""
    with apart(torch.cuda.Stream()):
        return step()


def replayed(step: Callable[..., Tensors], counted: CountedModel, steps: int) -> Callable[..., Tensors]:
    """``step``, to be taken so many ``steps``: replayed where that is on and possible.

    It takes tensors (n, ...), must never ask the host about one, and may use others, such as the rows it asks
    ``counted`` about, only if they stay where they are for as long as n is the same. What it returns last is taken to
    be the logits.
    """
    fit = counted.problem.x.is_cuda and counted.samples == 1 and os.environ.get(_SWITCH) == "1"
    return _Replayed(step, counted, steps) if fit and is_plain(counted.model) else step


class _Replayed:
    """A step that runs as it is at first, then is recorded, then replayed; again for inputs of other shapes."""

    def __init__(self, step: Callable[..., Tensors], counted: CountedModel, steps: int) -> None:
        self.step, self.counted, self.left = step, counted, steps
        self.inputs: Tensors = ()  # where a recording reads them; the first ones until there is one
        self.made: Tensors = ()
        self.replay: Callable[[], None] | None = None
        self.given_up = False

    def __call__(self, *inputs: Tensor) -> Tensors:
        if [one.shape for one in inputs] != [one.shape for one in self.inputs]:
            self.inputs = self.made = ()
            self.replay = None
            self.given_up = self.given_up or self.left < _WORTHWHILE
        self.left -= 1
        if not self.inputs and not self.given_up:
            self.inputs = tuple(one.clone() for one in inputs)
            made = warm_up(lambda: self.step(*inputs))
            self.expected = made[-1]
            return made
        if self.replay is None and not self.given_up:
            self._record()
        if self.given_up:
            return self.step(*inputs)
        for fixed, one in zip(self.inputs, inputs, strict=True):
            fixed.copy_(one)
        return self._run()

    def _run(self) -> Tensors:
        assert self.replay is not None
        self.replay()
        self.count()
        return tuple(one.clone() for one in self.made)

    def _record(self) -> None:
        """Record the step, and repeat the first by it: random answers, for instance, differ."""
        try:
            (self.made, self.replay), self.count = self.counted.uncounted(
                lambda: record(lambda: self.step(*self.inputs))
            )
        except RuntimeError as error:  # it asked the host, or does what no graph can hold
            if is_out_of_memory(error):
                raise
            self.given_up = True
            return
        found, _ = self.counted.uncounted(lambda: self._run()[-1])
        self.given_up = not torch.allclose(found, self.expected, rtol=_CLOSE, atol=_CLOSE, equal_nan=True)
