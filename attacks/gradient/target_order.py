"""Which wrong classes targeted attacks aim at, the most promising first: by logit, or by distance to the boundary.

By logit is the published order of APGD-T and FAB-T. MALT (Melamed et al. 2024, arXiv 2407.02240) ranks the classes of
largest logit by (z_y - z_t) / ||grad (z_y - z_t)||, the distance at which a model that is linear around the image
changes its answer: a class that lies behind in its logit may be nearer. It pays where targets have to be chosen, that
is with more wrong classes than targets: on 100 classes it left 26 % and 31 % of the images after one target where the
order by logit left 31 % and 35 % (Linf, L2; `benchmarks.attacks.targets`).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from attacks.core.batching import runs_of, split_rows
from attacks.core.losses import margin_targeted, misclassified
from attacks.core.model import CountedModel
from attacks.core.norms import DUAL, plain_length

# Classes of largest logit that are compared. The paper takes 100; on 100 classes 20 chose as well.
_CANDIDATES = 20
_TINY = 1e-12

Order = Callable[[CountedModel, Tensor, int], Tensor]


def by_logit(counted: CountedModel, clean: Tensor, count: int) -> Tensor:
    """The ``count`` wrong classes of largest logit in ``clean`` (N, K), best first: (N, at most K-1) int64."""
    others = clean.scatter(1, counted.problem.y[:, None], -torch.inf)
    return others.topk(min(count, clean.shape[1] - 1), dim=1).indices


def by_distance(counted: CountedModel, clean: Tensor, count: int, candidates: int = _CANDIDATES) -> Tensor:
    """The ``count`` nearest wrong classes by MALT, best first: (N, at most K-1) int64; `by_logit` for clean errors.

    It takes a query and a backward pass for each of the ``candidates`` classes of largest logit that are compared.
    Where all wrong classes will be aimed at the order is by logit, for nothing. Call it inside `frozen`.
    """
    problem = counted.problem
    ranked = by_logit(counted, clean, max(count, candidates))
    if ranked.shape[1] <= count:
        return ranked
    chosen = ranked[:, :count].clone()
    correct = (~misclassified(clean, problem.y)).nonzero().squeeze(1)
    for part in split_rows(problem, correct, ranked.shape[1]):
        row, rank = runs_of(part, range(ranked.shape[1]))
        along = (problem.y[row], ranked[row, rank])
        found = counted.gradient(problem.x[row], margin_targeted, row, along)
        steepness = plain_length(DUAL[problem.norm.name], found.grad)
        distance = (-found.loss / steepness.clamp_min(_TINY)).view(len(part), -1)
        chosen[part] = ranked[part].gather(1, distance.argsort(dim=1, stable=True)[:, :count])
    return chosen
