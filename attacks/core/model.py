"""How attacks reach the model: logits and input gradients, counted exactly per sample."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from attacks.core.batching import Batches
from attacks.core.errors import AttackError
from attacks.core.inputs import Problem, towards
from attacks.core.model_state import Model, plain_convolutions, takes_channels_last
from attacks.core.pass_counts import PassCounts

_WASTE = 2**12  # pixels that may be passed in vain before a batch size gets kernels of its own
_NO_GRADIENT = (
    "the model's logits carry no gradient to the input (detached, rounded, or computed under no_grad); give "
    "the model a differentiable stand-in (attacks.bpda) or use a gradient-free attack (square, spsa, rays)"
)
_IN_PLACE = "the model changes its input in place, which would corrupt the images; make it work on x.clone()"


class Gradient(NamedTuple):
    """What one forward and backward pass gives: input gradient like x, loss (n,) and logits (n, K)."""

    grad: Tensor
    loss: Tensor
    logits: Tensor


def forward(model: Model, x: Tensor) -> Tensor:
    """Logits (n, K), at least float32, without gradient and uncounted.

    Raises:
        AttackError: the model's output is not one row of logits per image.
    """
    with torch.no_grad():
        return checked_logits(model, x)


class CountedModel(PassCounts):
    """The attacked model, counting passes per sample; attacks use it for every pass they are charged for.

    Each method takes the ``rows`` (indices (n,) into the problem, None for all) that its images belong to, so that an
    attack may go on with the survivors alone.

    Attributes:
        scorer: what `logits` asks: the model, or a faster function with the same logits.
    """

    def __init__(
        self, model: Model, problem: Problem, *, samples: int = 1, max_batch: int | None = None
    ) -> None:
        """Wrap ``model``; ``samples`` > 1 averages gradients over that many passes, for random outputs.

        ``max_batch`` is how many images `gradient` passes at once; more are split evenly.
        """
        super().__init__(len(problem), samples, problem.x.device)
        self.model = self.scorer = model
        self.problem = problem
        self.max_batch = max_batch
        weights = (layer.weight for layer in plain_convolutions(model))
        self._witness = next((w for w in weights if w.shape[1] > 1 < w[0, 0].numel()), None)
        self._asked: dict[int, int] = {}
        self._made: tuple[tuple[float, torch.dtype], Tensor] | None = None

    def logits(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        """Logits (n, K) of ``x`` (n, C, H, W); one query each."""
        x = self._on_grid(x, rows)
        found = []
        for part in (
            x.split(2 * self.max_batch) if self.max_batch else [x]
        ):  # scores alone take half the memory
            padded = self._round_up(part)
            asked = self._lay_out(padded) if self.scorer is self.model else padded
            found.append(forward(self.scorer, asked)[: len(part)])
        self._count(rows, 1)
        return _joined(found)

    def verdict(self, x: Tensor) -> Tensor:
        """Logits (n, K) of the model as it is, uncounted; only the images ``x`` (n, ...) may be laid out for speed."""
        fast = self.max_batch is not None and takes_channels_last(self.model, x)
        return forward(self.model, x.to(memory_format=torch.channels_last) if fast else x)

    def many_logits(self, x: Tensor, rows: Tensor, batch_size: int) -> Tensor:
        """Logits (n, k, K) of k variants of each image, ``x`` (n, k, C, H, W); k queries each.

        ``batch_size`` is the most images in one pass.
        """
        n, k = x.shape[:2]
        if self.problem.grid:
            x = towards(self.problem.x[rows][:, None].expand_as(x), x, self.problem.grid)
        parts = x.flatten(0, 1).split(batch_size)
        logits = torch.cat([forward(self.model, self._lay_out(part)) for part in parts])
        self._count(rows, k)
        return logits.view(n, k, -1)

    def clean_logits(self, batches: Batches | None = None) -> Tensor:
        """Logits (N, K) of the problem's images, one query each; in ``batches``, or all at once.

        Raises:
            AttackError: a label or target is not one of the model's classes.
        """
        x = self.problem.x
        every = None if batches is None else batches.map(lambda part: self.logits(x[part], part))
        logits = self.logits(x) if every is None else torch.cat(every)
        check_labels(self.problem, logits.shape[1])
        return logits

    def gradient(
        self,
        x: Tensor,
        loss: Callable[..., Tensor],
        rows: Tensor | None = None,
        along: tuple[Tensor | None, ...] = (),
        scale: float = 1.0,
    ) -> Gradient:
        """Gradient of ``scale`` times the sum of losses ``loss(logits, *along) -> (n,)`` with respect to ``x``.

        One query and one backward pass each, times ``samples``, over which gradient, loss and logits are averaged.
        Call it inside `frozen`. What ``loss`` needs of each sample belongs into ``along``, tensors (n,) or None, for
        ``x`` may pass in parts.

        Raises:
            AttackError: the logits do not depend differentiably on the input.
        """
        x = self._on_grid(x, rows)
        parts = []
        for part in self._parts(len(x)):
            labels = [None if values is None else values[part] for values in along]
            total = self._gradient(x[part], loss, labels, scale)
            for _ in range(self.samples - 1):
                more = self._gradient(x[part], loss, labels, scale)
                total = Gradient(*(one + another for one, another in zip(total, more, strict=True)))
            parts.append(total if self.samples == 1 else Gradient(*(one / self.samples for one in total)))
        self._count(rows, self.samples, self.samples)
        found = Gradient(*(_joined(list(each)) for each in zip(*parts, strict=True)))
        return found._replace(grad=self.repaired(found.grad, rows), loss=found.loss.to(x.dtype))

    def jacobian(self, x: Tensor, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Logits (n, K) and the gradient of each with respect to ``x``, (n, K, ...); K backward passes each.

        Raises:
            AttackError: the logits do not depend differentiably on the input.
        """
        with torch.inference_mode(False), torch.enable_grad():
            leaf = self._lay_out(self._on_grid(x.detach(), rows)).requires_grad_()
            logits = checked_logits(self.model, leaf)
            if not logits.requires_grad:
                raise AttackError(_NO_GRADIENT)
            count = logits.shape[1]
            each = torch.eye(count, dtype=logits.dtype, device=x.device)[:, None].repeat(1, len(x), 1)
            back = partial(torch.autograd.grad, logits, leaf, retain_graph=True, allow_unused=True)
            grads = [back(one)[0] for one in each]
        if any(grad is None for grad in grads):
            raise AttackError(_NO_GRADIENT)
        self._count(rows, 1, len(grads))
        slopes = torch.stack(grads, 1)
        repaired = self.repaired(slopes.flatten(0, 1), rows, len(grads))
        return logits.detach().to(x.dtype), repaired.view_as(slopes)

    def _on_grid(self, x: Tensor, rows: Tensor | None) -> Tensor:
        """The points ``x`` (n, ...) as the model may see them: finite, and of the type of the caller's images."""
        clean = self.problem.x if rows is None else None
        if not x.is_cuda and not bool(x.sum().isfinite()):
            clean = self.problem.x[rows] if clean is None else clean
            x = torch.where(x.isfinite(), x, clean)
        if self.problem.grid:
            x = towards(self.problem.x[rows] if clean is None else clean, x, self.problem.grid)
        return x

    def _gradient(
        self, x: Tensor, loss: Callable[..., Tensor], along: list[Tensor | None], scale: float
    ) -> Gradient:
        with torch.inference_mode(False), torch.enable_grad():
            leaf = self._lay_out(self._pad(x.detach())).requires_grad_()
            logits = checked_logits(self.model, leaf)
            if len(leaf) > len(x):
                logits = logits[: len(x)]
            losses = loss(logits, *along)
            if not losses.requires_grad:
                raise AttackError(_NO_GRADIENT)
            weights = self._constant(scale, losses).expand_as(losses)
            (grad,) = torch.autograd.grad(losses, leaf, weights, allow_unused=True)
        if grad is None:
            raise AttackError(_NO_GRADIENT)
        return Gradient(grad[: len(x)], losses.detach(), logits.detach())

    def _constant(self, value: float, like: Tensor) -> Tensor:
        """``value`` as a tensor () on the device, made once."""
        if self._made is None or self._made[0] != (value, like.dtype):
            self._made = (value, like.dtype), like.new_full((), value)
        return self._made[1]

    def _parts(self, count: int) -> list[slice]:
        """Slices of ``count`` images that pass at once."""
        passes = 1 if self.max_batch is None else max(1, -(-count // self.max_batch))
        size = -(-count // passes)
        return [slice(start, start + size) for start in range(0, max(count, 1), max(size, 1))]

    def _lay_out(self, x: Tensor) -> Tensor:
        """Images in the memory format of the model's convolutions; a mixture slows layers like pooling."""
        return x.to(memory_format=torch.channels_last) if x.ndim == 4 and self._fast() else x

    def _pad(self, x: Tensor) -> Tensor:
        """Images ``x`` (n, ...), followed by some of them again in the first passes of this size if they are small.

        On the CPU the first pass of a batch size prepares its kernels, for the time of two passes. An attack that one
        sample after the other leaves meets ever new sizes; powers of two are soon prepared.
        """
        if self.max_batch is None or x.is_cuda or not self._fast():
            return x
        count = len(x)
        spare = min(1 << (count - 1).bit_length(), self.max_batch) - count
        asked = self._asked[count] = self._asked.get(count, 0) + 1
        wasted = asked * spare * x[0].numel()
        return torch.cat([x, x[:spare]]) if 0 < wasted <= _WASTE else x

    def _round_up(self, x: Tensor) -> Tensor:
        """Images ``x`` (n, ...), followed by a few of them again, so that a search meets few batch sizes.

        For the reason told in `_pad`; sixteen sizes between a number and its double waste 3 % on average.
        """
        if self.max_batch is None or x.is_cuda:
            return x
        spare = -len(x) % (1 << max(0, (len(x) - 1).bit_length() - 5))
        return torch.cat([x, x[:spare]]) if spare else x

    def _fast(self) -> bool:
        """Whether the model's convolutions are laid out channels_last."""
        return self._witness is not None and not self._witness.is_contiguous()


def check_labels(problem: Problem, classes: int) -> None:
    """Raise an AttackError unless every label and target is one of the model's ``classes``."""
    for name, labels in (("label", problem.y), ("target", problem.targets)):
        if labels is not None and (labels >= classes).any():
            raise AttackError(
                f"{name} {int(labels.max())} is out of range for a model of {classes} classes "
                f"(0..{classes - 1}); check that data set and model belong together"
            )


def checked_logits(model: Model, x: Tensor) -> Tensor:
    """The model's logits (n, K), at least float32; an AttackError where they are none, or where ``x`` was changed."""
    before = None if x.is_inference() else x._version
    try:
        logits = model(x)
    except RuntimeError as error:
        if "a leaf Variable that requires grad" in str(error):
            raise AttackError(_IN_PLACE) from error
        weight = next(model.parameters(), None) if isinstance(model, nn.Module) else None
        other = weight is not None and weight.is_floating_point() and weight.dtype != x.dtype
        if weight is not None and other and "dtype" in str(error):
            raise AttackError(
                f"the model fails on {x.dtype} images, its weights are {weight.dtype}; convert the images or the model"
            ) from error
        raise
    if before is not None and x._version != before:
        raise AttackError(_IN_PLACE)
    if not isinstance(logits, Tensor):
        raise AttackError(
            f"the model must return a tensor of logits (N, K), got {type(logits).__name__}; wrap it"
        )
    if logits.ndim != 2 or len(logits) != len(x) or logits.shape[1] < 2:
        shape = tuple(logits.shape)
        raise AttackError(f"for {len(x)} images the model must return logits ({len(x)}, K >= 2), not {shape}")
    if not logits.is_floating_point():
        return logits.double()  # class votes and the like
    return logits.float() if logits.element_size() < 4 else logits


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
