"""Fast adaptive boundary attack (Croce and Hein 2020, arXiv 1907.02044): steps onto the linearised boundary.

FAB looks for the smallest adversarial perturbation. When only the ball of radius eps matters, a sample leaves as
soon as one inside is found; its further steps could only shrink it.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.core import entry, projections
from attacks.core import published as original
from attacks.core.batching import (
    Rows,
    default_batch_size,
    ranked_targets,
    restart_groups,
    runs_of,
    samples_at_once,
)
from attacks.core.inputs import Problem, at_least_one, validate_inputs
from attacks.core.losses import margin_targeted, misclassified
from attacks.core.memory_format import fast_layout
from attacks.core.model import CountedModel, Model, frozen
from attacks.core.norms import ball_and_box, per_sample
from attacks.core.published import plain_length
from attacks.core.random_source import check_random, source_for
from attacks.core.result import AttackResult, finish, in_batches
from attacks.core.traced_forward import traced_forward

_STREAM = 2
_OVERSHOOT = 1.05  # eta
_PULL_BACK = 0.9  # beta


@dataclass(frozen=True)
class Fab:
    """FAB's options; calling it attacks one batch. See `fab` and `fab_targeted`.

    ``together`` begins all tries at once, for samples that withstood another attack.
    """

    steps: int = 100
    restarts: int = 1
    num_targets: int = 0
    alpha_max: float = 0.1
    early_stop: bool = True
    random: str = "sample"
    together: bool = False

    def __call__(self, model: Model, problem: Problem, seed: int) -> AttackResult:
        """Attack ``problem`` in one batch; call inside `frozen`."""
        max_batch = None if self.random == "original" else default_batch_size(problem.x)
        return _Attack(self, CountedModel(model, problem, max_batch=max_batch), seed).run()


class _Run(Rows):
    """n searches in progress, one per (sample, try).

    Attributes:
        row: the sample, an index into the problem (n,).
        x, y, eps: its image, label and radius.
        goal: the class whose boundary is sought (n,), or None for the nearest.
        point: where the search is (n, ...).
        nearest, distance: the smallest adversarial point so far and its distance, infinite without one.
    """

    def __init__(self, problem: Problem, row: Tensor, goal: Tensor | None, point: Tensor) -> None:
        self.row = row
        self.slot = torch.arange(len(row), device=row.device)
        self.x, self.y, self.eps = problem.x[row], problem.y[row], problem.eps[row]
        self.goal = goal
        self.point = point
        self.nearest = self.x
        self.distance = torch.full_like(self.eps, torch.inf)

    def judge(self, logits: Tensor, norm: str) -> None:
        """Note adversarial points, given the ``logits`` (n, K) here, and pull these runs back towards ``x``."""
        delta = self.point - self.x
        wrong = misclassified(logits, self.y)
        distance = plain_length(norm, delta)
        closer = wrong & (distance < self.distance)
        self.nearest = torch.where(per_sample(closer, delta), self.point, self.nearest)
        self.distance = torch.where(closer, distance, self.distance)
        self.point = torch.where(per_sample(wrong, delta), self.x + delta * _PULL_BACK, self.point)


class _Attack:
    """One batch under attack."""

    def __init__(self, options: Fab, counted: CountedModel, seed: int) -> None:
        self.options = options
        self.counted = counted
        self.problem = counted.problem
        self.norm = self.problem.norm.name
        self.source = source_for(options.random, seed, self.problem, _STREAM)
        self.project = (original if self.source.original else projections).to_hyperplane
        self.nearest = self.problem.x.clone()
        self.distance = torch.full_like(self.problem.eps, torch.inf)

    def run(self) -> AttackResult:
        """All tries, then the verification."""
        if not self.source.original:
            tries = self.options.restarts * max(1, self.options.num_targets)
            passes = len(self.problem) * self.options.steps * tries
            self.counted.scorer = traced_forward(self.counted.model, self.problem.x, passes)
        with nullcontext() if self.source.original else fast_layout(self.counted.model, self.problem.x):
            clean = self.counted.clean_logits()
            wrong = misclassified(clean, self.problem.y)
            self.distance[wrong] = 0
            self.goals = ranked_targets(clean, self.problem.y, self.options.num_targets)
            tries = self.options.restarts * (self.goals.shape[1] if self.options.num_targets else 1)
            for wave in restart_groups(tries, self.source.original, self.options.together):
                rows = (self.distance > self.problem.eps).nonzero().squeeze(1)
                if not self.options.early_stop:
                    rows = (~wrong).nonzero().squeeze(1)
                count = samples_at_once(self.problem, len(wave), self.source.original)
                for part in rows.split(count) if len(rows) else ():
                    self._lockstep(part, wave)
        return finish(
            self.counted, self.problem, self._inside(), clean_wrong=wrong, trace={"distance": self.distance}
        )

    def _inside(self) -> Tensor:
        """The nearest points, those outside the ball projected into it."""
        problem = self.problem
        far = self.distance > problem.eps
        if not far.any():
            return self.nearest
        inside = ball_and_box(self.nearest, problem.x, problem.eps, problem.norm)
        return torch.where(per_sample(far, inside), inside, self.nearest)

    def _lockstep(self, rows: Tensor, wave: range) -> None:
        """Some tries of the samples ``rows`` (n,) together; keeps the nearest point of each sample."""
        row, attempt = runs_of(rows, wave)
        goal = self.goals[row, attempt // self.options.restarts] if self.options.num_targets else None
        run = _Run(self.problem, row, goal, self._start(row, attempt))
        nearest, distance = run.nearest.clone(), run.distance.clone()
        for _ in range(self.options.steps):
            self._step(run)
            nearest[run.slot], distance[run.slot] = run.nearest, run.distance
            inside = run.distance <= run.eps
            if self.options.early_stop and not self.source.original and inside.any():
                run.keep(~torch.isin(run.row, run.row[inside]))
                if not len(run.row):
                    break
        best, which = distance.view(len(rows), -1).min(1)
        slot = torch.arange(len(rows), device=rows.device) * len(wave) + which
        closer = best < self.distance[rows]
        self.nearest[rows[closer]] = nearest[slot[closer]]
        self.distance[rows[closer]] = best[closer]

    def _start(self, row: Tensor, attempt: Tensor) -> Tensor:
        """The image itself; in later restarts a random point half way to the edge of the ball."""
        x = self.problem.x[row]
        restart = attempt % self.options.restarts
        if not restart.any():
            return x
        draw = self.source.uniform if self.norm == "Linf" else self.source.normal
        noise = draw(row, tuple(x.shape[1:]), attempt)
        noise = 2 * noise - 1 if self.norm == "Linf" else noise
        reach = per_sample(self.problem.eps[row], x) * noise / per_sample(plain_length(self.norm, noise), x)
        return torch.where(per_sample(restart > 0, x), (x + reach * 0.5).clamp_(0, 1), x)

    def _step(self, run: _Run) -> None:
        """One iteration: linearise at the point, step from there and from the image, and judge the new point."""
        gap, slope = self._boundary(run)
        w, point, x = slope.flatten(1), run.point.flatten(1), run.x.flatten(1)
        b = -gap + (slope * run.point).flatten(1).sum(1)
        moves = self.project(self.norm, torch.cat([point, x]), torch.cat([w, w]), torch.cat([b, b]))
        ahead, home = moves.split(len(point))
        sizes = plain_length(self.norm, moves).clamp_min(1e-8)
        here, there = sizes.split(len(point))
        # The closer the image's own projection, the more the step leans to it.
        alpha = (here / (here + there)).clamp(0, self.options.alpha_max)[:, None]
        moved = (point + _OVERSHOOT * ahead) * (1 - alpha) + (x + home * _OVERSHOOT) * alpha
        # A gap that is not finite leads nowhere: such a search stays where it is.
        moved = torch.where(moved.isfinite(), moved, point)
        run.point = moved.clamp(0, 1).view_as(run.point)
        run.judge(self.counted.logits(run.point, run.row), self.norm)

    def _boundary(self, run: _Run) -> tuple[Tensor, Tensor]:
        """z_t - z_y (n,) at the points and its gradient (n, ...); t is the goal, or the nearest class."""
        if run.goal is not None:
            found = self.counted.gradient(run.point, margin_targeted, run.row, (run.y, run.goal))
            return found.loss, found.grad.contiguous()
        logits, slopes = self.counted.jacobian(run.point, run.row)
        index = torch.arange(len(logits), device=logits.device)
        gaps = logits - logits[index, run.y, None]
        slopes = slopes - slopes[index, run.y, None]
        dual = {"Linf": "L1", "L2": "L2", "L1": "Linf"}[self.norm]
        steepness = plain_length(dual, slopes.flatten(0, 1)).view_as(gaps)
        distance = gaps.abs() / (1e-12 + steepness)
        distance[index, run.y] = torch.inf
        nearest = distance.argmin(1)
        return gaps[index, nearest], slopes[index, nearest]


@entry.attack
def fab(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    norm: str,
    eps: float | Tensor,
    steps: int = 100,
    restarts: int = 1,
    alpha_max: float = 0.1,
    early_stop: bool = True,
    batch_size: int | None = None,
    seed: int = 0,
    sample_ids: Tensor | None = None,
    random: str = "sample",
) -> AttackResult:
    """FAB towards the nearest linearised boundary; every step takes one backward pass per class.

    Args:
        model: images (n, C, H, W) in [0, 1] to logits (n, K).
        x: images (N, C, H, W), floats in [0, 1].
        y: labels (N,) int64.
        norm: "Linf", "L2" or "L1".
        eps: radius in units of pixels, one for all or per sample (N,).
        steps: iterations per restart.
        restarts: the first starts at the image, later ones at random points around it.
        alpha_max: most weight, in [0, 1], of the step from the image itself.
        early_stop: a sample leaves once it is broken within ``eps``; False searches on for the smallest perturbation.
        batch_size: the most images at once; None chooses. It changes no result (but see ``random``).
        seed: seeds the later restarts.
        sample_ids: integers (N,) that the random numbers of each sample hang on; default 0..N-1.
        random: "original" repeats the published implementation's draws and arithmetic, so that results compare bit by
            bit; broken samples then finish their run.

    Returns:
        The result; its trace holds "distance" (N,) of the smallest misclassified point found, be it inside the ball or
        not: 0 for clean errors, infinite where none was found.

    Raises:
        AttackError: wrong inputs, or a model without gradients.
    """
    attack = Fab(steps, restarts, 0, alpha_max, early_stop, random)
    return _run(
        attack, model, validate_inputs(x, y, norm=norm, eps=eps, sample_ids=sample_ids), batch_size, seed
    )


@entry.attack
def fab_targeted(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    norm: str,
    eps: float | Tensor,
    steps: int = 100,
    restarts: int = 1,
    num_targets: int = 9,
    alpha_max: float = 0.1,
    early_stop: bool = True,
    batch_size: int | None = None,
    seed: int = 0,
    sample_ids: Tensor | None = None,
    random: str = "sample",
) -> AttackResult:
    """FAB towards the boundaries of the ``num_targets`` best wrong classes in turn: one backward pass per step.

    Arguments, result and errors are those of `fab`.
    """
    num_targets = at_least_one("num_targets", num_targets)
    attack = Fab(steps, restarts, num_targets, alpha_max, early_stop, random)
    return _run(
        attack, model, validate_inputs(x, y, norm=norm, eps=eps, sample_ids=sample_ids), batch_size, seed
    )


def _run(attack: Fab, model: Model, problem: Problem, batch_size: int | None, seed: int) -> AttackResult:
    check_random(attack.random)
    for name in ("steps", "restarts"):
        at_least_one(name, getattr(attack, name))
    with frozen(model):
        patient = attack.random == "sample"
        return in_batches(lambda batch: attack(model, batch, seed), problem, batch_size, patient)
