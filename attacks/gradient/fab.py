"""Fast adaptive boundary attack (Croce and Hein 2020, arXiv 1907.02044): steps onto the linearised boundary.

FAB looks for the smallest adversarial perturbation. When only the ball of radius eps matters, a sample leaves as soon
as one inside is found; its further steps could only shrink it. `run_steps` is its loop, for n runs at a time; a run is
one try, that is one start towards one target, of one sample.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from attacks.core import entry
from attacks.core.batching import NEVER, Searches, default_batch_size, leave_every, runs_in_turn
from attacks.core.inputs import Problem, validate_inputs
from attacks.core.losses import margin_targeted, misclassified
from attacks.core.model import CountedModel, Model
from attacks.core.model_state import fast_layout
from attacks.core.norms import DUAL, ball_and_box, per_sample, plain_length
from attacks.core.projections import to_hyperplane
from attacks.core.recording import traced_forward
from attacks.core.result import AttackResult, finish, in_batches
from attacks.core.rng import RandomSource, SampleSource
from attacks.gradient.target_order import Order, by_logit

_STREAM = 2
_OVERSHOOT = 1.05  # eta
_PULL_BACK = 0.9  # beta


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
    random_source: RandomSource | None = None,
) -> AttackResult:
    """FAB towards the nearest linearised boundary; every step takes one backward pass per class.

    Args:
        model, x, y, norm, eps, batch_size, seed, sample_ids: see `attacks`.
        steps: iterations per restart.
        restarts: the first starts at the image, later ones at random points around it.
        alpha_max: most weight, in [0, 1], of the step from the image itself.
        early_stop: a sample leaves once it is broken within ``eps``; False searches on for the smallest perturbation.
        random_source: draws the later starts in place of ``seed``, see `attacks.core.rng`.

    Returns:
        The result; its trace holds "distance" (N,) of the smallest misclassified point found, be it inside the ball or
        not: 0 for clean errors, infinite where none was found.
    """
    problem = validate_inputs(x, y, norm=norm, eps=eps, sample_ids=sample_ids)
    options: dict[str, Any] = {"steps": steps, "restarts": restarts, "alpha_max": alpha_max}
    options |= {"early_stop": early_stop, "random_source": random_source}
    return in_batches(lambda part: run_fab(model, part, seed, **options), problem, batch_size, patient=True)


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
    random_source: RandomSource | None = None,
) -> AttackResult:
    """FAB towards the boundaries of the ``num_targets`` best wrong classes in turn: one backward pass per step.

    Arguments, result and errors are those of `fab`.
    """
    problem = validate_inputs(x, y, norm=norm, eps=eps, sample_ids=sample_ids)
    options: dict[str, Any] = {"steps": steps, "restarts": restarts, "alpha_max": alpha_max}
    options |= {"early_stop": early_stop, "random_source": random_source, "num_targets": num_targets}
    return in_batches(lambda part: run_fab(model, part, seed, **options), problem, batch_size, patient=True)


def run_fab(
    model: Model,
    problem: Problem,
    seed: int,
    *,
    steps: int = 100,
    restarts: int = 1,
    num_targets: int = 0,
    alpha_max: float = 0.1,
    early_stop: bool = True,
    random_source: RandomSource | None = None,
    all_restarts_at_once: bool = False,
    order: Order = by_logit,
) -> AttackResult:
    """Attack one batch of validated inputs, inside `frozen`; untargeted without ``num_targets``.

    ``all_restarts_at_once`` is for samples that withstood another attack; ``order`` ranks the targets.
    """
    x, source = problem.x, random_source or SampleSource(seed, _STREAM)
    counted = CountedModel(model, problem, max_batch=default_batch_size(x))
    counted.scorer = traced_forward(model, x, len(problem) * steps * restarts * max(1, num_targets))
    nearest, distance = x.clone(), torch.full_like(problem.eps, torch.inf)
    with fast_layout(model, x):
        clean = counted.clean_logits()
        wrong = misclassified(clean, problem.y)
        distance[wrong] = 0
        targets = order(counted, clean, num_targets) if num_targets else None

        def left() -> Tensor:
            return distance > problem.eps if early_stop else ~wrong

        for part, row, attempt, goal in runs_in_turn(problem, targets, restarts, all_restarts_at_once, left):
            runs = Runs(problem, row, goal, _start(problem, row, source, attempt, restarts))
            found, found_at = run_steps(counted, runs, steps, alpha_max, early_stop)
            best, which = found_at.view(len(part), -1).min(1)
            slot = torch.arange(len(part), device=x.device) * (len(row) // len(part)) + which
            closer = best < distance[part]
            nearest[part[closer]], distance[part[closer]] = found[slot[closer]], best[closer]
    far = distance > problem.eps
    if far.any():
        inside = ball_and_box(nearest, x, problem.eps, problem.norm)
        nearest = torch.where(per_sample(far, x), inside, nearest)
    return finish(counted, problem, nearest, clean_wrong=wrong, trace={"distance": distance})


def run_steps(
    counted: CountedModel, runs: Runs, steps: int, alpha_max: float, early_stop: bool
) -> tuple[Tensor, Tensor]:
    """FAB's loop: take all ``runs`` so many ``steps``; the nearest adversarial point of each and its distance.

    A step linearises the boundary at the point, moves onto it from there and from the image, and mixes the two.
    """
    norm = counted.problem.norm.name
    nearest, distance = runs.nearest.clone(), runs.distance.clone()
    every = leave_every(runs.point)
    for step in range(steps):
        gap, slope = _boundary(counted, runs)
        w, point, x = slope.flatten(1), runs.point.flatten(1), runs.x.flatten(1)
        b = (w * point).sum(1) - gap
        moves = to_hyperplane(norm, torch.cat([point, x]), torch.cat([w, w]), torch.cat([b, b]))
        ahead, home = moves.split(len(point))
        here, there = plain_length(norm, moves).clamp_min(1e-8).split(len(point))
        # The closer the image's own projection, the more the step leans to it.
        alpha = (here / (here + there)).clamp(0, alpha_max)[:, None]
        moved = torch.lerp(
            torch.add(point, ahead, alpha=_OVERSHOOT), torch.add(x, home, alpha=_OVERSHOOT), alpha
        )
        # A gap that is not finite leads nowhere: such a search stays where it is.
        moved = torch.where(moved.abs() < torch.inf, moved, point)
        runs.point = moved.clamp(0, 1).view_as(runs.point)
        inside = runs.judge(counted.logits(runs.point, runs.row), norm, step, early_stop)
        due = (step + 1) % every == 0 if every > 1 else inside.any()
        if (early_stop and due) or step == steps - 1:
            gone, first = runs.first_to_break(len(counted.problem))
            nearest[runs.slot] = runs.nearest
            distance[runs.slot] = torch.where(gone & ~first, torch.inf, runs.distance)
            runs.keep(~gone)
            if not len(runs.row):
                break
    return nearest, distance


class Runs(Searches):
    """n runs in progress.

    Attributes:
        x, y, eps: its image, label and radius.
        goal: the class whose boundary is sought (n,), or None for the nearest.
        point: where the search is (n, ...).
        nearest, distance: the smallest adversarial point so far and its distance, infinite without one.
    """

    def __init__(self, problem: Problem, row: Tensor, goal: Tensor | None, point: Tensor) -> None:
        super().__init__(row)
        self.x, self.y, self.eps = problem.x[row], problem.y[row], problem.eps[row]
        self.goal = goal
        self.point = point
        self.nearest = self.x
        self.distance = torch.full_like(self.eps, torch.inf)

    def judge(self, logits: Tensor, norm: str, step: int, early_stop: bool) -> Tensor:
        """Note adversarial points, given the ``logits`` (n, K) here, and pull these runs back towards ``x``.

        Returns which runs are inside the ball for the first time, bool (n,); with ``early_stop`` they find no more.
        """
        delta = self.point - self.x
        wrong = misclassified(logits, self.y)
        distance = plain_length(norm, delta)
        closer = wrong & (distance < self.distance)
        closer &= self.broke_at == NEVER
        inside = closer & (distance <= self.eps)
        if early_stop:
            self.broke_at = torch.where(inside, step, self.broke_at)
        self.nearest = torch.where(per_sample(closer, delta), self.point, self.nearest)
        self.distance = torch.where(closer, distance, self.distance)
        back = torch.add(self.x, delta, alpha=_PULL_BACK)
        self.point = torch.where(per_sample(wrong, delta), back, self.point)
        return inside


def _start(problem: Problem, row: Tensor, source: RandomSource, attempt: Tensor, restarts: int) -> Tensor:
    """The image itself; in later restarts a random point half way to the edge of the ball."""
    x, norm = problem.x[row], problem.norm.name
    later = attempt % restarts > 0
    if not later.any():
        return x
    draw = source.uniform if norm == "Linf" else source.normal
    noise = draw(problem.ids[row], tuple(x.shape[1:]), attempt)
    noise = 2 * noise - 1 if norm == "Linf" else noise
    reach = per_sample(problem.eps[row], x) * noise / per_sample(plain_length(norm, noise), x)
    return torch.where(per_sample(later, x), (x + reach * 0.5).clamp_(0, 1), x)


def _boundary(counted: CountedModel, runs: Runs) -> tuple[Tensor, Tensor]:
    """z_t - z_y (n,) at the points and its gradient (n, ...); t is the goal, or the nearest class."""
    if runs.goal is not None:
        found = counted.gradient(runs.point, margin_targeted, runs.row, (runs.y, runs.goal))
        return found.loss, found.grad.contiguous()
    logits, slopes = counted.jacobian(runs.point, runs.row)
    index = torch.arange(len(logits), device=logits.device)
    gaps = logits - logits[index, runs.y, None]
    slopes = slopes - slopes[index, runs.y, None]
    steepness = plain_length(DUAL[counted.problem.norm.name], slopes.flatten(0, 1)).view_as(gaps)
    distance = gaps.abs() / (1e-12 + steepness)
    distance[index, runs.y] = torch.inf
    nearest = distance.argmin(1)
    return gaps[index, nearest], slopes[index, nearest]
