"""A race of targets: short targeted ascents towards every class, of which the most promising are taken further.

APGD-T spends as much on a hopeless target as on the one that is about to succeed. Here every target gets a few steps;
the best few of each sample go on from their best points with smaller steps, and the best of these again (successive
halving: Karnin et al. 2013). A sample's race depends on its own losses alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from attacks.core.batching import default_batch_size, patient_batch_size, ranked_targets, runs_of
from attacks.core.inputs import Problem
from attacks.core.losses import get_loss, misclassified
from attacks.core.memory_format import fast_layout
from attacks.core.model import CountedModel, Model
from attacks.core.norms import per_sample
from attacks.core.random_source import SampleSource
from attacks.core.result import AttackResult, finish
from attacks.gradient.apgd_runs import Found, Run, climb
from attacks.gradient.apgd_steps import steps_for

_STREAM = 4


class Rung(NamedTuple):
    """One round: how many targets of a sample take part, for how many steps, and the first step's share of APGD's."""

    targets: int
    steps: int
    shrink: float


@dataclass(frozen=True)
class Race:
    """The race's options; calling it attacks one batch."""

    loss: str = "dlr"
    rungs: tuple[Rung, ...] = (Rung(9, 2, 1.0), Rung(6, 4, 1.0), Rung(3, 30, 0.5), Rung(1, 100, 0.25))

    def __call__(self, model: Model, problem: Problem, seed: int) -> AttackResult:
        """Attack ``problem`` in one batch; call inside `frozen`."""
        return _Attack(
            self, CountedModel(model, problem, max_batch=default_batch_size(problem.x)), seed
        ).run()


class _Field(NamedTuple):
    """Who is in the race: samples (m,), targets by rank (m, k), and points (m, k, ...) and losses (m, k) there."""

    rows: Tensor
    ranks: Tensor
    points: Tensor
    losses: Tensor


class _Attack:
    """One batch under attack."""

    def __init__(self, options: Race, counted: CountedModel, seed: int) -> None:
        self.options = options
        self.counted = counted
        self.problem = counted.problem
        self.source = SampleSource(self.problem.draws(seed).fork(_STREAM))
        self.loss = get_loss(options.loss)
        self.found = Found(self.problem.x)

    def run(self) -> AttackResult:
        """All rounds, then the verification."""
        found, rungs = self.found, self.options.rungs
        with fast_layout(self.counted.model, self.problem.x):
            clean = self.counted.clean_logits()
            wrong = misclassified(clean, self.problem.y)
            found.broken |= wrong
            self.goals = ranked_targets(clean, self.problem.y, rungs[0].targets)
            field = self._start((~wrong).nonzero().squeeze(1))
            for rung in rungs:
                field = self._best(field, rung.targets)
                if len(field.rows):
                    field = self._round(field, rung)
        candidate = torch.where(per_sample(found.broken, found.best), found.adversarial, found.best)
        trace = {"loss": found.best_loss, "zero_gradient": found.flat}
        return finish(self.counted, self.problem, candidate, clean_wrong=wrong, trace=trace)

    def _start(self, rows: Tensor) -> _Field:
        """Every target of the samples ``rows`` (m,), each at a random start."""
        row, rank = runs_of(rows, range(self.goals.shape[1]))
        points = steps_for(self.problem, row).start(self.source, row, rank)
        ranks = rank.view(len(rows), -1)
        return _Field(
            rows,
            ranks,
            points.view(*ranks.shape, *points.shape[1:]),
            torch.zeros_like(ranks, dtype=points.dtype),
        )

    def _best(self, field: _Field, count: int) -> _Field:
        """The ``count`` targets of highest loss of each sample that is not broken yet."""
        left = ~self.found.broken[field.rows]
        losses = field.losses[left]
        best = losses.topk(min(count, losses.shape[1]), dim=1).indices
        samples = torch.arange(len(best), device=best.device)[:, None]
        points = field.points[left][samples, best]
        return _Field(field.rows[left], field.ranks[left].gather(1, best), points, losses.gather(1, best))

    def _round(self, field: _Field, rung: Rung) -> _Field:
        """Take everybody ``rung.steps`` further."""
        count = field.ranks.shape[1]
        most = patient_batch_size(self.problem.x)
        points, losses = [], []
        for part in torch.arange(len(field.rows), device=field.rows.device).split(max(1, most // count)):
            row, rank = field.rows[part].repeat_interleave(count), field.ranks[part].flatten()
            steps = steps_for(self.problem, row, shrink=rung.shrink)
            run = Run(self.problem, row, self.goals[row, rank], steps)
            run.point = steps.enter(field.points[part].flatten(0, 1), self.source, row)
            found = Found(self.problem.x[row])
            climb(self.counted, run, found, self.loss, rung.steps)
            self.found.merge(field.rows[part], found)
            points.append(found.best.unflatten(0, (-1, count)))
            losses.append(found.best_loss.view(-1, count))
        return _Field(field.rows, field.ranks, torch.cat(points), torch.cat(losses))
