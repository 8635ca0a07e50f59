"""The record that every attack of an audit writes to: what it broke, judged the same way for all."""

import inspect
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor, nn

from attacks.core.batching import default_batch_size
from attacks.core.losses import misclassified
from attacks.core.model import forward
from attacks.core.result import AttackResult
from eval.audit.callables import own_errors
from eval.audit.wrappers import Counted

Attack = Callable[..., AttackResult]
_CONFIRMED = 51  # fresh votes at least (ours)


def logits_of(model: nn.Module, x: Tensor) -> Tensor:
    """Return the logits (N, K), at least float32, without gradient; AttackError for other outputs than a row each."""
    return torch.cat([forward(model, part) for part in x.split(default_batch_size(x))])


class Family(StrEnum):
    """What an attack needs, and so what its success means."""

    STANDARD = "standard"  # as published, on the model as it is
    GRADIENT = "gradient"  # the model's own gradients, losses immune to saturation
    REPAIRED = "repaired gradient"  # gradients of another origin: smoothed, straight through
    FREE = "gradient-free"  # outputs or decisions alone
    TRANSFER = "transfer"  # gradients of another model


@dataclass(frozen=True)
class Outcome:
    """What one attack did."""

    name: str  #: of the attack, its loss or its source
    family: Family  #: what it needs
    #: (n,) bool, the images it was run on: survivors of earlier attacks, unless a comparison needs all
    tried: Tensor
    broken: Tensor  #: (n,) bool, images it broke by the audit's judgement, clean errors included
    #: accuracy over all images by the attack's own count, as a reader of its result would report it
    claimed: float
    seconds: float  #: it took
    error: str = ""  #: why it could not run
    first: int = 0  #: how many images it was the first to break
    passes: int = 0  #: images that the model had been asked about, by all attacks so far, when it ended

    @property
    def accuracy(self) -> float:
        """Accuracy over all images after this attack alone; untried images count as they are without it."""
        return 1 - float(self.broken.double().mean())


