"""Faster passes by recording them: a trace for long searches on a CPU, CUDA graphs for steps on a GPU.

What is recorded must be plain (`is_plain`), and proves itself against the model first. On the CPU, PyTorch's inference
optimiser fuses layers and lays weights out once, which measured 1.5 times as fast as channels_last on small networks;
what a search finds is verified by the model itself in any case. A CUDA graph is a step of fixed shapes, recorded once
and replayed by one launch, which small networks wait for. They are off unless the environment says
LABELBANDIT_CUDA_GRAPHS=1, until what they gain has been measured on a GPU.
"""

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from attacks.core.errors import is_machine_error, is_out_of_memory
from attacks.core.model import CountedModel, Model, forward

Tensors = tuple[Tensor, ...]
_SWITCH = "LABELBANDIT_CUDA_GRAPHS"
_PIXELS = 2**22  # of all passes; below, what a trace saves does not pay for the preparation
_STEPS = 6  # for a graph: the first runs as it is, the second is recorded, which takes as long
_CLOSE = 1e-4


def is_plain(model: Model) -> bool:
    """Whether ``model`` is an ordinary module in eval mode, without hooks, that may be recorded."""
    recorded = isinstance(model, torch.jit.ScriptModule) or hasattr(model, "_orig_mod")
    if not isinstance(model, nn.Module) or recorded:
        return False
    hooked = any(layer._forward_hooks or layer._forward_pre_hooks for layer in model.modules())
    return not hooked and not model.training


def traced_forward(model: Model, x: Tensor, passes: int) -> Model:
    """A function with the same logits for images like ``x`` (n, C, H, W), or ``model`` itself.

    It is the model itself on GPUs, for too few ``passes`` of images to be worth it, with hooks, and where tracing
    fails, warns, or disagrees on images and batch sizes other than those traced.
    """
    if passes * x[0].numel() < _PIXELS or x.device.type != "cpu" or not is_plain(model):
        return model
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", torch.jit.TracerWarning)
            traced = torch.jit.trace(model, x[:2].clone(), check_trace=False)
            quick = torch.jit.optimize_for_inference(torch.jit.freeze(traced))
            for probe in (x[-3:].flip(-1), 1 - x, x[:1].clone()):
                expected, found = forward(model, probe), forward(quick, probe)
                if not bool(((found - expected).abs() <= _CLOSE * expected.abs().amax()).all()):
                    return model
    except Exception as error:  # whatever a model does that a trace cannot hold
        if is_machine_error(error):
            raise
        return model
    return quick


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
            self.given_up = self.given_up or self.left < _STEPS
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
