"""Square attack (Andriushchenko et al. 2020, arXiv 1912.00049): random search with square windows, scores only."""

from __future__ import annotations

import math
from bisect import bisect_left
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.errors import AttackError
from attacks.forward import Model, Oracle, fast_layout
from attacks.losses import margin, misclassified
from attacks.pgd import at_least_one
from attacks.problem import Problem, pose
from attacks.result import AttackResult, finish, in_batches
from attacks.runs import Rows
from attacks.sources import Source, check_random, source_for
from attacks.square_moves import Moves, moves_for
from attacks.threat import per_sample

_STREAM = 3
_SHARE = 0.8  # of the pixels, that the first windows cover
_HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
_BLOCK = 32


@dataclass(frozen=True)
class Square:
    """Square attack's options; calling it attacks one batch. See `square`."""

    queries: int = 5000
    restarts: int = 1
    random: str = "sample"

    def __call__(self, model: Model, problem: Problem, seed: int) -> AttackResult:
        """Attack ``problem`` in one batch."""
        if problem.x.ndim != 4:
            raise AttackError(f"square needs images (N, C, H, W), got {tuple(problem.x.shape)}; reshape them")
        return _Attack(self, Oracle(model, problem), seed).run()


class _Run(Rows):
    """n searches in progress.

    Attributes:
        row: the sample, an index into the problem (n,).
        y: labels (n,).
        best: the image of lowest margin so far (n, C, H, W).
        margin: how far the label's logit is above the others there (n,).
        moves: where windows go and what they hold, for these samples.
        numbers: uniform draws for the next iterations (n, _BLOCK, k).
    """

    def __init__(self, row: Tensor, y: Tensor, moves: Moves, best: Tensor) -> None:
        self.row, self.y, self.moves, self.best = row, y, moves, best
        self.margin = torch.full_like(best[:, 0, 0, 0], torch.inf)
        self.numbers: Tensor | None = None


class _Attack:
    """One batch under attack."""

    def __init__(self, options: Square, oracle: Oracle, seed: int) -> None:
        self.options = options
        self.oracle = oracle
        self.problem = oracle.problem
        self.source: Source = source_for(options.random, seed, self.problem, _STREAM)
        self.best = self.problem.x.clone()
        self.margin = torch.full_like(self.problem.eps, torch.inf)

    def run(self) -> AttackResult:
        """All restarts, then the verification."""
        with nullcontext() if self.source.original else fast_layout(self.oracle.model):
            wrong = misclassified(self.oracle.clean_logits(), self.problem.y)
            broken = wrong.clone()
            for restart in range(self.options.restarts):
                rows = (~broken).nonzero().squeeze(1)
                if len(rows):
                    broken[self._search(rows, restart)] = True
        trace = {"loss": -self.margin}
        return finish(self.oracle, self.problem, self.best, clean_wrong=wrong, trace=trace)

    def _search(self, rows: Tensor, restart: int) -> Tensor:
        """One random search for the samples ``rows`` (n,); the rows (m,) that it broke."""
        moves = moves_for(self.problem[rows], self.source.original)
        run = _Run(rows, self.problem.y[rows], moves, moves.first(self.source, rows, restart))
        broken = [self._consider(run, run.best)]
        height, width = self.problem.x.shape[2:]
        for iteration in range(self.options.queries):
            if not len(run.row):
                break
            numbers = self._numbers(run, restart, iteration)
            share = _SHARE / 2 ** bisect_left(_HALVED_AFTER, iteration)
            side = moves.side(math.sqrt(share * height * width), min(height, width))
            broken.append(self._consider(run, moves.propose(run.best, side, numbers)))
        self._close(run)
        return torch.cat(broken)

    def _numbers(self, run: _Run, restart: int, iteration: int) -> Tensor:
        """Uniform draws (n, k) for one iteration."""
        shared, own = run.moves.shared_draws, run.moves.own_draws
        if self.source.original:
            together = self.source.shared(run.row, (shared,)).expand(len(run.row), -1)
            return torch.cat([together, self.source.uniform(run.row, (own,))], 1) if own else together
        place = iteration % _BLOCK
        if place == 0 or run.numbers is None:
            path = (restart, 1, iteration // _BLOCK)
            run.numbers = self.source.uniform(run.row, (_BLOCK, shared + own), *path)
        return run.numbers[:, place]

    def _consider(self, run: _Run, proposal: Tensor) -> Tensor:
        """Ask the model about ``proposal`` (n, C, H, W) and keep what is better; the rows (m,) that it breaks leave."""
        rows, y, best, before = run.row, run.y, run.best, run.margin
        changed = None if self.source.original else self._changed(run, proposal)
        if changed is not None:
            rows, y, proposal, before = rows[changed], y[changed], proposal[changed], before[changed]
            best = best[changed]
        logits = self.oracle.logits(proposal, rows)
        ahead = -margin(logits, y)
        wrong = ahead <= 0 if self.source.original else misclassified(logits, y)
        better = (ahead < before) | wrong
        best = torch.where(per_sample(better, best), proposal, best)
        ahead = torch.where(better, ahead, before)
        if changed is None:
            run.best, run.margin = best, ahead
        else:
            run.best[changed], run.margin[changed] = best, ahead
        if not wrong.any():
            return rows[:0]
        self._close(run)
        run.keep(~torch.isin(run.row, rows[wrong]))
        return rows[wrong]

    def _changed(self, run: _Run, proposal: Tensor) -> Tensor | None:
        """Indices of proposals that differ from the best so far; None when all do. The others need no query."""
        if proposal is run.best:
            return None
        changed = (proposal != run.best).flatten(1).any(1)
        return None if changed.all() else changed.nonzero().squeeze(1)

    def _close(self, run: _Run) -> None:
        """Write down where the runs have come to."""
        better = run.margin < self.margin[run.row]
        self.best[run.row[better]] = run.best[better]
        self.margin[run.row[better]] = run.margin[better]


def square(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    norm: str,
    eps: float | Tensor,
    queries: int = 5000,
    restarts: int = 1,
    batch_size: int | None = None,
    seed: int = 0,
    sample_ids: Tensor | None = None,
    random: str = "sample",
) -> AttackResult:
    """Square attack: windows of random colour (Linf) or of moved mass (L2, L1) are kept where they lower the margin.

    No gradients. Windows cover 80 % of the image at first, half as much after 10, 50, 200, 500, 1000, 2000 and 4000
    iterations. An iteration whose window changes nothing costs no query.

    Args:
        model: images (n, C, H, W) in [0, 1] to logits (n, K).
        x: images (N, C, H, W), floats in [0, 1].
        y: labels (N,) int64.
        norm: "Linf", "L2" or "L1".
        eps: radius in units of pixels, one for all or per sample (N,).
        queries: most forward passes per sample and restart, after the first.
        restarts: independent searches; later ones attack the samples that are still unbroken.
        batch_size: the most images at once; None chooses. It changes no result (but see ``random``).
        seed: seeds windows and colours.
        sample_ids: integers (N,) that the random numbers of each sample hang on; default 0..N-1.
        random: "original" repeats the published implementation's draws, where a batch shares its windows, and its
            arithmetic, so that results compare bit by bit.

    Returns:
        The result; ``adversarial`` is the image of lowest margin, the trace's "loss" (N,) the negative margin there.

    Raises:
        AttackError: wrong inputs.
    """
    attack = Square(at_least_one("queries", queries), at_least_one("restarts", restarts), random)
    check_random(random)
    problem = pose(x, y, norm=norm, eps=eps, sample_ids=sample_ids)
    return in_batches(lambda batch: attack(model, batch, seed), problem, batch_size)
