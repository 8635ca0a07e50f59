"""Bookkeeping that iterative attacks share: runs in lock-step, one per (sample, try), of which some leave early."""

from __future__ import annotations

from copy import copy
from typing import Self

import torch
from torch import Tensor

from attacks.core.batching import patient_batch_size
from attacks.core.inputs import Problem


class Rows:
    """State of n runs: every tensor attribute has n rows, which `keep` selects together."""

    def keep(self, rows: Tensor) -> None:
        """Go on with these ``rows`` (mask (n,) or indices) alone; nested states follow."""
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, value[rows])
            elif isinstance(value, Rows):
                setattr(self, name, value.taken(rows))

    def taken(self, rows: Tensor) -> Self:
        """A copy with these ``rows`` (mask (n,) or indices, repeats allowed)."""
        other = copy(self)
        other.keep(rows)
        return other


def waves(tries: int, original: bool, together: bool) -> list[range]:
    """Consecutive groups of 0..tries-1 to run in lock-step: the first alone and then the rest, or all ``together``.

    The first try breaks most samples, so it goes alone; the others share batches, where the first success ends all
    tries of that sample. The ``original`` code runs one after the other. The groups do not depend on the batch size, so
    neither does the result.
    """
    if original:
        return [range(one, one + 1) for one in range(tries)]
    alone = 0 if together else min(1, tries)
    return [group for group in (range(alone), range(alone, tries)) if group]


def samples_at_once(problem: Problem, tries: int, original: bool) -> int:
    """How many samples take so many ``tries`` in lock-step; the ``original`` code takes a batch as it is."""
    if original:
        return max(1, len(problem))
    return max(1, patient_batch_size(problem.x) // tries)


def tries_of(rows: Tensor, wave: range) -> tuple[Tensor, Tensor]:
    """The runs of these samples ``rows`` (n,) for every try of ``wave``: sample and try of each, sample by sample."""
    tries = torch.tensor(list(wave), device=rows.device)
    return rows.repeat_interleave(len(tries)), tries.repeat(len(rows))


def ranked_targets(logits: Tensor, y: Tensor, count: int) -> Tensor:
    """The ``count`` (at most K-1) best other classes than ``y`` of each sample, best first: (N, count) int64."""
    others = logits.scatter(1, y[:, None], -torch.inf)
    return others.topk(min(count, logits.shape[1] - 1), dim=1).indices
