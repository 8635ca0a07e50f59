"""Targeted PGD towards one fixed class: how many images get there, and what is left on images of the class itself."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rich.table import Table

from agents.common.plain_numbers import takes_numbers
from attacks.core.losses import misclassified
from attacks.gradient.pgd import pgd
from envs.errors import InputError
from eval.attack.autosave import Progress, Report
from eval.core.formatting import make_table, percent, with_interval
from eval.core.stats import Interval, wilson
from eval.core.targets import Samples, Target, logits_of
from eval.core.threats import Threat
from eval.robustness.suite import chunks, pgd_options


@dataclass(frozen=True)
class TargetedOutcome:
    """PGD towards class ``goal`` on one model."""

    model: str  #: its name
    threat: Threat  #: norm and radius; protocol, loss: of PGD
    protocol: str
    loss: str
    goal: int  #: the class
    label: np.ndarray  #: (n,) true labels
    clean: np.ndarray  #: (n,) predictions of the images, -1 for an answer of NaN
    attacked: np.ndarray  #: (n,) predictions of the attacked images

    @property
    def shares(self) -> dict[str, tuple[float, Interval] | None]:
        """What is reported, each with Wilson's interval; None where it is a share of no images.

        ``attack_success_rate``: images of other classes that are classified as the goal after the attack, and
        ``clean_rate`` before it; ``attack_success_rate_all``: of all images, those of the goal's class included, as
        arXiv 2606.12251 counts; ``target_accuracy_clean`` and ``target_accuracy``: on images of the goal's class, which
        the attack pushes towards their own class; ``accuracy``: on all images, after the attack.
        """
        own, everyone = self.label == self.goal, np.ones(len(self.label), dtype=bool)
        before, after = self.clean == self.goal, self.attacked == self.goal
        asked = {
            "clean_rate": (before, ~own),
            "attack_success_rate": (after, ~own),
            "attack_success_rate_all": (after, everyone),
            "target_accuracy_clean": (before, own),
            "target_accuracy": (after, own),
            "accuracy": (self.attacked == self.label, everyone),
        }
        found: dict[str, tuple[float, Interval] | None] = {}
        for name, (hits, among) in asked.items():
            n, k = int(among.sum()), int((hits & among).sum())
            found[name] = (k / n, wilson(k, n)) if n else None
        return found

    def figures(self) -> dict[str, Any]:
        """Return plain JSON: the shares, and predictions per image."""
        shares = {
            name: None if found is None else {"value": found[0], "ci95": list(found[1])}
            for name, found in self.shares.items()
        }
        head = {"model": self.model, **vars(self.threat), "goal": self.goal}
        head |= {"protocol": self.protocol, "loss": self.loss}
        return head | shares | {name: getattr(self, name).tolist() for name in ("label", "clean", "attacked")}


@takes_numbers
def targeted_outcome(
    target: Target,
    samples: Samples,
    threat: Threat,
    protocol: str,
    loss: str,
    goal: int,
    *,
    seed: int = 0,
    batch_size: int | None = None,
    report: Report = lambda progress: None,
) -> TargetedOutcome:
    """Run PGD towards class ``goal`` on all samples, images of that class included.

    Args:
        target, samples, threat: whom, on which images, within which norm and radius.
        protocol, loss: of `eval.robustness.options.PROTOCOLS`, and of `attacks.core.losses`, in its targeted form.
        goal: the class, 0..K-1.
        seed, batch_size: of the random starts; most images at once, on which no outcome depends.
        report: told about the progress.

    Raises:
        InputError, AttackError: there is no such class, a wrong name, or a model that cannot be attacked.
    """
    goal, labels, clean, attacked = int(goal), [], [], []
    options = {**pgd_options(protocol, loss, threat), **vars(threat), "seed": seed, "batch_size": batch_size}
    for rows in chunks(target, samples, batch_size):
        x, y = samples.batch(rows, target.device)
        before = logits_of(target.model, x)
        classes = before.shape[1]
        if goal >= classes:
            raise InputError(f"--target-class is {goal}; {samples.name} has the classes 0 to {classes - 1}")
        # An attack may not aim at the label: an image of the goal's class gets another one, which its loss ignores (ce,
        # mifpe) or which it moves away from.
        other = torch.where(y == goal, (goal + 1) % classes, y)
        goals, ids = torch.full_like(y, goal), samples.indices[rows].to(x.device)
        result = pgd(target.model, x, other, targets=goals, sample_ids=ids, **options)
        labels.append(y)
        clean.append(_classes(before))
        attacked.append(_classes(logits_of(target.model, result.adversarial)))
        hit = torch.cat(attacked) == goal
        report(Progress(rows.stop, len(samples), 1 - float(hit.float().mean()), 0.0))
    columns = (torch.cat(parts).cpu().numpy() for parts in (labels, clean, attacked))
    return TargetedOutcome(target.name, threat, protocol, loss, goal, *columns)


def _classes(logits: torch.Tensor) -> torch.Tensor:
    predicted = logits.argmax(1)
    return predicted.masked_fill(misclassified(logits, predicted), -1)  # NaN is no answer


def targeted_tables(outcomes: Sequence[TargetedOutcome]) -> list[Table]:
    """Return a table per threat model: a row per model, protocol and loss."""
    headings: tuple[str, ...] = ("as target, clean", "attack success [95 %]", "of all images")
    headings += ("class, clean", "class [95 %]", "accuracy")
    tables = []
    for threat in dict.fromkeys(outcome.threat for outcome in outcomes):
        found = [outcome for outcome in outcomes if outcome.threat == threat]
        title = f"PGD towards class {found[0].goal}, {threat}, n = {len(found[0].label)}"
        table = make_table(title, ("model", "protocol", "loss"), headings)
        for outcome in found:
            cells = [
                percent(item and item[0]) if item is None or "[" not in heading else with_interval(*item)
                for heading, item in zip(headings, outcome.shares.values(), strict=True)
            ]
            table.add_row(outcome.model, outcome.protocol, outcome.loss, *cells)
        tables.append(table)
    return tables
