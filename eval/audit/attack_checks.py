"""Checks of the attacks themselves: Carlini et al. 2019, and the indicators of failure of Pintor et al. 2022."""

from itertools import pairwise

import torch
from torch import Tensor, nn

from attacks.blackbox.square import square
from attacks.core.losses import get_loss, misclassified
from attacks.core.norms import get_norm
from attacks.core.rng import draws_for
from attacks.gradient.pgd import Step, pgd
from envs.sampling import spread
from eval.audit import settings
from eval.audit.attacks import SINGLE_STEP, SQUARE
from eval.audit.callables import first_line, models_own, own_errors
from eval.audit.findings import Finding
from eval.audit.record import AttackRecord, Family, logits_of
from eval.audit.settings import Budget
from eval.audit.wrappers import Differenced

_PINTOR = "Pintor et al. 2022"
_CARLINI = "Carlini et al. 2019"
_FACTORS = (0.5, 1.0, 2.0, 4.0)
_FEW = 8  # images, where every step asks the model many times
_DEAR_FACTORS = (1.0,)


def longer_runs(record: AttackRecord, view: nn.Module, climbed: list[nn.Module], budget: Budget) -> Finding:
    """Twice the steps and more restarts on the survivors, repeated while it gains: accuracy lost by the last time.

    Args:
        record: the record.
        view: the model, for Square, where that broke what gradients did not.
        climbed: the model's views whose gradients are followed.
        budget: of the audit.
    """
    lost = 0.0
    for turn in range(budget.rounds):
        before, seed = record.accuracy, record.seed + 1 + turn
        for which, model in enumerate(climbed):
            name = "PGD, margin, twice the steps and restarts" + (f", turn {turn + 1}" if turn else "")
            name, family = (f"{name}, surrogate", Family.TRANSFER) if which else (name, Family.GRADIENT)
            dear = isinstance(model, Differenced)
            steps, turns = (budget.difference_steps, 1) if dear else (budget.steps, budget.restarts)
            record.run(name, family, pgd, model, steps=2 * steps, restarts=turns, loss="margin", seed=seed)
        useful = next((outcome.first for outcome in record.outcomes if outcome.name == SQUARE), 0)
        if useful:
            name = f"{SQUARE}, again" + (f", turn {turn + 1}" if turn else "")
            record.run(name, Family.FREE, square, view, queries=2 * budget.square_queries, seed=seed)
        lost = before - record.accuracy
        if lost <= settings.CONVERGED_POINTS:
            break
    check, source = "accuracy lost to twice the steps, and restarts", f"{_CARLINI}: more changes nothing"
    return Finding.above(check, lost, settings.CONVERGED_POINTS, source, decisive=True)


def single_step(record: AttackRecord) -> Finding:
    """Images that a single step breaks and no iterative gradient attack does."""
    one = record.outcome(SINGLE_STEP)
    many = record.clean_wrong.clone()
    for outcome in record.outcomes:
        if outcome is not one and outcome.family in (Family.STANDARD, Family.GRADIENT, Family.REPAIRED):
            many |= outcome.broken
    share = None if one is None or one.error else float((one.broken & ~many).double().mean())
    check, note = "images broken by a single step alone", "" if one is None else one.error
    return Finding.above(
        check, share, 0.0, f"{_CARLINI}: iterative attacks never lose to a single step", note
    )


def growing_radius(record: AttackRecord, view: nn.Module, budget: Budget) -> list[Finding]:
    """Success against eps: monotone, and 100 % where every image is within reach."""
    rows = (~record.clean_wrong).nonzero().squeeze(1)
    dear = isinstance(view, Differenced)
    rows = rows[spread(len(rows), min(budget.radius_images, _FEW) if dear else budget.radius_images)]
    if not len(rows):
        return []
    x, y = record.x[rows], record.y[rows]
    most = get_norm(record.norm).diameter(x[0].numel())
    factors = _DEAR_FACTORS if dear else _FACTORS
    radii = dict.fromkeys([*(min(record.eps * factor, most) for factor in factors), most])
    failed: list[str] = []
    with own_errors(failed):
        rates = [_success(record, view, x, y, rows, radius, budget) for radius in radii]
    if failed:
        return [Finding("success of an unbounded attack", None, source=_CARLINI, note=failed[0])]
    drop = max(earlier - later for earlier, later in pairwise(rates))
    curve = ", ".join(f"{rate:.2f} at {radius:.3g}" for radius, rate in zip(radii, rates, strict=True))
    return [
        Finding.above(
            "largest drop of success as eps grows",
            max(drop, 0.0),
            settings.CONVERGED_POINTS,
            f"{_CARLINI}: success grows with eps",
            curve,
        ),
        Finding(
            "success of an unbounded attack",
            rates[-1],
            settings.UNBOUNDED_SUCCESS,
            rates[-1] < settings.UNBOUNDED_SUCCESS,
            f"{_CARLINI}; Pintor et al. 2022, unconstrained failure",
            decisive=True,
        ),
    ]


