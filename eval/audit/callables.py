"""Any callable as a well-behaved module: its types, batch sizes and missing gradients are dealt with here.

The audit asks nothing of a model but answers. What had to be done to get them is said in the evidence.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from attacks.core.batching import default_batch_size
from attacks.core.errors import AttackError, is_machine_error
from eval.audit.clock import OutOfTime
from eval.audit.findings import Finding

_SIZES = (1, 2, 4, 8, 16, 32, 64, 100, 128, 256, 512)


def models_own(error: Exception) -> bool:
    """Whether the model is to blame, not machine or clock: device errors and exhausted memory are never swallowed."""
    others = isinstance(error, OutOfTime) or is_machine_error(error)
    return not others and "same device" not in str(error).lower()


def first_line(error: BaseException) -> str:
    """The error's type and first line, for the evidence."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:120]}" if text else type(error).__name__


@contextmanager
def own_errors(notes: list[str]) -> Iterator[None]:
    """Swallow an error of the model's own and note its first line in ``notes``; the machine's errors pass."""
    try:
        yield
    except Exception as error:
        if not models_own(error):
            raise
        notes.append(first_line(error))


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
        """Try ``model`` on the images ``x`` (N, C, H, W).

        Raises:
            AttackError: it does not answer images of any type and batch size; its own error is named.
        """
        super().__init__()
        self.model = model if isinstance(model, nn.Module) else None
        self._function = (model,)  # a plain callable is no child
        self.notes: list[str] = []
        self.size: int | None = None
        self.exact = False
        self.differentiable = True
        self.dtype = x.dtype
        errors: list[str] = []
        if not self._find_type(x, errors):
            raise AttackError(
                f"the model answers no images like those given: {errors[0]}; check shape and type"
            )
        self._try_gradients(x)

    def double(self) -> "AnyCallable":
        """Convert the model to float64, and show it such images."""
        super().double()
        self.dtype = torch.float64
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Return the callable's outputs (n, K)."""
        if not self.differentiable:
            with torch.no_grad():
                return self._all(x.detach())
        return self._all(x)

    def _all(self, x: Tensor) -> Tensor:
        if self.size is None or (len(x) == self.size):
            return self._call(x)
        parts = []
        for part in x.split(self.size):
            missing = self.size - len(part) if self.exact else 0
            filled = part
            if missing:
                filled = torch.cat([part, x[:1].detach().expand(missing, *x.shape[1:])])
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

    def _find_type(self, x: Tensor, errors: list[str]) -> bool:
        own = [p.dtype for p in self.model.parameters() if p.is_floating_point()] if self.model else []
        for dtype in dict.fromkeys((x.dtype, *own[:1], torch.float64)):
            self.dtype = dtype
            if self._find_size(x, errors):
                if dtype != x.dtype:
                    self.notes.append(f"images are shown as {dtype}")
                return True
        return False

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
        failed: list[str] = []
        with torch.no_grad(), own_errors(failed):
            outputs = self._call(images)
            if outputs.ndim == 2 and len(outputs) == size:
                return True
            failed.append(f"for {size} images it returns {tuple(outputs.shape)}, not logits ({size}, K >= 2)")
        errors += failed
        return False

    def _try_gradients(self, x: Tensor) -> None:
        """Find out whether a forward pass with gradients and its backward pass run through."""
        failed: list[str] = []
        images = x[: min(len(x), 4)].detach().clone()
        with torch.enable_grad(), own_errors(failed):
            leaf = images.requires_grad_()
            outputs = self._all(leaf)
            if outputs.requires_grad:
                torch.autograd.grad(outputs.sum(), leaf, allow_unused=True)
        if failed:
            self.differentiable = False
            self.notes.append(f"no gradients are to be had ({failed[0]})")


def callable_findings(model: AnyCallable) -> list[Finding]:
    """The evidence of what had to be done to get answers."""
    source = "informs only"
    return [Finding("how the model had to be called", None, source=source, note=note) for note in model.notes]
