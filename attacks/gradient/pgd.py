"""Projected gradient descent: ascend the loss in small steps inside ball and [0, 1], under one of two protocols.

"normalized": each sample's own gradient; steps of one length (sign at Linf, unit length at L2, largest gradients first
at L1); a start uniform in the ball. "cleverhans", for results published with that library: the gradient of the loss
*averaged* over the batch; L2 steps of grad / sqrt(max(1e-12, sum grad^2)), which shrink where the gradient vanishes; a
start uniform per pixel in +-eps, then projected; and clipping to [0, 1] before the projection as well as after it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from attacks.core import entry
from attacks.core.batching import Batches, Rows
from attacks.core.errors import AttackError, unknown_name
from attacks.core.inputs import Problem, validate_inputs
from attacks.core.losses import get_loss, misclassified
from attacks.core.model import CountedModel, Model
from attacks.core.model_state import fast_layout
from attacks.core.norms import per_sample
from attacks.core.recording import replayed
from attacks.core.result import AttackResult, finish
from attacks.core.rng import Draws
from attacks.gradient.target_order import Order, by_logit

PROTOCOLS = ("normalized", "cleverhans")
# cleverhans divides an L2 step by sqrt(max(1e-12, sum grad^2)): a gradient shorter than this gives a shorter step.
STEP_FLOOR = 1e-6
_ODI_STEPS = 2
_WAVE = 10  # points that are kept until the best of them is chosen


@dataclass(frozen=True)
class Step:
    """What ``on_step`` is shown before each step: the gradient at one iterate of some samples.

    Attributes:
        restart, index: of the step, both from 0.
        rows: the samples' positions (n,) in the attacked images; all of them with ``early_stop=False`` and one batch.
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


@entry.attack
def pgd(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    norm: str,
    eps: float | Tensor,
    steps: int = 100,
    step_size: float | Tensor | None = None,
    loss: str = "ce",
    restarts: int = 1,
    random_start: bool | Literal["odi"] = True,
    protocol: Literal["normalized", "cleverhans"] = "normalized",
    averaged_over: int | None = None,
    box: bool = True,
    labels: Literal["true", "predicted"] = "true",
    targets: Tensor | None = None,
    keep: Literal["best", "loss", "last"] = "best",
    early_stop: bool = True,
    eot_samples: int = 1,
    batch_size: int | None = None,
    seed: int = 0,
    sample_ids: Tensor | None = None,
    on_step: Callable[[Step], None] | None = None,
) -> AttackResult:
    """Projected gradient descent (Madry et al. 2018); the module's text tells its two protocols apart.

    Args:
        model, x, y, norm, eps, batch_size, seed, sample_ids: see `attacks`; no L1 under cleverhans.
        steps: gradient steps per restart.
        step_size: length of a step, for all or (N,); default eps * max(1/8, 2.5 / steps).
        loss: what is raised: "ce", "margin", "dlr" or "mifpe".
        restarts: independent starts; later ones attack the samples that are still unbroken.
        random_start: False starts at ``x``; "odi" at a diverse output (Tashiro et al. 2020).
        protocol: "normalized" or "cleverhans".
        averaged_over: batch size over which cleverhans averages its loss, however the work is split; default N.
        box: False leaves out the clipping to [0, 1], as cleverhans does with ``clip_min=clip_max=None``; not at L1.
            Points may lie outside, so that ``success`` says nothing about the usual threat model.
        labels: "predicted" moves away from the model's own clean predictions; ``y`` still judges success.
        targets: classes (N,) to reach, where a sample is done; any misclassification still is a success.
        keep: "best" returns a misclassified iterate if there was one, else that of highest loss; "loss" that of
            highest loss, "last" the last one, as cleverhans does. With these two all samples take all steps.
        early_stop: broken samples leave (with ``keep="best"``); False goes on to raise their loss.
        eot_samples: gradients are averaged over this many passes, for models with random outputs.
        on_step: called with a `Step` before every step.

    Returns:
        The result, traced with "shortened" (N,), the share of a sample's steps that cleverhans' floor shortens (at
        Linf and L1: whose gradient is 0), and "loss" (N,) of ``adversarial``; without box "left_box" (N,) bool.
    """
    problem = validate_inputs(x, y, norm=norm, eps=eps, targets=targets, sample_ids=sample_ids)
    cleverhans = _check_choices(norm, box, protocol=protocol, labels=labels, keep=keep)
    options: dict[str, Any] = {"random_start": random_start, "batch_size": batch_size, "on_step": on_step}
    options |= {"cleverhans": cleverhans, "averaged_over": averaged_over, "eot_samples": eot_samples}
    options |= {"predicted_labels": labels == "predicted", "keep": keep, "early_stop": early_stop}
    settings = Settings(loss, steps, step_size, restarts, **options)
    return run_pgd(model, replace(problem, box=box), seed, settings)