def _success(
    record: AttackRecord, view: nn.Module, x: Tensor, y: Tensor, rows: Tensor, eps: float, budget: Budget
) -> float:
    dear = isinstance(view, Differenced)
    result = pgd(
        view,
        x,
        y,
        norm=record.norm,
        eps=eps,
        steps=budget.difference_steps if dear else budget.steps,
        loss="margin",
        restarts=1 if dear else 2,
        seed=record.seed,
        sample_ids=rows,
    )
    return float(record.wrong(result.adversarial, y).double().mean())


class _Path:
    """What happened along the attack's path, over all its batches."""

    def __init__(self, y: Tensor, steps: int) -> None:
        self.y = y
        self.zero = torch.zeros(len(y), dtype=torch.bool, device=y.device)
        self.success = self.zero.clone()
        self.loss = torch.zeros(steps, len(y), device=y.device)

    def __call__(self, step: Step) -> None:
        self.zero[step.rows] |= (step.grad == 0).flatten(1).all(1)
        self.success[step.rows] |= misclassified(step.logits, self.y[step.rows])
        self.loss[step.index, step.rows] = step.loss.to(self.loss.dtype)


def attack_indicators(record: AttackRecord, raw: nn.Module, steps: int, loss: str = "ce") -> list[Finding]:
    """Run the standard attack to its last step on every image and read the indicators off its path.

    The sixth, unconstrained failure, is the unbounded attack of `growing_radius`.
    """
    rows = torch.arange(len(record.x), device=record.x.device)
    path = _Path(record.y, steps)
    try:
        result = pgd(
            raw,
            record.x,
            record.y,
            norm=record.norm,
            eps=record.eps,
            steps=steps,
            loss=loss,
            keep="last",
            seed=record.seed,
            sample_ids=rows,
            on_step=path,
        )
    except Exception as error:
        if not models_own(error):
            raise
        note = first_line(error)
        return [Finding("unavailable gradients", 1.0, 0.0, True, f"{_PINTOR}, indicator 1", note)]
    last = misclassified(logits_of(raw, result.adversarial), record.y)
    transferred = result.success & ~record.wrong(result.adversarial, record.y)
    return [
        _indicator("unavailable gradients: a zero gradient on the path", path.zero, 1),
        _indicator("unstable predictions under noise of 8/255", unstable(raw, record), 2),
        _indicator("silent success: adversarial on the path, not at its end", path.success & ~last, 3),
        _indicator("incomplete optimisation: the loss still rises", incomplete(path.loss), 4),
        _indicator("transfer failure: adversarial for the attack, not for the model", transferred, 5),
    ]


def _indicator(check: str, holds: Tensor, number: int) -> Finding:
    share = float(holds.double().mean())
    return Finding.above(check, share, settings.PINTOR_SHARE, f"{_PINTOR}, indicator {number}")


def unstable(model: nn.Module, record: AttackRecord) -> Tensor:
    """bool (N,): the margin changes by more than 10 % on average over 100 points of radius 8/255."""
    measure = get_loss("margin")
    stream = draws_for(record.seed, torch.arange(len(record.x), device=record.x.device)).fork(7)
    here = measure(logits_of(model, record.x), record.y, None)
    change = torch.zeros_like(here)
    for draw in range(settings.PINTOR_DRAWS):
        noise = (2 * stream.fork(draw).uniform(record.x.shape[1:]) - 1) * settings.PINTOR_RADIUS
        there = measure(logits_of(model, (record.x + noise).clamp(0, 1)), record.y, None)
        change += (there - here).abs()
    mean = change / settings.PINTOR_DRAWS
    return mean / here.abs().clamp_min(1e-12) > settings.PINTOR_UNSTABLE


def incomplete(loss: Tensor) -> Tensor:
    """bool (N,): of the way from least to most loss so far, over 5 % were made in the last 10 of the steps (T, N)."""
    best = loss.cummax(0).values
    low, high = best[0], best[-1]
    before = best[-min(settings.PINTOR_LAST_STEPS, len(best))]
    return (high - before) / (high - low).clamp_min(1e-12) > settings.PINTOR_INCOMPLETE
