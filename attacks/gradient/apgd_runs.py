"""Runs of APGD in progress: where each is, what it has found, and the loop that takes n of them along at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from attacks.core.batching import Rows
from attacks.core.inputs import Problem
from attacks.core.losses import Loss, misclassified
from attacks.core.model import CountedModel
from attacks.core.norms import per_sample
from attacks.gradient.apgd_steps import Steps

# Iterations of a stage with larger radii after which the best point is tried in the ball itself; and its last one.
_PEEKS = (1, 2, 4, 8, 16)


class Run(Rows):
    """n ascents in progress, one per (sample, try).

    Attributes:
        row: the sample, an index into the problem (n,).
        slot: the place of this run among all that started together (n,).
        goal: the class to reach (n,), or None.
        point, grad, loss, logits: where the run is and what the model says there.
        best, best_grad, best_loss: the point of highest loss so far.
        ball: the steps in the ball itself, during a stage with larger radii.
    """

    def __init__(
        self, problem: Problem, row: Tensor, goal: Tensor | None, steps: Steps, ball: Steps | None = None
    ) -> None:
        self.row = row
        self.slot = torch.arange(len(row), device=row.device)
        self.y = problem.y[row]
        self.goal = goal
        self.steps = steps
        self.ball = ball

    def evaluate(self, counted: CountedModel, loss: Loss, point: Tensor) -> None:
        """Move to ``point`` (n, ...) and ask the model there."""
        self.point = point
        found = counted.gradient(point, loss, self.row, (self.y, self.goal))
        self.grad, self.loss, self.logits = found.grad.contiguous(), found.loss, found.logits

    def begin(self, iterations: int) -> None:
        """Take the present point as the first and best of a stage."""
        self.best, self.best_grad, self.best_loss = self.point, self.grad, self.loss
        self.steps.begin(self.point, self.loss, iterations)

    def note(self) -> None:
        """Keep the present point where it is the best so far."""
        better = self.loss > self.best_loss
        wide = per_sample(better, self.point)
        self.best = torch.where(wide, self.point, self.best)
        self.best_grad = torch.where(wide, self.grad, self.best_grad)
        self.best_loss = torch.where(better, self.loss, self.best_loss)
        self.steps.observe(self.loss)

    def peek(self, counted: CountedModel, ball: Steps) -> tuple[Tensor, Tensor]:
        """The best points, brought into the ``ball`` itself (n, ...), and which of them are misclassified (n,)."""
        point = ball.nearest(self.best)
        return point, misclassified(counted.logits(point, self.row), self.y)

    def adapt(self) -> None:
        """Judge the step sizes; where told so, go back to the best point."""
        back = per_sample(self.steps.judge(self.best, self.best_loss), self.point)
        self.point = torch.where(back, self.best, self.point)
        self.grad = torch.where(back, self.best_grad, self.grad)


class Found:
    """What each of m runs, or samples, has come to.

    Attributes:
        adversarial: a misclassified point (m, ...) where ``broken`` (m,) says so.
        best, best_loss: the point of highest loss (m, ...) and its loss (m,).
        flat: bool (m,), the gradient at a start was exactly zero.
    """

    def __init__(self, x: Tensor) -> None:
        self.adversarial = x.clone()
        self.broken = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        self.best = x.clone()
        self.best_loss = torch.full((len(x),), -torch.inf, dtype=x.dtype, device=x.device)
        self.flat = torch.zeros_like(self.broken)

    def broke(self, run: Run, wrong: Tensor, points: Tensor) -> None:
        """Note the ``points`` (n, ...) of the ``wrong`` (n,) runs as adversarial."""
        self.adversarial[run.slot[wrong]] = points[wrong]
        self.broken[run.slot[wrong]] = True

    def close(self, run: Run) -> None:
        """Note the best points of runs that end."""
        self.best[run.slot], self.best_loss[run.slot] = run.best, run.best_loss

    def merge(self, rows: Tensor, runs: Found) -> None:
        """Take over, for samples ``rows`` (n,), the first success and the highest loss of their tries' ``runs``."""
        tries = len(runs.broken) // len(rows)
        first = runs.broken.view(-1, tries).int().argmax(1)
        highest = runs.best_loss.view(-1, tries).argmax(1)
        offset = torch.arange(len(rows), device=rows.device) * tries
        self.adversarial[rows] = runs.adversarial[offset + first]
        self.broken[rows] = runs.broken[offset + first]
        self.flat[rows] |= runs.flat.view(-1, tries).any(1)
        better = runs.best_loss[offset + highest] > self.best_loss[rows]
        self.best[rows[better]] = runs.best[(offset + highest)[better]]
        self.best_loss[rows[better]] = runs.best_loss[(offset + highest)[better]]


def climb(
    counted: CountedModel,
    run: Run,
    found: Found,
    loss: Loss,
    iterations: int,
    *,
    judge: bool = True,
    leave: bool = True,
) -> None:
    """Take all runs ``iterations`` steps on from their present points, and fill ``found``.

    Args:
        counted: the model.
        run: the runs; only those that stayed to the end are left in it.
        found: of as many runs as there were at first.
        loss: what they raise.
        iterations: how many steps.
        judge: whether misclassified points count.
        leave: whether the runs of a sample that is broken end.
    """
    run.evaluate(counted, loss, run.point)
    run.begin(iterations)
    found.flat[run.slot] |= (run.grad == 0).flatten(1).all(1)
    wait = run.steps.window
    for iteration in range(iterations + 1):
        if iteration:
            run.evaluate(counted, loss, run.steps.advance(run.point, run.grad))
            run.note()
            wait -= 1
        wrong = None
        if run.ball is None:
            point, wrong = run.point, misclassified(run.logits, run.y)
        elif iteration in _PEEKS or iteration == iterations:
            point, wrong = run.peek(counted, run.ball)
        if judge and wrong is not None and wrong.any():
            found.broke(run, wrong, point)
            if leave:
                found.close(run)
                run.keep(~torch.isin(run.row, run.row[wrong]))
                if not len(run.row):
                    return
        if iteration and not wait:
            run.adapt()
            wait = run.steps.window
    found.close(run)
