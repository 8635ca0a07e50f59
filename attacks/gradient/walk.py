"""The walk that projected gradient attacks share: survivors climb a loss inside the ball, the best iterate is
kept.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from attacks.core.batching import Batches
from attacks.core.inputs import Problem
from attacks.core.losses import Loss, misclassified
from attacks.core.memory_format import fast_layout
from attacks.core.model import CountedModel, Gradient, check_labels
from attacks.core.norms import per_sample
from attacks.core.result import AttackResult, finish
from attacks.core.rng import Draws

# cleverhans divides an L2 step by sqrt(max(1e-12, sum grad^2)): a gradient shorter than this gives a shorter
# step.
STEP_FLOOR = 1e-6
_ODI_STEPS = 2


@dataclass(frozen=True)
class Step:
    """What a walk shows its ``on_step`` hook before it moves: the gradient at one iterate of some samples.

    Attributes:
        restart: 0, 1, ...
        index: 0 (the start) .. steps - 1.
        rows: the samples' places (n,) in the attacked images; all of them with ``early_stop=False`` and one
        batch.
        x_adv: iterate (n, C, H, W).
        grad: gradient of the loss at it; under the cleverhans protocol of the averaged loss.
        loss: per sample (n,), not averaged.
        logits: (n, K).
    """

    restart: int
    index: int
    rows: Tensor
    x_adv: Tensor
    grad: Tensor
    loss: Tensor
    logits: Tensor


@dataclass(frozen=True)
class WalkOptions:
    """How to walk; the attacks' own docstrings explain the options.

    Attributes:
        step_size: length of a step per sample (N,).
        averaged_over: the batch size whose mean cleverhans' step floor refers to.
        num_targets: above 0, restart r aims at the class that ranks r (modulo this) among the wrong ones on
            the clean image, and any misclassification ends the walk.
    """

    loss: Loss
    steps: int
    step_size: Tensor
    averaged_over: int
    restarts: int = 1
    start: Literal["clean", "random", "odi"] = "random"
    cleverhans: bool = False
    predicted_labels: bool = False
    num_targets: int = 0
    keep: Literal["best", "loss", "last"] = "best"
    early_stop: bool = True
    seed: int = 0
    on_step: Callable[[Step], None] | None = None


class Walk:
    """The state of all samples; parts of them walk at a time, and write here when a stretch of steps is
    done.
    """

    def __init__(self, counted: CountedModel, options: WalkOptions, batches: Batches) -> None:
        self.counted = counted
        self.problem = counted.problem
        self.options = options
        self.batches = batches
        self.x_adv = self.problem.x.clone()
        self.best = self.problem.x.clone()
        self.best_loss = torch.full_like(self.problem.eps, -torch.inf)
        self.reached = torch.zeros_like(self.problem.y, dtype=torch.bool)
        self.shortened = torch.zeros_like(self.problem.eps)
        self.taken = torch.zeros_like(self.problem.eps)
        self.labels = self.problem.y
        self.ranked = self.problem.y[:, None]

    def run(self) -> AttackResult:
        """Walk all restarts and verify. Call inside `frozen`."""
        rows = torch.arange(len(self.problem), device=self.problem.x.device)
        with fast_layout(self.counted.model, self.problem.x):
            clean_wrong = self._look_at_clean(rows)
            for restart in range(self.options.restarts):
                rows = self._survivors(rows, self.options.early_stop)
                self._restart(rows, restart)
        return self._verify(clean_wrong)

    def _restart(self, rows: Tensor, restart: int) -> None:
        leave = self.options.early_stop and self.options.keep == "best"
        for first, last in _stretches(self.options.steps) if leave else [(0, self.options.steps)]:
            self.batches.map(lambda part: self._stretch(part, restart, first, last), rows)  # noqa: B023
            rows = self._survivors(rows, leave)

    def _survivors(self, rows: Tensor, leave: bool) -> Tensor:
        return rows[~self.reached[rows]] if leave else rows

    def _look_at_clean(self, rows: Tensor) -> Tensor:
        """Clean errors (N,); sets the labels to climb away from and the classes to aim at."""
        problem = self.problem
        clean = torch.cat(self.batches.map(lambda part: self.counted.logits(problem.x[part], part), rows))
        check_labels(problem, clean.shape[1])
        if self.options.predicted_labels:
            self.labels = clean.argmax(1)
        if self.options.num_targets:
            wrong = clean.scatter(1, problem.y[:, None], -torch.inf)
            self.ranked = wrong.topk(min(self.options.num_targets, clean.shape[1] - 1), dim=1).indices
        if self.options.keep != "last":
            loss = self.options.loss(clean, self.labels, self._targets(rows, 0))
            self.reached = self._reaches(problem, clean)
            self.best_loss = loss.to(self.best_loss.dtype)
        return misclassified(clean, problem.y)

    def _stretch(self, rows: Tensor, restart: int, first: int, last: int) -> None:
        """Steps ``first`` to ``last`` of these samples; writes the state only at the end."""
        options, part = self.options, self.problem[rows]
        labels, targets, step_size = self.labels[rows], self._targets(rows, restart), options.step_size[rows]
        best = _Best(self.best[rows], self.best_loss[rows], self.reached[rows])
        shortened = torch.zeros_like(part.eps)
        x_adv = self._start(rows, part, restart) if first == 0 else self.x_adv[rows]

        for index in range(first, last):
            found = self._gradient(x_adv, rows, labels, targets)
            if options.keep != "last":
                best.consider(x_adv, found.loss, self._reaches(part, found.logits))
            if options.on_step:
                options.on_step(Step(restart, index, rows, x_adv, *found))
            shortened += self._is_shortened(found)
            x_adv = self._move(x_adv, found.grad, part, step_size)

        if last == options.steps:
            logits = self.counted.logits(x_adv, rows)
            best.consider(x_adv, options.loss(logits, labels, targets), self._reaches(part, logits))
        self.x_adv[rows], self.best[rows] = x_adv, best.x
        self.best_loss[rows], self.reached[rows] = best.loss, best.reached
        self.shortened[rows] += shortened
        self.taken[rows] += last - first

    def _gradient(self, x_adv: Tensor, rows: Tensor, labels: Tensor, targets: Tensor | None) -> Gradient:
        """Gradient, loss and logits; of the averaged loss under the cleverhans protocol, but for the loss itself."""
        options = self.options
        if not options.cleverhans:
            return self.counted.gradient(x_adv, lambda logits: options.loss(logits, labels, targets), rows)
        count = options.averaged_over
        found = self.counted.gradient(
            x_adv, lambda logits: options.loss(logits, labels, targets) / count, rows
        )
        return found._replace(loss=found.loss * count)

    def _move(self, x_adv: Tensor, grad: Tensor, part: Problem, step_size: Tensor) -> Tensor:
        """One step and the way back into ball and box."""
        if not self.options.cleverhans:
            return part.norm.confine(part.norm.ascend(x_adv, grad, step_size), part.x, part.eps)
        # cleverhans clips to [0, 1] before the projection too; its sign step at Linf knows no floor.
        if part.norm.name == "L2":
            direction = grad / per_sample(part.norm.length(grad).clamp_min(STEP_FLOOR), grad)
        else:
            direction = part.norm.step(grad)
        moved = torch.addcmul(x_adv, direction, per_sample(step_size, x_adv)).clamp_(0, 1)
        return part.norm.confine(moved, part.x, part.eps)

    def _is_shortened(self, found: Gradient) -> Tensor:
        """bool (n,): cleverhans' floor shortens the step; at other norms than L2, the gradient is exactly
        0.
        """
        length = self.problem.norm.length(found.grad)
        if self.problem.norm.name != "L2":
            return length == 0
        return length < STEP_FLOOR * (1 if self.options.cleverhans else self.options.averaged_over)

    def _start(self, rows: Tensor, part: Problem, restart: int) -> Tensor:
        if self.options.start == "clean":
            return part.x
        draws = part.draws(self.options.seed).fork(restart)
        shape = tuple(part.x.shape[1:])
        if self.options.cleverhans:
            uniform = draws.uniform(shape).to(part.x.dtype)
            delta = (2 * uniform - 1) * per_sample(part.eps, uniform)
        else:
            delta = part.norm.random(draws, shape, part.eps)
        x_adv = part.norm.confine(part.x + delta, part.x, part.eps)
        return self._diversify(x_adv, rows, part, draws) if self.options.start == "odi" else x_adv

    def _diversify(self, x_adv: Tensor, rows: Tensor, part: Problem, draws: Draws) -> Tensor:
        """Output-diversified initialisation (Tashiro et al. 2020): climb a random mix of the logits for two
        steps.
        """

        def mixed(logits: Tensor) -> Tensor:
            weights = 2 * draws.fork(0).uniform((logits.shape[1],)).to(logits.dtype) - 1
            return (weights * logits).sum(1)

        for _ in range(_ODI_STEPS):
            grad = self.counted.gradient(x_adv, mixed, rows).grad
            x_adv = part.norm.confine(part.norm.ascend(x_adv, grad, part.eps), part.x, part.eps)
        return x_adv

    def _targets(self, rows: Tensor, restart: int) -> Tensor | None:
        if self.options.num_targets:
            return self.ranked[rows, restart % self.ranked.shape[1]]
        return None if self.problem.targets is None else self.problem.targets[rows]

    def _reaches(self, part: Problem, logits: Tensor) -> Tensor:
        """bool (n,): the sample's goal is met: its target, or any wrong class; never where only the loss counts."""
        if self.options.keep == "loss":
            return torch.zeros_like(part.y, dtype=torch.bool)
        if part.targets is None:
            return misclassified(logits, part.y)
        return logits.argmax(1) == part.targets

    def _verify(self, clean_wrong: Tensor) -> AttackResult:
        trace = {"shortened": self.shortened / self.taken.clamp_min(1), "loss": self.best_loss}
        undone = clean_wrong if self.options.keep == "best" else None
        return finish(
            self.counted, self.problem, self.best, clean_wrong=undone, batches=self.batches, trace=trace
        )


@dataclass
class _Best:
    """The best iterates of some samples: one that reached the goal before one that did not, then by loss."""

    x: Tensor
    loss: Tensor
    reached: Tensor

    def consider(self, x_adv: Tensor, loss: Tensor, reached: Tensor) -> None:
        better = torch.where(reached == self.reached, loss > self.loss, reached)
        torch.where(per_sample(better, self.x), x_adv, self.x, out=self.x)
        self.loss = torch.where(better, loss, self.loss)
        self.reached = self.reached | reached


def _stretches(steps: int) -> Iterator[tuple[int, int]]:
    """Split the steps into stretches between which broken samples leave: single steps, then 25 % longer each
    time.

    Regrouping between stretches, not at every step, keeps batches full and a GPU from waiting, for at most a
    quarter more steps of a sample than it needed.
    """
    first = 0
    while first < steps:
        last = min(steps, first + 1 + first // 4)
        yield first, last
        first = last
