"""Auto-PGD (Croce and Hein 2020, arXiv 2003.01690): PGD with momentum and a step size that adapts itself.

`run_steps` is its loop, for n runs at a time; a run is one try, that is one start towards one target, of one sample.
Broken samples leave at once: a run's state is its sample's alone, so those that stay are not affected.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from attacks.core import entry
from attacks.core.batching import NEVER, Searches, default_batch_size, leave_every, runs_in_turn
from attacks.core.inputs import Problem, validate_inputs
from attacks.core.losses import Loss, get_loss, misclassified
from attacks.core.model import CountedModel, Model
from attacks.core.model_state import fast_layout
from attacks.core.norms import per_sample
from attacks.core.recording import replayed
from attacks.core.result import AttackResult, finish, in_batches
from attacks.core.rng import RandomSource, SampleSource
from attacks.gradient.apgd_steps import radii_schedule, steps_for
from attacks.gradient.target_order import Order, by_logit

_STREAM = 1
# Iterations of a stage with larger radii after which the best point is tried in the ball itself; and its last one.
_PEEKS = (1, 2, 4, 8, 16)


@entry.attack
def apgd(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    norm: str,
    eps: float | Tensor,
    loss: str = "ce",
    steps: int = 100,
    restarts: int = 1,
    eot_samples: int = 1,
    early_stop: bool = True,
    batch_size: int | None = None,
    seed: int = 0,
    sample_ids: Tensor | None = None,
    random_source: RandomSource | None = None,
) -> AttackResult:
    """Auto-PGD, untargeted (Croce and Hein 2020; at L1 Croce and Hein 2021, through radii 3 eps, 2 eps and eps).

    Args:
        model, x, y, norm, eps, batch_size, seed, sample_ids: see `attacks`.
        loss: what is raised: "ce", "margin", "dlr" (3 classes or more) or "mifpe".
        steps: iterations per restart.
        restarts: independent starts; later ones attack the samples that are still unbroken.
        eot_samples: gradients and decisions are averaged over this many passes, for models with random outputs.
        early_stop: broken samples leave at once; False keeps their last misclassified iterate, as the original does.
        random_source: draws the starts in place of ``seed``, see `attacks.core.rng`.

    Returns:
        The result. ``adversarial`` is a misclassified point, or where there is none that of highest loss; the trace
        holds its "loss" (N,) and "zero_gradient" (N,): the gradient at a start was exactly zero.

    Raises:
        AttackError: wrong inputs, too few classes for the loss, or a model without gradients.
    """
    problem = validate_inputs(x, y, norm=norm, eps=eps, sample_ids=sample_ids)
    options: dict[str, Any] = {"loss": loss, "steps": steps, "restarts": restarts, "eot_samples": eot_samples}
    options |= {"early_stop": early_stop, "random_source": random_source}
    return in_batches(lambda part: run_apgd(model, part, seed, **options), problem, batch_size, patient=True)


@entry.attack
def apgd_targeted(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    norm: str,
    eps: float | Tensor,
    loss: str = "dlr",
    steps: int = 100,
    restarts: int = 1,
    num_targets: int = 9,
    eot_samples: int = 1,
    early_stop: bool = True,
    batch_size: int | None = None,
    seed: int = 0,
    sample_ids: Tensor | None = None,
    random_source: RandomSource | None = None,
) -> AttackResult:
    """Auto-PGD towards each of the ``num_targets`` best wrong classes in turn; any misclassification is a success.

    Arguments, result and errors are those of `apgd`, with the targeted losses ("dlr" needs 4 classes or more).
    """
    problem = validate_inputs(x, y, norm=norm, eps=eps, sample_ids=sample_ids)
    options: dict[str, Any] = {"loss": loss, "steps": steps, "restarts": restarts, "eot_samples": eot_samples}
    options |= {"early_stop": early_stop, "random_source": random_source}
    options["num_targets"] = num_targets
    return in_batches(lambda part: run_apgd(model, part, seed, **options), problem, batch_size, patient=True)


def run_apgd(
    model: Model,
    problem: Problem,
    seed: int,
    *,
    loss: str = "ce",
    steps: int = 100,
    restarts: int = 1,
    num_targets: int = 0,
    eot_samples: int = 1,
    early_stop: bool = True,
    random_source: RandomSource | None = None,
    all_restarts_at_once: bool = False,
    order: Order = by_logit,
) -> AttackResult:
    """Attack one batch of validated inputs, inside `frozen`; untargeted without ``num_targets``.

    ``all_restarts_at_once`` is for samples that withstood another attack; ``order`` ranks the targets.
    """
    counted = CountedModel(model, problem, samples=eot_samples, max_batch=default_batch_size(problem.x))
    source, objective = random_source or SampleSource(seed, _STREAM), get_loss(loss)
    best = Best(problem.x)
    with fast_layout(model, problem.x):
        clean = counted.clean_logits()
        wrong = misclassified(clean, problem.y)
        best.broken |= wrong
        targets = order(counted, clean, num_targets) if num_targets else None
        turns = runs_in_turn(problem, targets, restarts, all_restarts_at_once, lambda: ~best.broken)
        for part, row, attempt, goal in turns:
            runs, found = Runs(problem, row, goal), Best(problem.x[row])
            stages = radii_schedule(problem.norm.name, steps)
            runs.best = steps_for(problem, row, stages[0][0]).start(source, problem.ids[row], attempt)
            for factor, iterations in stages:
                runs.enter(problem, runs.best, factor)
                run_steps(counted, runs, found, objective, iterations, leave=early_stop)
            best.merge(part, found)
    trace = {"loss": best.loss, "zero_gradient": best.zero_gradient}
    return finish(counted, problem, best.candidate(), clean_wrong=wrong, trace=trace)


def run_steps(
    counted: CountedModel, runs: Runs, found: Best, loss: Loss, iterations: int, *, leave: bool = True
) -> None:
    """APGD's loop: take ``runs``, which have entered a stage, ``iterations`` steps on, and fill ``found``.

    ``runs`` keeps those that stay to the end, ``found`` is by the slot of each run. The window after which step sizes
    are judged follows from ``iterations``. With ``leave`` all runs of a sample end once one of them breaks it.
    """
    if not len(runs.row):
        return
    runs.arrive(*runs.evaluated(counted, loss, runs.point))
    runs.best, runs.best_grad, runs.best_loss = runs.point, runs.grad, runs.loss
    runs.steps.begin(runs.point, runs.loss, iterations)
    found.zero_gradient[runs.slot] |= (runs.grad == 0).flatten(1).all(1)
    wait, every, left = runs.steps.window, leave_every(runs.point), -1

    def step(*inputs: Tensor) -> tuple[Tensor, ...]:
        return runs.evaluated(counted, loss, runs.steps.advance(*inputs))

    take = replayed(step, counted, iterations)
    for iteration in range(iterations + 1):
        if iteration:
            runs.arrive(*take(*runs.steps.inputs(runs.point, runs.grad)))
            wait -= 1
        due = iteration - left >= every or iteration == iterations
        peek = runs.ball is not None and (iteration in _PEEKS or iteration == iterations)
        if iteration and wait and not due and not peek:
            continue
        points, losses, logits = runs.keep_best()
        wrong = None
        if iteration:
            runs.steps.observe(losses)
        if runs.ball is None:
            wrong = misclassified(torch.stack(logits) if every > 1 else logits[0][None], runs.y)
        elif peek:
            points = [runs.ball.nearest(runs.best)]
            wrong = misclassified(counted.logits(points[0], runs.row), runs.y)[None]
        if wrong is not None and (every > 1 or wrong.any()):
            runs.succeed(points, wrong, iteration, first=leave)
            if leave and due:
                left = iteration
                gone, first = runs.first_to_break(len(counted.problem))
                found.note(runs, first)
                runs.keep(~gone)
                if not len(runs.row):
                    return
        if iteration and not wait:
            back = per_sample(runs.steps.judge(runs.best, runs.best_loss), runs.point)
            runs.point = torch.where(back, runs.best, runs.point)
            runs.grad = torch.where(back, runs.best_grad, runs.grad)
            wait = runs.steps.window
    found.note(runs, runs.broke_at < NEVER)


class Runs(Searches):
    """n runs in progress.

    Attributes:
        adversarial: where the run broke its sample, if it did (n, ...).
        goal: the class to reach (n,), or None.
        point, grad, loss: where the run is and what the model says there.
        seen: points, gradients, losses and logits since the best of them was chosen.
        best, best_grad, best_loss: the point of highest loss so far.
        steps: the step rule of the stage.
        ball: that of the ball itself, during a stage with larger radii.
    """

    best: Tensor
    best_grad: Tensor
    best_loss: Tensor

    def __init__(self, problem: Problem, row: Tensor, goal: Tensor | None) -> None:
        super().__init__(row)
        self.y, self.adversarial = problem.y[row], problem.x[row]
        self.goal = goal
        self.seen: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []

    def enter(self, problem: Problem, point: Tensor, factor: float = 1.0, shrink: float = 1.0) -> None:
        """Begin a stage with ``factor`` times the radii near ``point`` (n, ...); see `steps_for`."""
        self.steps = steps_for(problem, self.row, factor, shrink=shrink)
        self.ball = None if factor == 1 else steps_for(problem, self.row)
        self.point = self.steps.enter(point)

    def evaluated(
        self, counted: CountedModel, loss: Loss, point: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """``point`` (n, ...), and what the model says there: gradient, loss and logits."""
        found = counted.gradient(point, loss, self.row, (self.y, self.goal))
        return point, found.grad.contiguous(), found.loss, found.logits

    def arrive(self, point: Tensor, grad: Tensor, loss: Tensor, logits: Tensor) -> None:
        """Move to ``point`` (n, ...), where the model says this."""
        self.point, self.grad, self.loss = point, grad, loss
        self.seen.append((point, grad, loss, logits))

    def succeed(self, points: list[Tensor], wrong: Tensor, iteration: int, *, first: bool) -> None:
        """Note the ``first`` of ``points`` (n, ...) that is ``wrong`` (k, n), or the last."""
        broken, which, at = wrong[0], None, torch.full_like(self.broke_at, iteration)
        if len(points) > 1:
            broken = wrong.any(0)
            count = torch.arange(len(points), 0, -1, device=wrong.device)
            rank = count if first else count.flip(0)
            which = (wrong * rank[:, None]).argmax(0)
            at -= len(points) - 1 - which
        if first:
            broken = broken & (self.broke_at == NEVER)
        found = _chosen(points, which)
        self.adversarial = torch.where(per_sample(broken, found), found, self.adversarial)
        self.broke_at = torch.where(broken, at, self.broke_at)

    def keep_best(self) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Keep the best of the points ``seen``; return them, their losses and logits, and forget them."""
        points, grads, losses, logits = (list(each) for each in zip(*self.seen, strict=True))
        self.seen, which = [], None
        if len(points) > 1:
            which = torch.stack(losses).nan_to_num(-torch.inf, torch.inf, -torch.inf).argmax(0)
        loss = _chosen(losses, which)
        better = loss > self.best_loss
        wide = per_sample(better, self.point)
        self.best = torch.where(wide, _chosen(points, which), self.best)
        self.best_grad = torch.where(wide, _chosen(grads, which), self.best_grad)
        self.best_loss = torch.where(better, loss, self.best_loss)
        return points, losses, logits


