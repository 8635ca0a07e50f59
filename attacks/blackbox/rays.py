"""RayS: a hard-label attack that needs nothing but the predicted class."""

from __future__ import annotations

import torch
from torch import Tensor

from attacks.core import entry
from attacks.core.batching import Rows, leave_every
from attacks.core.errors import AttackError
from attacks.core.inputs import Problem, validate_inputs
from attacks.core.losses import misclassified
from attacks.core.model import CountedModel, Model
from attacks.core.model_state import fast_layout
from attacks.core.norms import per_sample
from attacks.core.result import AttackResult, finish, in_batches


@entry.attack
def rays(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    norm: str,
    eps: float | Tensor,
    queries: int = 2000,
    tolerance: float = 1e-3,
    early_stop: bool = True,
    batch_size: int | None = None,
) -> AttackResult:
    """Search the sign vector along which the decision boundary is nearest (Chen and Gu 2020, RayS); Linf only.

    Blocks of pixels flip their sign, halves of the image first, then quarters and so on; a flip that misclassifies at
    the radius known so far is kept, and the radius shrinks by bisection. Deterministic; it looks at labels alone.

    Args:
        model, x, y, eps, batch_size: see `attacks`.
        norm: "Linf".
        queries: the most forward passes per image, the clean one included.
        tolerance: at which the bisection of a radius ends, in units of pixels.
        early_stop: a sample leaves once it is misclassified within eps; False goes on to shrink its radius.

    Returns:
        The result; its trace holds "radius" (N,), the smallest Linf distance at which the sample was misclassified: 0
        for clean errors, infinite where no direction tried misclassifies at all.

    Raises:
        AttackError: wrong inputs, or another norm.
    """
    if norm != "Linf":
        raise AttackError(f"rays searches sign vectors and knows Linf alone, got norm={norm!r}; use square")
    problem = validate_inputs(x, y, norm=norm, eps=eps)
    return in_batches(lambda part: _attack(model, part, queries, tolerance, early_stop), problem, batch_size)


def _attack(model: Model, problem: Problem, queries: int, tolerance: float, early_stop: bool) -> AttackResult:
    """Attack one batch: a query of every running search per round."""
    counted = CountedModel(model, problem)
    with fast_layout(model, problem.x):
        clean_wrong = misclassified(counted.clean_logits(), problem.y)
        radius = torch.where(clean_wrong, 0, torch.inf).to(problem.eps.dtype)
        best = torch.ones_like(problem.x).flatten(1)
        rows = (~clean_wrong).nonzero().squeeze(1)
        searches, part = _Searches(rows, best[rows]), problem[rows]
        every = leave_every(problem.x)
        for query in range(1, queries):
            if not len(part):
                break
            wrong = misclassified(counted.logits(_along(part, *searches.question()), searches.row), part.y)
            searches.answer(wrong, tolerance)
            if not early_stop:
                continue
            searches.void += ~searches.going
            searches.going = searches.radius > part.eps
            if query % every == 0 and len(left := searches.going.nonzero().squeeze(1)) < len(part):
                searches.write(radius, best, counted.queries)
                searches.keep(left)
                part = part[left]
        searches.write(radius, best, counted.queries)
    inside = per_sample(radius <= problem.eps, problem.x)
    candidate = torch.where(inside, _along(problem, best, radius), problem.x)
    return finish(counted, problem, candidate, clean_wrong=clean_wrong, trace={"radius": radius})


def _along(problem: Problem, direction: Tensor, radius: Tensor) -> Tensor:
    """Images at this radius (n,) along sign vectors (n, D), within [0, 1]."""
    step = direction.view_as(problem.x) * per_sample(radius.clamp_max(1), problem.x)
    return (problem.x + step).clamp_(0, 1)


class _Searches(Rows):
    """The searches of n samples; every round asks about one point of each.

    Attributes:
        row: the sample's place in the batch (n,).
        best: the direction of the smallest radius so far, of -1 and 1 (n, D).
        radius: that radius, infinite before the first success (n,).
        trial: the direction in question: ``best`` with one block flipped when it was chosen (n, D); first all of it.
        low: a radius at which ``trial`` is taken to be classified correctly (n,).
        high: one at which it is misclassified, NaN until the first is found (n,).
        level: ``trial`` flips a block of an image cut into 2^level (n,).
        block: which one (n,).
        going: False where a sample is done, and waits for others to leave together (n,).
        void: queries since (n,).
    """

    def __init__(self, row: Tensor, best: Tensor) -> None:
        self.row, self.best, self.trial = row, best, -best
        self.low = torch.zeros_like(best[:, 0])
        self.radius, self.high = self.low + torch.inf, self.low + torch.nan
        self.level, self.block, self.void = (torch.zeros_like(row) for _ in range(3))
        self.going = torch.ones_like(row, dtype=torch.bool)

    def write(self, radius: Tensor, best: Tensor, queries: Tensor) -> None:
        """Put radii (N,) and directions (N, D) into those of all samples; take void ``queries`` (N,) back."""
        radius[self.row], best[self.row] = self.radius, self.best
        queries[self.row] -= self.void
        self.void = torch.zeros_like(self.void)

    def question(self) -> tuple[Tensor, Tensor]:
        """The direction (n, D) and the radius (n,) to ask about: first that known so far, then by bisection.

        A radius of 1 takes every pixel to its bound.
        """
        asked = torch.where(self.high.isnan(), self.radius.clamp_max(1), (self.low + self.high) / 2)
        return self.trial, asked

    def answer(self, wrong: Tensor, tolerance: float) -> None:
        """Take in whether the point is misclassified (n,), and choose the next question."""
        _, asked = self.question()
        first = self.high.isnan()
        better = wrong & (asked < self.radius) & self.going
        self.radius = torch.where(better, asked, self.radius)
        self.best = torch.where(better[:, None], self.trial, self.best)
        self.high = torch.where(wrong, asked, self.high)
        self.low = torch.where(wrong | first, self.low, asked)
        over = torch.where(self.high.isnan(), first, self.high - self.low <= tolerance)
        # Where the search of a block is over, on to the next one.
        pixels = self.best.shape[1]
        deepest = (pixels - 1).bit_length()
        last = (self.block + 1) * _block_size(pixels, self.level) >= pixels
        block = torch.where(last, 0, self.block + 1)
        self.level = torch.where(over & last, (self.level + 1).clamp_max(deepest), self.level)
        self.block = torch.where(over, block, self.block)
        place = torch.arange(pixels, device=over.device) // _block_size(pixels, self.level)[:, None]
        flipped = torch.where(place == self.block[:, None], -self.best, self.best)
        self.trial = torch.where(over[:, None], flipped, self.trial)
        self.low = torch.where(over, 0, self.low)
        self.high = torch.where(over, torch.nan, self.high)


def _block_size(pixels: int, level: Tensor) -> Tensor:
    """Pixels per block when ``pixels`` are cut into 2^level blocks (n,), rounded up."""
    blocks = 2**level
    return (pixels + blocks - 1) // blocks