class AttackRecord:
    """Images under audit, and which of them have been broken by whom.

    Attributes:
        judge: images (m, C, H, W) to logits whose largest is the model's decision.
        votes: passes whose majority decides; 1 for a deterministic model.
        counter: the model at the bottom of all views, which counts passes and ends them when time is over.
        rows: (n,) indices of all images.
        ball: norm, eps and seed by name, as attacks take them.
        clean_wrong: (n,) bool.
        broken_by: per image the first attack that broke it, "clean" for a clean error, None for a survivor.
        points: (n, C, H, W), the adversarial image found, or the clean one.
    """

    def __init__(
        self,
        judge: nn.Module,
        x: Tensor,
        y: Tensor,
        norm: str,
        eps: float,
        *,
        votes: int = 1,
        seed: int = 0,
        counter: Counted | None = None,
    ) -> None:
        self.counter = counter or Counted(judge)
        self.judge, self.votes, self.seed = judge, votes, seed
        self.fresh = max(votes, _CONFIRMED) if votes > 1 else 1
        self.x, self.y, self.norm, self.eps = x, y, norm, eps
        self.rows = torch.arange(len(x), device=x.device)
        self.ball: dict[str, Any] = {"norm": norm, "eps": eps, "seed": seed}
        self.clean_wrong = self.wrong(x, y, self.fresh)
        self.broken = self.clean_wrong.clone()
        self.broken_by: list[str | None] = ["clean" if wrong else None for wrong in self.broken.tolist()]
        self.points = x.clone()
        self.outcomes: list[Outcome] = []

    def wrong(self, x: Tensor, y: Tensor, votes: int = 0) -> Tensor:
        """bool (m,): most of the ``votes`` (default: the record's) misclassify the image.

        No more are asked for once the majority is certain, whatever the others would say.
        """
        votes = votes or self.votes
        errors, undecided = torch.zeros_like(y), torch.arange(len(y), device=y.device)
        for left in reversed(range(votes)):
            errors[undecided] += misclassified(logits_of(self.judge, x[undecided]), y[undecided]).long()
            against = errors[undecided]
            undecided = undecided[(against * 2 <= votes) & ((against + left) * 2 > votes)]
            if not len(undecided):
                break
        return errors * 2 > votes

    def _confirmed(self, rows: Tensor, points: Tensor) -> Tensor:
        """bool (m,): wrong; first errors of random models by fresh votes too, as the luckiest of many tries is seen."""
        wrong = self.wrong(points, self.y[rows])
        new = wrong & ~self.broken[rows]
        if self.votes > 1 and new.any():
            wrong[new] = self.wrong(points[new], self.y[rows[new]], self.fresh)
        return wrong

    def settle(self) -> None:
        """Judge what breaks a random model once more, by fresh votes, after all attacks had their chance of luck."""
        rows = (self.broken & ~self.clean_wrong).nonzero().squeeze(1)
        if self.votes == 1 or not len(rows):
            return
        right = rows[~self.wrong(self.points[rows], self.y[rows], self.fresh)]
        self.broken[right], self.points[right] = False, self.x[right]
        for row in right.tolist():
            self.broken_by[row] = None

    @property
    def survivors(self) -> Tensor:
        """Indices of the images that nothing has broken."""
        return (~self.broken).nonzero().squeeze(1)

    @property
    def accuracy(self) -> float:
        """Share of the images that nothing has broken: the pointwise worst case."""
        return 1 - float(self.broken.double().mean())

    def broken_in(self, *families: Family) -> Tensor:
        """(n,) bool: broken by an attack of these families, or a clean error."""
        found = self.clean_wrong.clone()
        for outcome in self.outcomes:
            if outcome.family in families:
                found |= outcome.broken
        return found

    def run(
        self,
        name: str,
        family: Family,
        attack: Attack,
        model: nn.Module,
        rows: Tensor | None = None,
        **options: Any,
    ) -> Outcome:
        """Attack ``rows`` (default: the survivors) and record the outcome.

        A model that does not take the attack, for want of gradients or of a batch of that size, leaves a
        record with its error.
        """
        rows = self.survivors if rows is None else rows
        x, y, start = self.x[rows], self.y[rows], time.perf_counter()
        points, claimed = x, torch.zeros_like(y, dtype=torch.bool)
        with own_errors() as failed:
            if len(rows):
                common = self.ball | {"sample_ids": rows}
                if self.votes > 1:  # one wrong answer is no majority: climb on
                    common["early_stop"] = False
                takes = inspect.signature(attack).parameters
                taken = {key: value for key, value in common.items() if key in takes}
                result = attack(model, x, y, **{**taken, **options})
                points, claimed = result.adversarial, result.success
        return self.add(name, family, rows, points, claimed, time.perf_counter() - start, "".join(failed))

    def add(
        self,
        name: str,
        family: Family,
        rows: Tensor,
        points: Tensor,
        claimed: Tensor,
        seconds: float,
        error: str = "",
    ) -> Outcome:
        """Judge ``points`` of the images ``rows`` and note what they broke."""
        with self.counter.clock.stopping(False):  # what was found is judged, late or not
            wrong = self._confirmed(rows, points) if len(rows) else self.broken[:0]
        tried = torch.zeros_like(self.broken).index_fill(0, rows, True)
        broken = self.clean_wrong.index_put((rows,), self.clean_wrong[rows] | wrong)
        said = self.clean_wrong.index_put((rows,), claimed)
        for row, point in zip(rows[wrong].tolist(), points[wrong], strict=True):
            if not self.broken[row]:
                self.broken_by[row], self.points[row] = name, point
        first = int((broken & ~self.broken).sum())
        self.broken = self.broken | broken
        accuracy, passes = 1 - float(said.double().mean()), self.counter.forwards
        self.outcomes.append(Outcome(name, family, tried, broken, accuracy, seconds, error, first, passes))
        return self.outcomes[-1]

    def late_gain(self, share: float) -> float:
        """Accuracy lost to attacks that ended after ``share`` of all passes of the model."""
        mark = share * self.counter.forwards
        return sum(outcome.first for outcome in self.outcomes if outcome.passes > mark) / len(self.x)

    def outcome(self, name: str) -> Outcome | None:
        """Return the outcome of the attack called ``name``, or None where it was not run."""
        return next((outcome for outcome in self.outcomes if outcome.name == name), None)
