"""The attacks of an audit, family by family; each function adds to the record."""

import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from agents.common.protocols import CLEVERHANS_BATCH
from attacks.blackbox.rays import rays
from attacks.blackbox.spsa import spsa
from attacks.blackbox.square import square
from attacks.core.norms import get_norm
from attacks.core.rng import draws_for
from attacks.gradient.apgd import apgd, apgd_targeted
from attacks.gradient.fgsm import fgsm
from attacks.gradient.pgd import pgd
from eval.audit.callables import own_errors
from eval.audit.distilled_surrogate import Surrogate
from eval.audit.record import AttackRecord, Family, logits_of
from eval.audit.settings import Budget
from eval.audit.straight_through import StraightThrough
from eval.audit.wrappers import BackwardThrough, Differenced, LabelVotes, Negated, Rescaled, Smoothed

PGD_CE = "PGD, cross-entropy"
PGD_FLOORED = "PGD, cross-entropy, cleverhans"
APGD_CE = "APGD, cross-entropy"
SEEN_CE = "PGD, cross-entropy, view"
SINGLE_STEP = "FGSM"
PGD_MARGIN = "PGD, margin"
# Losses that saturation cannot silence, each on the engine and budget of PGD_CE.
IMMUNE = (PGD_MARGIN, "PGD, DLR", "PGD, MIFPE", "PGD, rescaled cross-entropy")
# Noise per pixel (ours): one grey level, under which gradients are local, and 13, which see past small steps.
SMOOTHING = (1 / 255, 0.05)
_SMOOTHING_DRAWS = 8
_VOTES = 15
SQUARE = "Square"
STRAIGHT = "straight-through"
_AGREEMENT = 0.9  # share of the surrogate's own adversarial images that the model sees as it does (ours)
_TYPICAL_GAP = 5.0  # of the two largest logits, to which the rescaled ones are brought


def claimed(record: AttackRecord, raw: nn.Module, budget: Budget) -> None:
    """Attack the model as it is by what most papers report."""
    rows = torch.arange(len(record.x), device=record.x.device)
    record.run(PGD_CE, Family.STANDARD, pgd, raw, rows, steps=budget.steps)


def standard_attacks(record: AttackRecord, raw: nn.Module, budget: Budget) -> None:
    """Attack the model as it is by other usual attacks: no repair, all images."""
    rows = torch.arange(len(record.x), device=record.x.device)
    run = partial(record.run, family=Family.STANDARD, model=raw, rows=rows)
    run(SINGLE_STEP, attack=fgsm)
    if record.norm != "L1":
        options: dict[str, Any] = {"protocol": "cleverhans", "averaged_over": CLEVERHANS_BATCH}
        run(PGD_FLOORED, attack=pgd, steps=budget.steps, **options)
    run(APGD_CE, attack=apgd, steps=budget.steps)


def gradient_attacks(record: AttackRecord, raw: nn.Module, view: nn.Module, budget: Budget) -> None:
    """Attack the view by its own gradients: four losses on one engine, then targeted APGD on the survivors."""
    rows = torch.arange(len(record.x), device=record.x.device)
    if view is not raw:
        record.run(SEEN_CE, Family.GRADIENT, pgd, view, rows, steps=budget.steps)
    for name, loss in zip(IMMUNE, ("margin", "dlr", "mifpe"), strict=False):
        record.run(name, Family.GRADIENT, pgd, view, rows, steps=budget.steps, loss=loss)
    rescaled = Rescaled(view, _logit_gap(view, record.x) / _TYPICAL_GAP)
    record.run(IMMUNE[-1], Family.GRADIENT, pgd, rescaled, rows, steps=budget.steps)
    targeted(record, view, budget, Family.GRADIENT, "APGD, targeted DLR")


def targeted(record: AttackRecord, view: nn.Module, budget: Budget, family: Family, name: str) -> None:
    """Run APGD towards each of the best wrong classes, on the survivors."""
    classes = logits_of(view, record.x[:2]).shape[1]
    loss = "dlr" if classes >= 4 else "margin"  # the targeted ratio needs four classes
    record.run(
        name,
        family,
        apgd_targeted,
        view,
        steps=budget.steps,
        num_targets=min(budget.targets, classes - 1),
        loss=loss,
    )