@dataclass(frozen=True)
class Settings:
    """The arguments of `pgd` that its loop needs; see there.

    With ``num_targets`` > 0 restart r aims at the class that ranks r (modulo this) among the wrong ones by ``order``,
    and any misclassification counts.
    """

    loss: str
    steps: int
    step_size: float | Tensor | None
    restarts: int
    random_start: bool | Literal["odi"] = True
    batch_size: int | None = None
    cleverhans: bool = False
    averaged_over: int | None = None
    predicted_labels: bool = False
    keep: Literal["best", "loss", "last"] = "best"
    early_stop: bool = True
    eot_samples: int = 1
    on_step: Callable[[Step], None] | None = None
    num_targets: int = 0
    order: Order = by_logit


def run_pgd(model: Model, problem: Problem, seed: int, settings: Settings) -> AttackResult:
    """The loop of `pgd` on validated inputs."""
    x, y, keep, steps = problem.x, problem.y, settings.keep, settings.steps
    objective, length = get_loss(settings.loss), _step_lengths(settings.step_size, problem, steps)
    counted = CountedModel(model, problem, samples=settings.eot_samples)
    batches = Batches(x, settings.batch_size)
    leave = settings.early_stop and keep == "best"
    with fast_layout(model, x):
        clean = counted.clean_logits(batches)
        aims = settings.num_targets
        ranked = settings.order(counted, clean, aims) if aims else None
        goals = problem.targets if ranked is None else ranked[:, 0]
        states = _States(problem, clean.argmax(1) if settings.predicted_labels else y, goals, length)
        if keep != "last":
            states.loss = objective(clean, states.labels, goals).to(x.dtype)
            states.reached = _reaches(problem, clean, keep)
        rows = batches.rows
        for restart in range(settings.restarts):
            states.goals = goals if ranked is None else ranked[:, restart % ranked.shape[1]]
            rows = rows[~states.reached[rows]] if settings.early_stop else rows
            batches.map(partial(_start, counted, states, settings, seed, restart), rows)
            left = rows
            for stretch in _stretches(steps) if leave else [range(steps)]:
                batches.map(partial(_take_steps, counted, states, settings, restart, stretch), left)
                left = left[~states.reached[left]] if leave else left
    trace = {"shortened": states.shortened / states.steps_taken.clamp_min(1), "loss": states.loss}
    wrong = misclassified(clean, y) if keep == "best" else None
    return finish(counted, problem, states.x, clean_wrong=wrong, batches=batches, trace=trace)


