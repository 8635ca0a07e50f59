"""Indicators of attack failure (Pintor et al. 2022, arXiv 2106.09947): did the attack itself go wrong?"""

import torch
from torch import Tensor, nn

from attacks.core.errors import AttackError
from attacks.core.losses import get_loss, misclassified
from attacks.core.rng import draws_for
from attacks.gradient.pgd import pgd
from attacks.gradient.walk import Step
from eval.audit import settings as thresholds
from eval.audit.findings import Finding
from eval.audit.passes import logits_of
from eval.audit.record import Arena

_SOURCE = "Pintor et al. 2022"


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


def attack_indicators(arena: Arena, raw: nn.Module, steps: int, loss: str = "ce") -> list[Finding]:
    """Run the standard attack to its last step on every image and read the indicators off its path.

    The sixth, unconstrained failure, is the unbounded attack of `eval.audit.attack_checks`.
    """
    rows = torch.arange(len(arena.x), device=arena.x.device)
    path = _Path(arena.y, steps)
    try:
        result = pgd(
            raw,
            arena.x,
            arena.y,
            norm=arena.norm,
            eps=arena.eps,
            steps=steps,
            loss=loss,
            keep="last",
            seed=arena.seed,
            sample_ids=rows,
            on_step=path,
        )
    except (AttackError, RuntimeError, ValueError) as error:
        note = str(error).splitlines()[0]
        return [Finding("unavailable gradients", 1.0, 0.0, True, f"{_SOURCE}, indicator 1", note)]
    last = misclassified(logits_of(raw, result.adversarial), arena.y)
    transferred = result.success & ~arena.wrong(result.adversarial, arena.y)
    return [
        _indicator("unavailable gradients: a zero gradient on the path", path.zero, 1),
        _indicator("unstable predictions under noise of 8/255", unstable(raw, arena), 2),
        _indicator("silent success: adversarial on the path, not at its end", path.success & ~last, 3),
        _indicator("incomplete optimisation: the loss still rises", incomplete(path.loss), 4),
        _indicator("transfer failure: adversarial for the attack, not for the model", transferred, 5),
    ]


def _indicator(check: str, holds: Tensor, number: int) -> Finding:
    share = float(holds.double().mean())
    alarm = share > thresholds.PINTOR_SHARE
    return Finding(check, share, thresholds.PINTOR_SHARE, alarm, f"{_SOURCE}, indicator {number}")


def unstable(model: nn.Module, arena: Arena) -> Tensor:
    """bool (N,): the margin changes by more than 10 % on average over 100 points of radius 8/255."""
    measure = get_loss("margin")
    stream = draws_for(arena.seed, torch.arange(len(arena.x), device=arena.x.device)).fork(7)
    here = measure(logits_of(model, arena.x), arena.y, None)
    change = torch.zeros_like(here)
    for draw in range(thresholds.PINTOR_DRAWS):
        noise = (2 * stream.fork(draw).uniform(arena.x.shape[1:]) - 1) * thresholds.PINTOR_RADIUS
        there = measure(logits_of(model, (arena.x + noise).clamp(0, 1)), arena.y, None)
        change += (there - here).abs()
    mean = change / thresholds.PINTOR_DRAWS
    return mean / here.abs().clamp_min(1e-12) > thresholds.PINTOR_UNSTABLE


def incomplete(loss: Tensor) -> Tensor:
    """bool (N,): of the way from least to most loss so far, over 5 % were made in the last 10 of the steps (T, N)."""
    best = loss.cummax(0).values
    low, high = best[0], best[-1]
    before = best[-min(thresholds.PINTOR_LAST_STEPS, len(best))]
    return (high - before) / (high - low).clamp_min(1e-12) > thresholds.PINTOR_INCOMPLETE
