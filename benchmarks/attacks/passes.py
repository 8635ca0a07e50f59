"""What the model's passes alone cost: the same number of them in a bare loop, which no attack can undercut."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import attacks
from attacks.core.batching import default_batch_size
from attacks.core.model_state import fast_layout, frozen
from attacks.core.recording import traced_forward
from benchmarks.attacks.peers import published_autoattack
from benchmarks.common import describe_machine

_REPEATS = 9
_ENOUGH = 2**40  # passes, so that a trace always pays


class Passes(NamedTuple):
    """Images passed forward alone, and forward and backward."""

    forward: int
    backward: int


class Cost(NamedTuple):
    """CPU seconds of one image: forward alone, and forward and backward."""

    forward: float
    backward: float

    def of(self, passes: Passes) -> float:
        """The seconds that so many passes take."""
        return passes.forward * self.forward + passes.backward * self.backward


def passes_cell(model: nn.Module, x: Tensor, y: Tensor, norm: str, eps: float) -> dict[str, Any]:
    """AutoAttack, the published, standard and fast: seconds, passes, and what these cost in a bare loop.

    The bare loops are timed before and after each attack, for a machine in use changes its pace.
    """
    contestants: dict[str, dict[str, Any]] = {}
    for name in ("published", "standard", "fast"):
        price = plain_cost if name == "published" else our_cost
        before, counted = price(model, x), Passes(0, 0)
        if name == "published":
            with counted_passes(model) as counts:
                seconds, _ = timed(published_autoattack(model, x, y, norm, eps))
            counted = Passes(*counts)
        else:
            seconds, found = timed(lambda: attacks.autoattack(model, x, y, norm=norm, eps=eps, version=name))  # noqa: B023
            queries, backwards = int(found.queries.sum()), int(found.backwards.sum())
            counted = Passes(queries - backwards, backwards)
        bare = [cost.of(counted) for cost in (before, price(model, x))]
        contestants[name] = {"seconds": seconds, "passes": counted._asdict(), "bare_seconds": sum(bare) / 2}
    return {"images": len(x), "contestants": contestants, "machine": describe_machine()}


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    """Return the CPU seconds that ``run`` takes and what it returns."""
    start = time.process_time()
    result = run()
    return time.process_time() - start, result


def our_cost(model: nn.Module, x: Tensor) -> Cost:
    """The cost in full batches, in the layout that our attacks use, forward passes traced."""
    batch = _filled(x, default_batch_size(x))
    with frozen(model), fast_layout(model, x):
        quick = traced_forward(model, x, _ENOUGH)
        laid_out = batch.to(memory_format=torch.channels_last) if x.ndim == 4 else batch
        return _cost(model, quick, laid_out, _filled(x, 2 * len(batch)))


def plain_cost(model: nn.Module, x: Tensor, batch_size: int = 250) -> Cost:
    """The cost of the model as it is, in the published batches, its weights frozen or not as they are."""
    batch = _filled(x, min(batch_size, len(x)))
    return _cost(model, model, batch, batch)


@contextmanager
def counted_passes(model: nn.Module) -> Iterator[list[int]]:
    """Count the images that pass through ``model`` inside the block: forward alone, and with gradient.

    An image that passes with gradient is taken to pass backward once.
    """
    counts = [0, 0]

    def note(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        counts[inputs[0].requires_grad and output.requires_grad] += len(output)

    hook = model.register_forward_hook(note)
    try:
        yield counts
    finally:
        hook.remove()


def _cost(model: nn.Module, scorer: Callable[[Tensor], Tensor], batch: Tensor, scored: Tensor) -> Cost:
    def score() -> None:
        with torch.no_grad():
            scorer(scored)

    def climb() -> None:
        leaf = batch.detach().requires_grad_()
        torch.autograd.grad(model(leaf).sum(), leaf)

    return Cost(_typical(score) / len(scored), _typical(climb) / len(batch))


def _typical(work: Callable[[], None]) -> float:
    work()
    return median(timed(work)[0] for _ in range(_REPEATS))


def _filled(x: Tensor, count: int) -> Tensor:
    """``count`` images of ``x`` (n, ...), repeated as need be."""
    return x[torch.arange(count, device=x.device) % len(x)]
