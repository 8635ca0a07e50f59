"""CUDA graphs of a training step: its operators are recorded once, then launched by two calls instead of some eighty.

A step is two graphs, with the environment's answer between them: one from images to actions, one from rewards to new
weights. Both read and write memory of fixed places. Whatever the step decides on the host is the key of a recording.
"""

import warnings
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.core.recording import apart

# Steps before a recording, in which libraries choose their kernels and the optimiser makes its state.
WARM_UP = 3
MOST = 4  # recordings; a step that needs more decides too much on the host
Inputs = Mapping[str, Tensor | None]


@dataclass
class _Recording:
    """A recorded step."""

    observations: Tensor  #: where ``forward`` reads the images
    outputs: tuple[Tensor, ...]  #: what ``forward`` writes and ``backward`` reads
    inputs: Inputs  #: what else ``backward`` reads
    results: tuple[Tensor, ...]  #: what ``backward`` writes
    forward: torch.cuda.CUDAGraph
    backward: torch.cuda.CUDAGraph
    addresses: tuple[int, ...]  #: of weights and optimiser state


class StepGraphs:
    """Steps of one algorithm on a GPU; where they cannot be recorded they run operator by operator, after a warning.

    Args:
        act: from observations to tensors.
        learn: from these and further inputs to tensors, with a step of the optimiser.
        optimizer: that one.
    """

    def __init__(
        self,
        act: Callable[[Tensor], tuple[Tensor, ...]],
        learn: Callable[[tuple[Tensor, ...], Inputs], tuple[Tensor, ...]],
        optimizer: torch.optim.Optimizer,
    ) -> None:
        self._act, self._learn, self._optimizer = act, learn, optimizer
        self._recordings: dict[Hashable, _Recording] = {}
        self._present: _Recording | None = None
        self._steps = 0
        self._usable = True
        self._stream = torch.cuda.Stream()  # records: gradients accumulate on the stream of their first pass
        self._rate = torch.zeros((), device=optimizer.param_groups[0]["params"][0].device)

    def act(self, observations: Tensor, inputs: Inputs, key: Hashable) -> tuple[Tensor, ...]:
        """Return what ``act`` makes of the observations; the next step overwrites it.

        Args:
            observations: of one shape in all steps.
            inputs: tensors like those that :meth:`learn` will be given.
            key: what the step decides on the host.
        """
        key = (key, observations.shape)
        self._present = self._recordings.get(key)
        if self._present is not None and self._present.addresses != self._addresses():
            self._recordings.clear()  # weights or optimiser state were loaded
            self._present = None
        if self._present is None and self._usable and self._steps >= WARM_UP:
            self._present = self._record(observations, inputs, key)
        if self._present is None:
            with apart(self._stream):
                self._outputs = self._act(observations)
            return self._outputs
        self._present.observations.copy_(observations)
        self._present.forward.replay()
        return self._present.outputs

    def learn(self, inputs: Inputs) -> tuple[Tensor, ...]:
        """Return what ``learn`` makes of the last :meth:`act` and of ``inputs``; the next step overwrites it."""
        self._steps += 1
        recording = self._present
        if recording is None:
            with apart(self._stream):
                return self._learn(self._outputs, inputs)
        for name, own in recording.inputs.items():
            if own is not None and (given := inputs[name]) is not None:
                own.copy_(given)
        self._rate.fill_(self._optimizer.param_groups[0]["lr"])
        recording.backward.replay()
        return recording.results

    def _record(self, observations: Tensor, inputs: Inputs, key: Hashable) -> _Recording | None:
        """Record a step, in which the optimiser reads its learning rate from memory; None after a failure."""
        groups = self._optimizer.param_groups
        before = [dict(group) for group in groups]
        own = {name: None if value is None else value.clone() for name, value in inputs.items()}
        forward, backward, images = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph(), observations.clone()
        try:
            if len(self._recordings) == MOST:
                raise RuntimeError(f"more than {MOST} kinds of steps")
            with torch.cuda.graph(forward, stream=self._stream):
                outputs = self._act(images)
            for group in groups:
                group.update(lr=self._rate, **({"capturable": True} if "capturable" in group else {}))
            with torch.cuda.graph(backward, pool=forward.pool(), stream=self._stream):
                results = self._learn(outputs, own)
        except RuntimeError as error:
            self._usable = False
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            warnings.warn(
                f"no CUDA graph of the training step, which goes on without: {reason}", stacklevel=4
            )
            return None
        finally:
            for group, old in zip(groups, before, strict=True):
                group.update(old)
        addresses = self._addresses()
        recording = _Recording(images, outputs, own, results, forward, backward, addresses)
        return self._recordings.setdefault(key, recording)

    def _addresses(self) -> tuple[int, ...]:
        first = self._optimizer.param_groups[0]["params"][0]
        state = self._optimizer.state.get(first, {}).values()
        return tuple(value.data_ptr() for value in (first, *state) if isinstance(value, Tensor))