class _States(Rows):
    """Where each sample is, and its best iterate: one that reached the goal before one that did not, then by loss."""

    def __init__(self, problem: Problem, labels: Tensor, goals: Tensor | None, length: Tensor) -> None:
        self.labels, self.goals, self.length = labels, goals, length
        self.x, self.point = problem.x.clone(), problem.x.clone()
        self.loss = torch.full_like(problem.eps, -torch.inf)
        self.reached = torch.zeros_like(problem.y, dtype=torch.bool)
        self.shortened, self.steps_taken = torch.zeros_like(problem.eps), torch.zeros_like(problem.eps)

    def consider(self, part: Problem, seen: list[tuple[Tensor, Tensor, Tensor]], keep: str) -> None:
        """Keep the best of the points ``seen`` since the last time, with losses and logits; empty the list."""
        points, losses, logits = zip(*seen, strict=True)
        seen.clear()
        loss = torch.stack([self.loss, *(one.to(self.loss.dtype) for one in losses)])
        reached = torch.cat([self.reached[None], _reaches(part, torch.stack(logits), keep)])
        self.reached = reached.any(0)
        # What has not reached the goal counts where nothing has; NaN as the least.
        least = torch.finfo(loss.dtype).min
        rank = loss.nan_to_num(least, torch.inf, least).masked_fill_(reached != self.reached, -torch.inf)
        best = rank.argmax(0, keepdim=True)
        self.loss = loss.gather(0, best)[0]
        self.x = torch.stack([self.x, *points])[best[0], torch.arange(len(loss[0]), device=loss.device)]

    def write(self, rows: Tensor, part: _States) -> None:
        """Put what became of the samples ``rows`` back."""
        for name in ("x", "point", "loss", "reached", "shortened", "steps_taken"):
            getattr(self, name)[rows] = getattr(part, name)


def _take_steps(
    counted: CountedModel, states: _States, settings: Settings, restart: int, stretch: range, rows: Tensor
) -> None:
    """Take the steps of a ``stretch``; the state is written at the end alone, for memory may run out before."""
    part, state = counted.problem[rows], states.taken(rows)
    objective, keep = get_loss(settings.loss), settings.keep
    along, averaged_over = (state.labels, state.goals), settings.averaged_over or len(counted.problem)
    scale, images = (1 / averaged_over, 1) if settings.cleverhans else (1.0, averaged_over)
    floor = STEP_FLOOR * images if part.norm.name == "L2" else 0  # of cleverhans; else where gradients are 0
    move = _stepper(part, state.length, settings.cleverhans)
    lengths, seen = list[Tensor](), list[tuple[Tensor, Tensor, Tensor]]()

    def step(point: Tensor) -> tuple[Tensor, ...]:
        grad, value, logits = counted.gradient(point, objective, rows, along, scale)
        return move(point, grad), grad, part.norm.length(grad), value, logits

    take = replayed(step, counted, len(stretch))
    for index in stretch:
        moved, grad, length, value, logits = take(state.point)
        if settings.on_step:
            settings.on_step(Step(restart, index, rows, state.point, grad, value, logits))
        lengths.append(length)
        if keep != "last":
            seen.append((state.point, value, logits))
        if len(seen) == _WAVE:
            state.consider(part, seen, keep)
        state.point = moved
    if stretch.stop == settings.steps:
        logits = counted.logits(state.point, rows)
        seen.append((state.point, objective(logits, *along), logits))
    if seen:
        state.consider(part, seen, keep)
    state.shortened += (torch.stack(lengths) <= floor).sum(0)
    state.steps_taken += len(stretch)
    states.write(rows, state)


