"""The attacks of an audit, family by family; each function adds to the record."""

import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
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
from eval.audit.record import AttackRecord, Family, logits_of
from eval.audit.settings import Budget
from eval.audit.wrappers import BackwardThrough, Differenced, LabelVotes, Negated, Rescaled, Smoothed

PGD_CE = "PGD, cross-entropy"
PGD_FLOORED = "PGD, cross-entropy, cleverhans"
APGD_CE = "APGD, cross-entropy"
SEEN_CE = "PGD, cross-entropy, view"
SINGLE_STEP = "FGSM"
# Losses that saturation cannot silence, each on the engine and budget of PGD_CE.
IMMUNE = ("PGD, margin", "PGD, DLR", "PGD, MIFPE", "PGD, rescaled cross-entropy")
# Noise per pixel (ours): one grey level, under which gradients are local, and 13, which see past small steps.
SMOOTHING = (1 / 255, 0.05)
_SMOOTHING_DRAWS = 8
_VOTES = 15
SQUARE = "Square"
STRAIGHT = "straight-through"
_AGREEMENT = 0.9  # share of the surrogate's own adversarial images that the model sees as it does (ours)
_TYPICAL_GAP = 5.0  # of the two largest logits, to which the rescaled ones are brought
# Of the surrogate's training.
_BATCH = 64
_COPIES = 12
_SPREAD = 2.0  # points are drawn from balls this many times as large, so that their edge is learnt too
_CLIP = 5.0  # standardised logits further below the largest say no more


def standard_attacks(record: AttackRecord, raw: nn.Module, budget: Budget) -> None:
    """Attack the model as it is by usual attacks beside PGD on the cross-entropy: no repair, all images."""
    run = partial(record.run, family=Family.STANDARD, model=raw, rows=record.rows)
    run(SINGLE_STEP, attack=fgsm)
    if record.norm != "L1":
        floored = partial(pgd, protocol="cleverhans", averaged_over=CLEVERHANS_BATCH)
        run(PGD_FLOORED, attack=floored, steps=budget.steps)
    run(APGD_CE, attack=apgd, steps=budget.steps)


def gradient_attacks(record: AttackRecord, raw: nn.Module, view: nn.Module, budget: Budget) -> None:
    """Attack the view by its own gradients: four losses on one engine, then targeted APGD on the survivors."""
    run = partial(record.run, family=Family.GRADIENT, attack=pgd, rows=record.rows, steps=budget.steps)
    if view is not raw:
        run(SEEN_CE, model=view)
    for name, loss in zip(IMMUNE, ("margin", "dlr", "mifpe"), strict=False):
        run(name, model=view, loss=loss)
    top = logits_of(view, record.x).topk(2, dim=1).values
    gap = max(float((top[:, 0] - top[:, 1]).nanmedian().nan_to_num(_TYPICAL_GAP)), 1e-12)
    run(IMMUNE[-1], model=Rescaled(view, gap / _TYPICAL_GAP))
    targeted(record, view, budget, Family.GRADIENT, "APGD, targeted DLR")


def targeted(
    record: AttackRecord, view: nn.Module, budget: Budget, family: Family, name: str, **more: Any
) -> None:
    """Run APGD towards each of the best wrong classes, by default on the survivors."""
    classes = logits_of(view, record.x[:2]).shape[1]
    loss = "dlr" if classes >= 4 else "margin"  # the targeted ratio needs four classes
    options: dict[str, Any] = {"steps": budget.steps, "loss": loss} | more
    record.run(name, family, apgd_targeted, view, num_targets=min(budget.targets, classes - 1), **options)