def _logit_gap(view: nn.Module, x: Tensor) -> float:
    top = logits_of(view, x).topk(2, dim=1).values
    return max(float((top[:, 0] - top[:, 1]).nanmedian().nan_to_num(_TYPICAL_GAP)), 1e-12)


def repaired_attacks(
    record: AttackRecord, view: nn.Module, through: nn.Module | None, budget: Budget, misleading: bool
) -> None:
    """Attack survivors by gradients of another origin.

    Args:
        record: the record.
        view: the model.
        through: the view with straight-through gradients, where that changes anything.
        budget: what to spend.
        misleading: gradients do not describe the function, so that turned round they may.
    """
    run = partial(record.run, family=Family.REPAIRED, attack=pgd)
    if through is not None:
        for loss in ("margin", "mifpe"):
            run(f"{STRAIGHT} PGD, {loss}", model=through, steps=budget.steps, loss=loss, restarts=2)
        targeted(record, through, budget, Family.REPAIRED, f"{STRAIGHT} APGD, targeted DLR")
    if misleading:
        run("PGD, gradient turned round", model=Negated(view), steps=budget.steps, loss="margin", restarts=2)
    for sigma in SMOOTHING:
        smoothed = Smoothed(view, sigma, _SMOOTHING_DRAWS)
        name = f"smoothed-gradient PGD, noise {sigma:.3f}"
        run(name, model=smoothed, steps=budget.steps // 2, loss="margin")


def straight_through_changes(raw: nn.Module, x: Tensor) -> tuple[bool, str]:
    """Return whether flat operations lie on the way from image to logits, and which."""
    view = StraightThrough(raw)
    with torch.enable_grad():
        failed: list[str] = []
        with own_errors(failed):
            leaf = x[:2].detach().requires_grad_()
            logits = view(leaf)
            if logits.requires_grad:  # a backward pass that fails is no repair
                torch.autograd.grad(logits.sum(), leaf, allow_unused=True)
    if failed:
        return False, failed[0]
    return bool(view.replaced), ", ".join(sorted(view.replaced))


def free_attacks(record: AttackRecord, view: nn.Module, budget: Budget) -> None:
    """Attack survivors without gradients: random points, Square, SPSA, labels alone."""
    random_points(record, budget.random_points)
    record.run(SQUARE, Family.FREE, square, view, queries=budget.square_queries)
    record.run("SPSA", Family.FREE, spsa, view, queries=budget.spsa_queries)
    label_attack(record, view, budget.label_queries)


def difference_attacks(
    record: AttackRecord, view: nn.Module, budget: Budget, misleading: bool, constant: bool = False
) -> None:
    """Attack survivors along finite differences.

    Args:
        record: the record.
        view: the model.
        budget: what to spend.
        misleading: gradients cannot be trusted, so that more directions are worth their passes.
        constant: outputs are piecewise constant, so that small differences are zero and left out.
    """
    directions = budget.directions if misleading else budget.directions // 4
    for radius in SMOOTHING[constant:]:
        differenced = Differenced(view, radius, directions)
        name = f"finite-difference PGD, radius {radius:.3f}"
        record.run(name, Family.FREE, pgd, differenced, steps=budget.difference_steps, loss="margin")


def label_attack(record: AttackRecord, view: nn.Module, queries: int) -> None:
    """Attack survivors by labels alone: RayS at Linf, elsewhere Square on the votes of noisy copies."""
    if record.norm == "Linf":
        record.run("RayS, labels alone", Family.FREE, rays, view, queries=queries)
        return
    votes = LabelVotes(view, SMOOTHING[-1], _VOTES)
    name = "Square, labels alone"
    record.run(name, Family.FREE, square, votes, queries=max(1, queries // (1 + _VOTES)))


def random_points(record: AttackRecord, count: int) -> None:
    """Try ``count`` points of each survivor's ball, uniform (Carlini et al. 2019)."""
    start, rows = time.perf_counter(), record.survivors
    stream = draws_for(record.seed, rows)
    measure = get_norm(record.norm)
    x, y = record.x[rows], record.y[rows]
    best, found = x.clone(), torch.zeros(len(rows), dtype=torch.bool, device=x.device)
    radius = x.new_full((len(rows),), record.eps)
    for draw in range(count):
        open_rows = (~found).nonzero().squeeze(1)
        if not len(open_rows):
            break
        noise = measure.random(stream[open_rows].fork(draw), x.shape[1:], radius[open_rows])
        points = measure.confine(x[open_rows] + noise, x[open_rows], radius[open_rows])
        wrong = logits_of(record.judge, points).argmax(1) != y[open_rows]
        best[open_rows[wrong]], found[open_rows[wrong]] = points[wrong], True
    record.add(f"{count} random points", Family.FREE, rows, best, found, time.perf_counter() - start)


def given_surrogates(
    record: AttackRecord, view: nn.Module, surrogates: Mapping[str, nn.Module], budget: Budget
) -> None:
    """Attack survivors by the gradients of given models; every iterate is shown to the audited one."""
    for name, surrogate in surrogates.items():
        crossed = BackwardThrough(view, surrogate)
        for loss in ("ce", "margin"):
            title = f"transfer from {name}, {loss}"
            record.run(title, Family.TRANSFER, pgd, crossed, steps=budget.steps, loss=loss)


def distilled_attacks(
    record: AttackRecord, view: nn.Module, budget: Budget, misleading: bool
) -> list[nn.Module]:
    """Attack survivors by the gradients of a surrogate distilled here; return the view of it that broke anything.

    Every iterate is shown to the audited model, so a path that crosses its errors counts. The surrogate learns what
    the model says where it was itself attacked, and attacks again, while it gains or, where gradients are
    ``misleading``, does not agree yet; then differences are taken along its gradient as well.
    """
    if not len(record.survivors):
        return []
    x, y = record.x, record.y
    surrogate = Surrogate(view, x, y, record.points[record.broken], record.norm, record.eps, record.seed)
    crossed, start = BackwardThrough(view, surrogate.network), len(record.survivors)
    for turn in range(budget.distillation_rounds):
        before = record.survivors
        surrogate.learn(budget.distillation_steps)
        name = f"transfer from distilled surrogate, turn {turn + 1}"
        record.run(
            name,
            Family.TRANSFER,
            pgd,
            crossed,
            steps=budget.steps,
            loss="margin",
            restarts=2,
            seed=record.seed + turn,
        )
        rows = record.survivors
        if not len(rows):
            break
        agrees = surrogate.agreement(rows, turn) > _AGREEMENT
        if len(rows) == len(before) and (agrees or not misleading):
            break
    if misleading and len(record.survivors):
        guided = Differenced(view, SMOOTHING[0], budget.directions // 4, surrogate.network)
        name = "finite-difference PGD, along the surrogate's gradient"
        record.run(name, Family.FREE, pgd, guided, steps=budget.steps, loss="margin")
    return [crossed] if len(record.survivors) < start else []


def second_try(record: AttackRecord, view: nn.Module, budget: Budget, rows: Tensor) -> None:
    """Give the gradient attacks a longer try at images that only others broke: did they fail, or just stop early?"""
    steps = 3 * budget.steps
    run = partial(record.run, family=Family.GRADIENT, model=view, rows=rows, steps=steps, seed=1)
    run("PGD, margin, longer", attack=pgd, loss="margin", restarts=3)
    run("PGD, MIFPE, longer", attack=pgd, loss="mifpe", restarts=3)
    classes = logits_of(view, record.x[:2]).shape[1]
    targets, loss = min(budget.targets, classes - 1), "dlr" if classes >= 4 else "margin"
    run("APGD, targeted, longer", attack=apgd_targeted, num_targets=targets, loss=loss)