def _stretches(steps: int) -> Iterator[range]:
    """Groups of steps between which broken samples leave: single steps, then 25 % longer each time.

    This keeps batches full and a GPU from waiting, for at most a quarter more steps of a sample than it needed.
    """
    first = 0
    while first < steps:
        yield range(first, min(steps, first + 1 + first // 4))
        first += 1 + first // 4


def _start(
    counted: CountedModel, states: _States, settings: Settings, seed: int, restart: int, rows: Tensor
) -> None:
    """Put the samples ``rows`` (n,) where they start."""
    part = counted.problem[rows]
    x_adv = part.x
    if settings.random_start:
        draws, shape = part.draws(seed).fork(restart), tuple(part.x.shape[1:])
        if settings.cleverhans:
            uniform = draws.uniform(shape).to(part.x.dtype)
            delta = (2 * uniform - 1) * per_sample(part.eps, uniform)
        else:
            delta = part.norm.random(draws, shape, part.eps)
        x_adv = part.norm.within(part.x, part.eps, part.box)(part.x + delta)
        if settings.random_start == "odi":
            x_adv = _diversify(counted, x_adv, rows, part, draws)
    states.point[rows] = x_adv


def _diversify(counted: CountedModel, x_adv: Tensor, rows: Tensor, part: Problem, draws: Draws) -> Tensor:
    """Output-diversified initialisation (Tashiro et al. 2020): raise a random mix of the logits for two steps."""

    def mixed(logits: Tensor) -> Tensor:
        weights = 2 * draws.fork(0).uniform((logits.shape[1],)).to(logits.dtype) - 1
        return (weights * logits).sum(1)

    take = _stepper(part, part.eps, cleverhans=False)
    for _ in range(_ODI_STEPS):
        x_adv = take(x_adv, counted.gradient(x_adv, mixed, rows).grad)
    return x_adv


def _stepper(part: Problem, length: Tensor, cleverhans: bool) -> Callable[[Tensor, Tensor], Tensor]:
    """The step from points (n, ...) along gradients there, of these lengths (n,), then into ball and box."""
    norm, confine = part.norm, part.norm.within(part.x, part.eps, part.box)
    if not cleverhans:
        return lambda x_adv, grad: confine(norm.ascend(x_adv, grad, length))

    def step(x_adv: Tensor, grad: Tensor) -> Tensor:
        # cleverhans clips to [0, 1] before the projection too; its sign step at Linf has no floor.
        if norm.name == "L2":
            direction = grad / per_sample(norm.length(grad).clamp_min(STEP_FLOOR), grad)
        else:
            direction = norm.step(grad)
        moved = torch.addcmul(x_adv, direction, per_sample(length, x_adv))
        return confine(moved.clamp_(0, 1) if part.box else moved)

    return step


def _reaches(part: Problem, logits: Tensor, keep: str) -> Tensor:
    """Whether logits (..., n, K) meet the goal: the target, or any wrong class; never where only the loss counts."""
    if keep == "loss":
        return torch.zeros_like(logits[..., 0], dtype=torch.bool)
    return misclassified(logits, part.y) if part.targets is None else logits.argmax(-1) == part.targets


def _step_lengths(step_size: float | Tensor | None, problem: Problem, steps: int) -> Tensor:
    """Step length per sample (N,); the default can reach any point of the ball."""
    if step_size is None:
        return problem.eps * max(1 / 8, 2.5 / steps)
    lengths = torch.as_tensor(step_size, dtype=problem.x.dtype, device=problem.x.device)
    if lengths.ndim > 1 or lengths.numel() not in (1, len(problem)) or not (lengths > 0).all():
        raise AttackError(f"step_size must be positive, one number or ({len(problem)},), got {step_size}")
    return lengths.expand(len(problem))


def _check_choices(norm: str, box: bool, **chosen: str) -> bool:
    """Whether the protocol is cleverhans'; an AttackError for what there is not."""
    valid = {"protocol": PROTOCOLS, "labels": ("true", "predicted"), "keep": ("best", "loss", "last")}
    for kind, value in chosen.items():
        if value not in valid[kind]:
            raise unknown_name(kind, value, valid[kind])
    if norm == "L1" and chosen["protocol"] == "cleverhans":
        raise AttackError("cleverhans has no PGD at L1; use protocol='normalized'")
    if norm == "L1" and not box:
        raise AttackError("box=False at L1: its steps are chosen by the room in [0, 1]; use Linf or L2")
    return chosen["protocol"] == "cleverhans"