def repaired_attacks(
    record: AttackRecord, view: nn.Module, through: nn.Module | None, budget: Budget, turned: bool
) -> None:
    """Attack survivors by gradients of another origin.

    Those of ``through``, the view with straight-through gradients, where that changes anything; ``turned`` round, as
    they may then describe the function; and smoothed.
    """
    run = partial(record.run, family=Family.REPAIRED, attack=pgd)
    if through is not None:
        for loss in ("margin", "mifpe"):
            run(f"{STRAIGHT} PGD, {loss}", model=through, steps=budget.steps, loss=loss, restarts=2)
        targeted(record, through, budget, Family.REPAIRED, f"{STRAIGHT} APGD, targeted DLR")
    if turned:
        run("PGD, gradient turned round", model=Negated(view), steps=budget.steps, loss="margin", restarts=2)
    for sigma in SMOOTHING:
        smoothed = Smoothed(view, sigma, _SMOOTHING_DRAWS)
        name = f"smoothed-gradient PGD, noise {sigma:.3f}"
        run(name, model=smoothed, steps=budget.steps // 2, loss="margin")


def free_attacks(record: AttackRecord, view: nn.Module, budget: Budget) -> None:
    """Attack survivors without gradients: random points, Square, SPSA, labels alone."""
    random_points(record, budget.random_points)
    run = partial(record.run, family=Family.FREE)
    run(SQUARE, attack=square, model=view, queries=budget.square_queries)
    run("SPSA", attack=spsa, model=view, queries=budget.spsa_queries)
    if record.norm == "Linf":
        run("RayS, labels alone", attack=rays, model=view, queries=budget.label_queries)
    else:
        votes, queries = LabelVotes(view, SMOOTHING[-1], _VOTES), budget.label_queries // (1 + _VOTES)
        run("Square, labels alone", attack=square, model=votes, queries=max(1, queries))


def difference_attacks(
    record: AttackRecord, view: nn.Module, budget: Budget, misleading: bool, constant: bool = False
) -> None:
    """Attack survivors along finite differences.

    Where gradients are ``misleading``, more directions are worth their passes; where outputs are piecewise
    ``constant``, small differences are zero and left out.
    """
    directions = budget.directions if misleading else budget.directions // 4
    for radius in SMOOTHING[constant:]:
        differenced = Differenced(view, radius, directions)
        name = f"finite-difference PGD, radius {radius:.3f}"
        record.run(name, Family.FREE, pgd, differenced, steps=budget.difference_steps, loss="margin")


def random_points(record: AttackRecord, count: int) -> None:
    """Try ``count`` points of each survivor's ball, uniform (Carlini et al. 2019)."""
    start, rows = time.perf_counter(), record.survivors
    stream, measure = draws_for(record.seed, rows), get_norm(record.norm)
    x, y = record.x[rows], record.y[rows]
    best, found = x.clone(), torch.zeros(len(rows), dtype=torch.bool, device=x.device)
    radius = x.new_full((len(rows),), record.eps)
    for draw in range(count):
        left = (~found).nonzero().squeeze(1)
        if not len(left):
            break
        noise = measure.random(stream[left].fork(draw), x.shape[1:], radius[left])
        points = measure.confine(x[left] + noise, x[left], radius[left])
        wrong = logits_of(record.judge, points).argmax(1) != y[left]
        best[left[wrong]], found[left[wrong]] = points[wrong], True
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
    surrogate = Surrogate(view, record)
    crossed, start = BackwardThrough(view, surrogate.network), len(record.survivors)
    run = partial(record.run, steps=budget.steps, loss="margin")
    for turn in range(budget.distillation_rounds):
        before = record.survivors
        surrogate.learn(budget.distillation_steps)
        name, seed = f"transfer from distilled surrogate, turn {turn + 1}", record.seed + turn
        run(name, Family.TRANSFER, pgd, crossed, restarts=2, seed=seed)
        rows = record.survivors
        if not len(rows):
            break
        agrees = surrogate.agreement(rows, turn) > _AGREEMENT
        if len(rows) == len(before) and (agrees or not misleading):
            break
    if misleading and len(record.survivors):
        guided = Differenced(view, SMOOTHING[0], budget.directions // 4, surrogate.network)
        run("finite-difference PGD, along the surrogate's gradient", Family.FREE, pgd, guided)
    return [crossed] if len(record.survivors) < start else []


def second_try(record: AttackRecord, view: nn.Module, budget: Budget, rows: Tensor) -> None:
    """Give the gradient attacks a longer try at images that only others broke: did they fail, or just stop early?"""
    longer: dict[str, Any] = {"rows": rows, "steps": 3 * budget.steps, "seed": 1}
    for title, loss in (("margin", "margin"), ("MIFPE", "mifpe")):
        record.run(f"PGD, {title}, longer", Family.GRADIENT, pgd, view, loss=loss, restarts=3, **longer)
    targeted(record, view, budget, Family.GRADIENT, "APGD, targeted, longer", **longer)


class Surrogate:
    """A small network that learns to give the model's logits: differentiable whatever that is made of.

    Papernot et al. 2017: it learns from queries alone, here on the audited images, the balls around them, and the
    points where it was attacked itself, until both agree there. Only the outputs of ``model`` are used.
    """

    def __init__(self, model: nn.Module, record: AttackRecord) -> None:
        self.model, self.record = model, record
        self.generator = torch.Generator().manual_seed(record.seed)
        x, classes = record.x, logits_of(model, record.x[:2]).shape[1]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(record.seed)
            self.network = _network(x.shape[1], min(x.shape[2:]), classes).to(x.device)
        pool = torch.cat([x, record.points[record.broken]])
        self.pool = torch.cat([pool, *(self._around(pool, copy) for copy in range(_COPIES))])
        self.answers = self._ask(self.pool)
        gaps = self.answers - self.answers.amax(1, keepdim=True)
        self.scale = gaps.square().mean(1).sqrt().median().clamp_min(1e-12)

    def learn(self, steps: int) -> None:
        """Train for ``steps`` batches of 64 points."""
        optimizer = torch.optim.Adam(self.network.parameters(), lr=4e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        self.network.train()
        with torch.enable_grad():
            for _ in range(steps):
                rows = torch.randint(len(self.pool), (_BATCH,), generator=self.generator).to(self.pool.device)
                optimizer.zero_grad()
                self._loss(self.network(self.pool[rows]), self.answers[rows]).backward()
                optimizer.step()
                schedule.step()
        self.network.eval()

    def _loss(self, outputs: Tensor, answers: Tensor) -> Tensor:
        """Squared error of the gaps to the largest logit; where the model's are flat, only from above."""
        top = answers.argmax(1, keepdim=True)
        gaps = (answers - answers.gather(1, top)) / self.scale
        lowest = gaps.amin(1, keepdim=True)
        flat = (gaps == lowest) & ((gaps == lowest).sum(1, keepdim=True) > 1) & (lowest < 0)
        error = outputs - outputs.gather(1, top) - gaps.clamp_min(-_CLIP)
        error = torch.where(flat | (gaps < -_CLIP), error.clamp_min(0), error)
        return error.square().mean()

    def agreement(self, rows: Tensor, turn: int) -> float:
        """How often the model agrees where the surrogate is attacked, at the images ``rows``; learnt from next time."""
        record = self.record
        how = record.ball | {"seed": record.seed + turn, "sample_ids": rows}
        how |= {"steps": 15, "loss": "margin", "early_stop": turn % 2 == 0}
        attacked = pgd(self.network, record.x[rows], record.y[rows], **how).adversarial
        points = torch.cat([attacked, self._around(attacked, turn)])
        answers = self._ask(points)
        same = answers[: len(rows)].argmax(1) == logits_of(self.network, attacked).argmax(1)
        weight = max(1, len(self.pool) // (4 * len(points)))  # a fifth of what it learns from
        self.pool = torch.cat([self.pool, *[points] * weight])
        self.answers = torch.cat([self.answers, *[answers] * weight])
        return float(same.double().mean())

    def _ask(self, points: Tensor) -> Tensor:
        return logits_of(self.model, points).nan_to_num(0.0, 1e9, -1e9)

    def _around(self, centres: Tensor, copy: int) -> Tensor:
        """Points about the centres: along noise, coarse noise, or towards other images, by turns."""
        shape, x = list(centres.shape), self.record.x
        if copy % 3 == 1 and min(shape[2:]) >= 4:
            shape[2:] = [side // 3 + 1 for side in shape[2:]]
        noise = torch.rand(shape, generator=self.generator).to(centres) * 2 - 1
        if copy % 3 == 2:
            other = torch.randint(len(x), (len(centres),), generator=self.generator)
            noise = x[other.to(centres.device)] - centres
        elif noise.shape != centres.shape:
            noise = F.interpolate(noise, size=centres.shape[2:], mode="nearest")
        reach = _SPREAD * self.record.eps * torch.rand(len(centres), generator=self.generator).to(centres)
        length = get_norm(self.record.norm).length(noise).clamp_min(1e-12)
        return (centres + noise * (reach / length).view(-1, 1, 1, 1)).clamp(0, 1)


def _network(channels: int, side: int, classes: int) -> nn.Module:
    """Smooth activations, no batch statistics: gradients that exist everywhere."""
    large = side >= 16
    pooled = 7 if large else 4
    return nn.Sequential(
        nn.Conv2d(channels, 16, 3, padding=1),
        nn.SiLU(),
        nn.Conv2d(16, 32, 3, padding=1, stride=2 if large else 1),
        nn.SiLU(),
        nn.AdaptiveAvgPool2d(pooled),
        nn.Flatten(),
        nn.Linear(32 * pooled**2, 64),
        nn.SiLU(),
        nn.Linear(64, classes),
    )
