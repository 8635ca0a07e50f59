"""Auto-PGD (Croce and Hein 2020, arXiv 2003.01690): PGD with momentum and a step size that adapts itself.

Broken samples leave a run at once. A run's state is its sample's alone, so those that stay are not affected.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.core import entry
from attacks.core.batching import default_batch_size, ranked_targets, restart_groups, runs_of, samples_at_once
from attacks.core.inputs import Problem, at_least_one, validate_inputs
from attacks.core.losses import get_loss, misclassified
from attacks.core.memory_format import fast_layout
from attacks.core.model import CountedModel, Model, frozen
from attacks.core.norms import per_sample
from attacks.core.random_source import check_random, source_for
from attacks.core.result import AttackResult, finish, in_batches
from attacks.gradient.apgd_runs import Found, Run, climb
from attacks.gradient.apgd_steps import radii_schedule, steps_for

_STREAM = 1


@dataclass(frozen=True)
class Apgd:
    """APGD's options; calling it attacks one batch. See `apgd` and `apgd_targeted`.

    ``together`` begins all tries at once, for samples that withstood another attack.
    """

    loss: str = "ce"
    steps: int = 100
    restarts: int = 1
    num_targets: int = 0
    eot_samples: int = 1
    early_stop: bool = True
    random: str = "sample"
    together: bool = False

    def __call__(self, model: Model, problem: Problem, seed: int) -> AttackResult:
        """Attack ``problem`` in one batch; call inside `frozen`."""
        max_batch = None if self.random == "original" else default_batch_size(problem.x)
        return _Attack(
            self, CountedModel(model, problem, samples=self.eot_samples, max_batch=max_batch), seed
        ).run()


class _Attack:
    """One batch under attack."""

    def __init__(self, options: Apgd, counted: CountedModel, seed: int) -> None:
        self.options = options
        self.counted = counted
        self.problem = counted.problem
        self.source = source_for(options.random, seed, self.problem, _STREAM)
        self.loss = get_loss(options.loss)
        self.leave = options.early_stop and not self.source.original

    def run(self) -> AttackResult:
        """All tries, then the verification."""
        with nullcontext() if self.source.original else fast_layout(self.counted.model, self.problem.x):
            clean = self.counted.clean_logits()
            wrong = misclassified(clean, self.problem.y)
            self.goals = ranked_targets(clean, self.problem.y, self.options.num_targets)
            found = Found(self.problem.x)
            found.broken |= wrong
            tries = self.options.restarts * (self.goals.shape[1] if self.options.num_targets else 1)
            for wave in restart_groups(tries, self.source.original, self.options.together):
                rows = (~found.broken).nonzero().squeeze(1)
                count = samples_at_once(self.problem, len(wave), self.source.original)
                for part in rows.split(count) if len(rows) else ():
                    found.merge(part, self._lockstep(part, wave))
        candidate = torch.where(per_sample(found.broken, found.best), found.adversarial, found.best)
        trace = {"loss": found.best_loss, "zero_gradient": found.flat}
        return finish(self.counted, self.problem, candidate, clean_wrong=wrong, trace=trace)

    def _lockstep(self, rows: Tensor, wave: range) -> Found:
        """Some tries of the samples ``rows`` (n,) together, through all stages of the radius."""
        row, attempt = runs_of(rows, wave)
        goal = self.goals[row, attempt // self.options.restarts] if self.options.num_targets else None
        found = Found(self.problem.x[row])
        slot = torch.arange(len(row), device=row.device)
        point: Tensor | None = None
        for factor, iterations in radii_schedule(self.problem.norm.name, self.options.steps):
            here, original = row[slot], self.source.original
            steps = steps_for(self.problem, here, factor, original=original)
            ball = None if factor == 1 or original else steps_for(self.problem, here)
            start = steps.start(self.source, here, attempt[slot]) if point is None else point
            run = Run(self.problem, here, None if goal is None else goal[slot], steps, ball)
            run.slot, run.point = slot, steps.enter(start, self.source, here)
            judge = factor == 1 or ball is not None
            climb(self.counted, run, found, self.loss, iterations, judge=judge, leave=self.leave)
            slot = run.slot
            if not len(slot):
                break
            point = found.best[slot]
        return found


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
    random: str = "sample",
) -> AttackResult:
    """Auto-PGD, untargeted (Croce and Hein 2020; at L1 Croce and Hein 2021, through radii 3 eps, 2 eps and eps).

    Args:
        model: images (n, C, H, W) in [0, 1] to logits (n, K).
        x: images (N, C, H, W), floats in [0, 1].
        y: labels (N,) int64.
        norm: "Linf", "L2" or "L1".
        eps: radius in units of pixels, one for all or per sample (N,).
        loss: what is raised: "ce", "margin", "dlr" (3 classes or more) or "mifpe".
        steps: iterations per restart.
        restarts: independent starts; later ones attack the samples that are still unbroken.
        eot_samples: gradients and decisions are averaged over this many passes, for models with random outputs.
        early_stop: broken samples leave at once; False keeps their last misclassified iterate, as the original does.
        batch_size: the most images at once; None chooses. It changes no result (but see ``random``).
        seed: seeds the starts.
        sample_ids: integers (N,) that the random numbers of each sample hang on; default 0..N-1.
        random: "original" repeats the published implementation's draws, batch by batch, and its arithmetic, so that
            results compare bit by bit; it keeps broken samples, and its results depend on the batches.

    Returns:
        The result. ``adversarial`` is a misclassified point, or where there is none that of highest loss; the trace
        holds its "loss" (N,) and "zero_gradient" (N,): the gradient at a start was exactly zero.

    Raises:
        AttackError: wrong inputs, too few classes for the loss, or a model without gradients.
    """
    attack = Apgd(loss, steps, restarts, 0, eot_samples, early_stop, random)
    return _run(
        attack, model, validate_inputs(x, y, norm=norm, eps=eps, sample_ids=sample_ids), batch_size, seed
    )


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
    random: str = "sample",
) -> AttackResult:
    """Auto-PGD towards each of the ``num_targets`` best wrong classes in turn; any misclassification is a success.

    Arguments, result and errors are those of `apgd`, with the targeted losses ("dlr" needs 4 classes or more).
    """
    attack = Apgd(
        loss, steps, restarts, at_least_one("num_targets", num_targets), eot_samples, early_stop, random
    )
    return _run(
        attack, model, validate_inputs(x, y, norm=norm, eps=eps, sample_ids=sample_ids), batch_size, seed
    )


def _run(attack: Apgd, model: Model, problem: Problem, batch_size: int | None, seed: int) -> AttackResult:
    check_random(attack.random)
    for name in ("steps", "restarts", "eot_samples"):
        at_least_one(name, getattr(attack, name))
    with frozen(model):
        patient = attack.random == "sample"
        return in_batches(lambda batch: attack(model, batch, seed), problem, batch_size, patient)
