"""AutoAttack (Croce and Hein 2020): attacks in turn, each on what the others left, the pointwise worst case kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from attacks.autoattack.versions import Stage, stages_of
from attacks.checks import ModelReport, check_model
from attacks.core import entry
from attacks.core.batching import Batches, patient_batch_size
from attacks.core.errors import AttackError
from attacks.core.inputs import Problem, validate_inputs
from attacks.core.losses import dlr, margin
from attacks.core.model import Model, forward
from attacks.core.result import AttackResult

_FORMAT = 2
_CHECKED = 32
_SQUARE_SHARE = 0.002  # as in the published check
_ROWS = ("pending", "broken_by", "adversarial", "queries", "backwards", "scores")  # tensors of the state
_ALARMS = ("nan", "outside", "zero_gradient", "nonfinite_gradient")

State = dict[str, Any]


@dataclass(frozen=True, repr=False)
class AutoAttackResult(AttackResult):
    """The worst case over all stages.

    The trace holds per sample "broken_by" (N,), a position in ``stages`` or -1, and the "distance" (N,) of
    ``adversarial``, which is the clean image where nothing broke it.

    Attributes:
        stages: names in the order they ran, "clean" first.
        report: what was found odd about the model beforehand.
        warnings: what makes the outcome doubtful, one line each: the report's, and what the stages showed.
    """

    stages: tuple[str, ...] = ()
    report: ModelReport | None = None
    warnings: tuple[str, ...] = ()

    def broken_by(self) -> list[str | None]:
        """The stage that broke each sample, "clean" for a clean error, None for a survivor."""
        return [self.stages[place] if place >= 0 else None for place in self.trace["broken_by"].tolist()]

    def accuracies(self) -> dict[str, float]:
        """Accuracy after each stage, in order."""
        broken_by = self.trace["broken_by"]
        after = [(broken_by < 0) | (broken_by > place) for place in range(len(self.stages))]
        return {name: left.double().mean().item() for name, left in zip(self.stages, after, strict=True)}


@entry.attack
def autoattack(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    norm: str,
    eps: float | Tensor,
    version: str | Sequence[str] = "standard",
    batch_size: int | None = None,
    seed: int = 0,
    sample_ids: Tensor | None = None,
    state: State | None = None,
    on_progress: Callable[[State], None] | None = None,
) -> AutoAttackResult:
    """Run AutoAttack; every image's outcome is verified, and depends on neither batches nor neighbours.

    "standard" runs APGD-CE, APGD-T, FAB-T and Square with the published budgets; "plus" adds APGD-DLR and FAB and
    restarts; "rand" averages gradients over 20 passes, for models with random outputs; "fast" is our own, as strong as
    "standard" in our measurements, of which there is one at L1, on digits: one step, short APGD, successive halving
    over targets (at L1 half of APGD-T and FAB-T), and full attacks only on samples that came close or whose gradients
    may be masked. Broken samples leave at once.

    Args:
        model, x, y, norm, eps, batch_size, seed, sample_ids: see `attacks`.
        version: "standard", "plus", "rand", "fast", or a list of stages such as ["apgd-ce", "square"].
        state: goes on from what ``on_progress`` was last called with; all other arguments as before.
        on_progress: called after every batch of every stage with the state: plain values and tensors, which
            ``torch.save`` takes and ``torch.load(..., weights_only=True)`` gives back. Of interest in it: "stages",
            "stage" (its position), "pending" (rows still to be done in it) and "broken_by". Save or copy it before
            returning, for its tensors change later.

    Returns:
        The result, the same whether interrupted or not.

    Raises:
        AttackError: wrong inputs, an unusable model (see `check_model`), or a state of another run.
    """
    problem = validate_inputs(x, y, norm=norm, eps=eps, sample_ids=sample_ids)
    gradients = isinstance(version, str) or set(version) != {"square"}
    batches = Batches(problem.x, patient_batch_size(problem.x) if batch_size is None else batch_size)
    report = check_model(
        model, x, y, norm=norm, eps=eps, needs_gradient=gradients, images=min(_CHECKED, batches.size)
    )
    stages = stages_of(version, norm, report.classes)
    evaluation = _Evaluation(model, problem, stages, seed, batches)
    evaluation.identity |= {"version": str(version), "random": "sample"}  # as earlier versions wrote it
    if state is not None:
        evaluation.restore(state)
    evaluation.run(on_progress)
    return evaluation.result(report)


class _Evaluation:
    """The state of all samples while stages go over them."""

    def __init__(
        self, model: Model, problem: Problem, stages: tuple[Stage, ...], seed: int, batches: Batches
    ) -> None:
        self.model, self.problem, self.stages, self.seed = model, problem, stages, seed
        self.batches, self.stage, self.pending = batches, 0, batches.rows
        self.broken_by = torch.full_like(problem.y, -1)
        self.adversarial = problem.x.clone()
        self.queries, self.backwards = torch.zeros_like(problem.y), torch.zeros_like(problem.y)
        self.graded = any(stage.wants for stage in stages)
        self.scores = problem.eps.new_full((len(problem), len(stages)), -torch.inf)
        self.alarms = {name: torch.zeros_like(problem.y, dtype=torch.bool) for name in (*_ALARMS, "attacked")}
        # Sums tell other images, labels, radii or ids well enough for an honest mistake.
        told = (problem.x, problem.y, problem.eps, problem.ids)
        sums = [part.sum(dtype=torch.float64).item() for part in told]
        shape = list(problem.x.shape)
        self.identity: State = {"norm": problem.norm.name, "seed": seed, "shape": shape, "sums": sums}

    def run(self, on_progress: Callable[[State], None] | None) -> None:
        """Run what is left of the stages."""
        while self.stage < len(self.stages):
            self.batches.map(lambda rows: self._attack(rows, on_progress), self.pending.clone())
            self.stage += 1
            self.pending = (self.broken_by < 0).nonzero().squeeze(1)
            wants = self.stages[self.stage].wants if self.stage < len(self.stages) else None
            if wants is not None:
                self.pending = self.pending[wants(self.scores[self.pending])]

    def _attack(self, rows: Tensor, on_progress: Callable[[State], None] | None) -> None:
        result = self.stages[self.stage].attack(self.model, self.problem[rows], self.seed)
        broken = rows[result.success]
        self.broken_by[broken] = self.stage
        self.adversarial[broken] = result.adversarial[result.success]
        self.queries[rows] += result.queries
        self.backwards[rows] += result.backwards
        for name, alarm in self.alarms.items():
            if name in result.trace:
                alarm[rows] |= result.trace[name].bool()
        if self.stage:
            self.alarms["attacked"][rows] |= ~result.trace["not_attacked"]
        if self.graded and not result.success.all():  # how close the best points of the others came
            logits = forward(self.model, result.adversarial) if result.logits is None else result.logits
            left = rows[~result.success]
            score = (dlr if logits.shape[1] > 2 else margin)(logits[~result.success], self.problem.y[left])
            self.scores[left, self.stage] = score.to(self.scores.dtype)
        self.pending = self.pending[len(rows) :]
        if on_progress is not None:
            on_progress(self._state())

    def _state(self) -> State:
        return {
            "format": _FORMAT,
            "identity": self.identity,
            "stages": [stage.name for stage in self.stages],
            "stage": self.stage,
            "batch_size": self.batches.size,
            "alarms": self.alarms,
            **{name: getattr(self, name) for name in _ROWS},
        }

    def restore(self, state: State) -> None:
        """Go on from ``state``; an AttackError where it belongs to another run."""
        fresh = self._state()
        earlier = {"race": "successive-halving"}  # what earlier versions called a stage
        state = state | {"stages": [earlier.get(name, name) for name in state.get("stages", ())]}
        for part in ("format", "stages", "identity"):
            if state.get(part) != fresh[part]:
                raise AttackError(
                    f"the state belongs to another run: its {part} is {state.get(part)}, here it is {fresh[part]}; "
                    "give the same model, images and options, or start without state"
                )
        device = self.problem.x.device
        self.stage, self.batches.size = state["stage"], state["batch_size"]
        for name in _ROWS:
            setattr(self, name, state[name].to(device, copy=True))
        for name, alarm in state["alarms"].items():
            self.alarms[name] = alarm.to(device, copy=True)
        if "attacked" not in state["alarms"]:  # the state of an earlier version
            self.alarms["attacked"][:] = True

    def result(self, report: ModelReport) -> AutoAttackResult:
        """The outcome so far."""
        change = self.adversarial.double() - self.problem.x.double()
        distance = self.problem.norm.length(change).to(self.problem.x.dtype)
        alarms = self.alarms.copy()
        alarms["not_attacked"] = ~alarms.pop("attacked") & (self.broken_by < 0)
        found = AutoAttackResult(
            self.adversarial,
            self.broken_by >= 0,
            self.queries,
            self.backwards,
            {"broken_by": self.broken_by, "distance": distance, **alarms},
            stages=tuple(stage.name for stage in self.stages),
            report=report,
        )
        return replace(found, warnings=(*report.warnings, *_doubts(found)))


def _doubts(result: AutoAttackResult) -> list[str]:
    """What the stages themselves showed to be doubtful, as AutoAttack's own flags do."""
    lines, trace = [], result.trace
    square = [place for place, name in enumerate(result.stages) if name.startswith("square")]
    by_square = torch.isin(trace["broken_by"], torch.tensor(square, device=trace["broken_by"].device))
    only_square = len(result.stages) == len(square) + 1
    if (share := _share(by_square)) > _SQUARE_SHARE and not only_square:
        lines.append(
            f"square broke {share:.1%} of the images that the gradient attacks before it had left: gradients mislead; "
            "run an audit or adaptive attacks"
        )
    if share := _share(trace["nonfinite_gradient"]):
        lines.append(f"gradients had infinite or NaN entries for {share:.1%} of the images")
    if share := _share(trace["not_attacked"]):
        lines.append(f"{share:.1%} of the images have no finite gradient and were not attacked; add square")
    if share := _share(trace["zero_gradient"]):
        lines.append(f"the gradient at a random start was exactly zero for {share:.1%} of the images")
    return lines


def _share(flags: Tensor) -> float:
    return flags.double().mean().item()
