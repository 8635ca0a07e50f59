"""Successive halving over target classes: short targeted ascents towards every class, the most promising taken further.

APGD-T spends as much on a hopeless target as on the one that is about to succeed. Here every target gets a few steps;
the best few of each sample go on from their best points with smaller steps, and the best of these again (Karnin et al.
2013). What becomes of a sample depends on its own losses alone.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from attacks.core.batching import Rows, default_batch_size, runs_of, split_rows
from attacks.core.inputs import Problem
from attacks.core.losses import get_loss, misclassified
from attacks.core.model import CountedModel, Model
from attacks.core.model_state import fast_layout
from attacks.core.result import AttackResult, finish
from attacks.core.rng import SampleSource
from attacks.gradient.apgd import Best, Runs, run_steps
from attacks.gradient.apgd_steps import steps_for
from attacks.gradient.target_order import Order, by_distance

_STREAM = 4


class Round(NamedTuple):
    """How many targets of a sample take part, for how many steps, and the first step's share of APGD's."""

    targets: int
    steps: int
    shrink: float


ROUNDS = (Round(9, 2, 1.0), Round(6, 4, 1.0), Round(3, 30, 0.5), Round(1, 100, 0.25))


def run_successive_halving(
    model: Model,
    problem: Problem,
    seed: int,
    *,
    loss: str = "dlr",
    rounds: tuple[Round, ...] = ROUNDS,
    order: Order = by_distance,
) -> AttackResult:
    """Attack one batch of validated inputs, inside `frozen`, at its radius alone."""
    counted = CountedModel(model, problem, max_batch=default_batch_size(problem.x))
    objective, best = get_loss(loss), Best(problem.x)
    with fast_layout(model, problem.x):
        clean = counted.clean_logits()
        wrong = misclassified(clean, problem.y)
        best.broken |= wrong
        targets = order(counted, clean, rounds[0].targets)
        field = _start(problem, (~wrong).nonzero().squeeze(1), targets, SampleSource(seed, _STREAM))
        for round_ in rounds:
            field.keep(~best.broken[field.rows])
            field.keep_best(round_.targets)
            count = field.targets.shape[1]
            for part in split_rows(problem, torch.arange(len(field.rows), device=wrong.device), count):
                row = field.rows[part].repeat_interleave(count)
                runs, found = Runs(problem, row, field.targets[part].flatten()), Best(problem.x[row])
                runs.enter(problem, field.points[part].flatten(0, 1), shrink=round_.shrink)
                run_steps(counted, runs, found, objective, round_.steps)
                best.merge(field.rows[part], found)
                field.points[part] = found.point.unflatten(0, (-1, count))
                field.losses[part] = found.loss.view(-1, count)
    trace = {"loss": best.loss, "zero_gradient": best.zero_gradient}
    return finish(counted, problem, best.candidate(), clean_wrong=wrong, trace=trace)


class _Field(Rows):
    """Who takes part: samples (m,), their targets (m, k), and points (m, k, ...) and losses (m, k) there."""

    def __init__(self, rows: Tensor, targets: Tensor, points: Tensor) -> None:
        self.rows, self.targets, self.points = rows, targets, points
        self.losses = torch.zeros_like(targets, dtype=points.dtype)

    def keep_best(self, count: int) -> None:
        """Go on with the ``count`` targets of highest loss of each sample."""
        best = self.losses.topk(min(count, self.losses.shape[1]), dim=1).indices
        samples = torch.arange(len(best), device=best.device)[:, None]
        self.targets, self.losses = self.targets.gather(1, best), self.losses.gather(1, best)
        self.points = self.points[samples, best]


def _start(problem: Problem, rows: Tensor, targets: Tensor, source: SampleSource) -> _Field:
    """Every one of the ``targets`` (N, k) of the samples ``rows`` (m,), each at a random start."""
    row, rank = runs_of(rows, range(targets.shape[1]))
    points = steps_for(problem, row).start(source, problem.ids[row], rank)
    return _Field(rows, targets[rows], points.unflatten(0, targets[rows].shape))
