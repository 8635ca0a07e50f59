"""Sanity checks of an evaluation (Carlini et al. 2019): what holds whenever attacks do their work."""

from itertools import pairwise

from torch import Tensor, nn

from attacks.core.norms import get_norm
from attacks.gradient.pgd import pgd
from eval.audit import settings as thresholds
from eval.audit.attacks import SINGLE_STEP
from eval.audit.budget import Budget
from eval.audit.findings import Finding
from eval.audit.record import Arena, Family

_CARLINI = "Carlini et al. 2019"
_FACTORS = (0.5, 1.0, 2.0, 4.0)
_MOST_IMAGES = 64


def longer_runs(arena: Arena, view: nn.Module, budget: Budget) -> Finding:
    """Twice the steps and more restarts on the survivors: how many points of accuracy fall."""
    before = arena.accuracy
    arena.run(
        "PGD, margin, twice the steps and restarts",
        Family.GRADIENT,
        pgd,
        view,
        steps=2 * budget.steps,
        restarts=budget.restarts,
        loss="margin",
        seed=arena.seed + 1,
    )
    lost = before - arena.accuracy
    return Finding(
        "accuracy lost to twice the steps, and restarts",
        lost,
        thresholds.CONVERGED_POINTS,
        lost > thresholds.CONVERGED_POINTS,
        f"{_CARLINI}: more changes nothing",
    )


def single_step(arena: Arena) -> Finding:
    """Images that a single step breaks and no iterative gradient attack does."""
    one = arena.outcome(SINGLE_STEP)
    many = arena.clean_wrong.clone()
    for outcome in arena.outcomes:
        if outcome is not one and outcome.family in (Family.STANDARD, Family.GRADIENT, Family.REPAIRED):
            many |= outcome.broken
    share = None if one is None or one.error else float((one.broken & ~many).double().mean())
    return Finding(
        "images broken by a single step alone",
        share,
        0.0,
        bool(share),
        f"{_CARLINI}: iterative attacks never lose to a single step",
        "" if one is None else one.error,
    )


def growing_radius(arena: Arena, view: nn.Module, budget: Budget) -> list[Finding]:
    """Success against eps: monotone, and 100 % where every image is within reach."""
    rows = (~arena.clean_wrong).nonzero().squeeze(1)[:_MOST_IMAGES]
    if not len(rows):
        return []
    x, y = arena.x[rows], arena.y[rows]
    most = get_norm(arena.norm).diameter(x[0].numel())
    radii = dict.fromkeys([*(min(arena.eps * factor, most) for factor in _FACTORS), most])
    rates = [_success(arena, view, x, y, rows, radius, budget) for radius in radii]
    drop = max(earlier - later for earlier, later in pairwise(rates))
    curve = ", ".join(f"{rate:.2f} at {radius:.3g}" for radius, rate in zip(radii, rates, strict=True))
    return [
        Finding(
            "largest drop of success as eps grows",
            max(drop, 0.0),
            thresholds.CONVERGED_POINTS,
            drop > thresholds.CONVERGED_POINTS,
            f"{_CARLINI}: success grows with eps",
            curve,
        ),
        Finding(
            "success of an unbounded attack",
            rates[-1],
            thresholds.UNBOUNDED_SUCCESS,
            rates[-1] < thresholds.UNBOUNDED_SUCCESS,
            f"{_CARLINI}; Pintor et al. 2022, unconstrained failure",
        ),
    ]


def _success(
    arena: Arena, view: nn.Module, x: Tensor, y: Tensor, rows: Tensor, eps: float, budget: Budget
) -> float:
    result = pgd(
        view,
        x,
        y,
        norm=arena.norm,
        eps=eps,
        steps=budget.steps,
        loss="margin",
        restarts=2,
        seed=arena.seed,
        sample_ids=rows,
    )
    return float(arena.wrong(result.adversarial, y).double().mean())
