"""Any callable as a well-behaved module: its types, batch sizes and missing gradients are dealt with here.

The audit asks nothing of a model but answers. What had to be done to get them is said in the evidence. The time that
it may take is counted here too: attacks and checks stop when it is over, what they found before stays.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from attacks.core.batching import default_batch_size
from attacks.core.errors import AttackError, is_machine_error

_SIZES = (1, 2, 4, 8, 16, 32, 64, 100, 128, 256, 512)


class OutOfTime(Exception):
    """The time given to the audit is over."""


class Clock:
    """Counts down ``minutes`` from now; None never ends."""

    def __init__(self, minutes: float | None = None) -> None:
        self.start = time.perf_counter()
        self.end = math.inf if minutes is None else self.start + 60 * minutes
        self._stops = False

    @property
    def left(self) -> float:
        """Seconds, negative once time is over."""
        return self.end - time.perf_counter()

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self.start

    @contextmanager
    def stopping(self, stops: bool = True) -> Iterator[None]:
        """Whether passes of the model within the block end with `OutOfTime` once time is over."""
        before, self._stops = self._stops, stops
        try:
            yield
        finally:
            self._stops = before

    def check(self) -> None:
        """Raise `OutOfTime` where that was asked for and time is over."""
        if self._stops and self.left < 0:
            raise OutOfTime("the time given to the audit is over")


def models_own(error: Exception) -> bool:
    """Whether the model is to blame, not machine or clock: device errors and exhausted memory are never swallowed."""
    others = isinstance(error, OutOfTime) or is_machine_error(error)
    return not others and "same device" not in str(error).lower()


@contextmanager
def own_errors() -> Iterator[list[str]]:
    """Swallow an error of the model's own: its type and first line go to the list yielded. The machine's pass."""
    notes: list[str] = []
    try:
        yield notes
    except Exception as error:
        if not models_own(error):
            raise
        text = str(error).strip().splitlines()
        notes.append(f"{type(error).__name__}: {text[0][:120]}" if text else type(error).__name__)


def try_gradient(model: nn.Module, x: Tensor) -> list[str]:
    """Pass ``x`` forward and, where the outputs have a gradient, backward; return the model's own error, if any."""
    with torch.enable_grad(), own_errors() as failed:
        leaf = x.detach().clone().requires_grad_()
        outputs = model(leaf)
        if outputs.requires_grad:
            torch.autograd.grad(outputs.sum(), leaf, allow_unused=True)
    return failed


class AnyCallable(nn.Module):
    """A callable on images (n, C, H, W) in [0, 1] as a module for any n, with outputs of any floating type.

    Attributes:
        size: images per call, where the callable does not take any number of them; None where it does.
        exact: smaller batches are filled up to ``size``.
        dtype: of the images it is shown.
        differentiable: gradients pass through it, forward and backward.
        notes: what had to be done, one line each.
    """

    def __init__(self, model: Callable[[Tensor], Tensor], x: Tensor) -> None:
        """Try ``model`` on the images ``x`` (N, C, H, W); an AttackError names its own error if it answers none."""
        super().__init__()
        self.model = model if isinstance(model, nn.Module) else None
        self._function = (model,)  # a plain callable is no child
        self.notes: list[str] = []
        self.size: int | None = None
        self.exact, self.differentiable, errors = False, True, list[str]()
        own = [p.dtype for p in self.model.parameters() if p.is_floating_point()] if self.model else []
        for dtype in dict.fromkeys((x.dtype, *own[:1], torch.float64)):
            self.dtype = dtype
            if self._find_size(x, errors):
                break
        else:
            raise AttackError(
                f"the model answers no images like those given: {errors[0]}; check shape and type"
            )
        if self.dtype != x.dtype:
            self.notes.append(f"images are shown as {self.dtype}")
        if failed := try_gradient(self, x[:4]):
            self.differentiable = False
            self.notes.append(f"no gradients are to be had ({failed[0]})")

    def double(self) -> "AnyCallable":
        """Convert the model to float64, and show it such images."""
        super().double()
        self.dtype = torch.float64
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Return the callable's outputs (n, K)."""
        if self.differentiable:
            return self._all(x)
        with torch.no_grad():
            return self._all(x.detach())

    def _all(self, x: Tensor) -> Tensor:
        if self.size is None or (len(x) == self.size):
            return self._call(x)
        parts = []
        for part in x.split(self.size):
            missing = self.size - len(part) if self.exact else 0
            filled = torch.cat([part, x[:1].detach().expand(missing, *x.shape[1:])]) if missing else part
            parts.append(self._call(filled)[: len(part)])
        return torch.cat(parts)

    def _call(self, x: Tensor) -> Tensor:
        (function,) = self._function
        output = function(x.to(self.dtype))
        if hasattr(output, "__array__") and not isinstance(output, Tensor):
            output = torch.as_tensor(output, device=x.device)
        if isinstance(output, Tensor):
            return output if output.is_floating_point() else output.to(x.dtype)
        raise AttackError(
            f"the model must return a tensor of logits (N, K), got {type(output).__name__}; wrap it"
        )

    def _find_size(self, x: Tensor, errors: list[str]) -> bool:
        """Find the batch sizes it takes: any, up to one, or one alone."""
        self.size, self.exact = None, False
        usual = min(len(x), default_batch_size(x))
        if all(self._takes(x, size, errors) for size in {usual, 1, max(1, usual // 2)}):
            return True
        taken = {size for size in (*_SIZES, usual, len(x)) if self._takes(x, size, [])}
        if not taken:
            taken = set(next(([size] for size in range(1, 257) if self._takes(x, size, [])), []))
        if not taken:
            return False
        self.size = max(size for size in taken if size <= max(usual, min(taken)))
        self.exact = not (self.size == 1 or {1, max(1, self.size // 2)} <= taken)
        kind = "of exactly" if self.exact else "of at most"
        self.notes.append(f"it takes batches {kind} {self.size} images")
        return True

    def _takes(self, x: Tensor, size: int, errors: list[str]) -> bool:
        images = x.repeat(-(-size // len(x)), *(1,) * (x.ndim - 1))[:size]
        with torch.no_grad(), own_errors() as failed:
            outputs = self._call(images)
            if outputs.ndim == 2 and len(outputs) == size:
                return True
            failed.append(f"for {size} images it returns {tuple(outputs.shape)}, not logits ({size}, K >= 2)")
        errors += failed
        return False