def _chosen(values: list[Tensor], which: Tensor | None) -> Tensor:
    """Of k ``values`` (n, ...) those that ``which`` (n,) says; None: the only ones."""
    if which is None:
        return values[0]
    return torch.stack(values)[which, torch.arange(len(which), device=which.device)]


class Best:
    """What each of m samples, or runs by their slot, has come to.

    Attributes:
        adversarial: a misclassified point (m, ...) where ``broken`` (m,) says so.
        point, loss: the point of highest loss (m, ...) and its loss (m,).
        zero_gradient: bool (m,), the gradient at a start was exactly zero.
    """

    def __init__(self, x: Tensor) -> None:
        self.adversarial, self.point = x.clone(), x.clone()
        self.loss = torch.full((len(x),), -torch.inf, dtype=x.dtype, device=x.device)
        self.broken = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        self.zero_gradient = torch.zeros_like(self.broken)

    def note(self, runs: Runs, broken: Tensor) -> None:
        """Note the best points of ``runs``, and the adversarial ones of those that have ``broken`` (n,) the sample."""
        self.point[runs.slot], self.loss[runs.slot] = runs.best, runs.best_loss
        self.adversarial[runs.slot] = runs.adversarial
        self.broken[runs.slot] = broken

    def merge(self, rows: Tensor, runs: Best) -> None:
        """Take over, for samples ``rows`` (n,), the first success and the highest loss of their ``runs``."""
        tries = len(runs.broken) // len(rows)
        first = runs.broken.view(-1, tries).int().argmax(1)
        highest = runs.loss.view(-1, tries).argmax(1)
        offset = torch.arange(len(rows), device=rows.device) * tries
        self.adversarial[rows] = runs.adversarial[offset + first]
        self.broken[rows] = runs.broken[offset + first]
        self.zero_gradient[rows] |= runs.zero_gradient.view(-1, tries).any(1)
        better = runs.loss[offset + highest] > self.loss[rows]
        self.point[rows[better]] = runs.point[(offset + highest)[better]]
        self.loss[rows[better]] = runs.loss[(offset + highest)[better]]

    def candidate(self) -> Tensor:
        """The adversarial points (m, ...), or else those of highest loss."""
        return torch.where(per_sample(self.broken, self.point), self.adversarial, self.point)
