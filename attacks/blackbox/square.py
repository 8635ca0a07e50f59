"""Square attack (Andriushchenko et al. 2020, arXiv 1912.00049): random search with square windows, scores only."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from attacks.blackbox.square_proposals import Moves, Proposals, moves_for
from attacks.core import entry
from attacks.core.batching import NEVER, Rows, default_batch_size
from attacks.core.inputs import Problem, validate_inputs
from attacks.core.losses import misclassified
from attacks.core.model import CountedModel, Model
from attacks.core.model_state import fast_layout
from attacks.core.norms import per_sample
from attacks.core.recording import traced_forward
from attacks.core.result import AttackResult, finish, in_batches
from attacks.core.rng import RandomSource, SampleSource

_STREAM = 3
_SHARE = 0.8  # of the pixels, that the first windows cover
_NOISE = 1e-6
_AHEAD = 8  # batches' worth of windows that are asked about together at most
_HELD = 4  # batches' worth of pixels that windows not yet asked about hold at most
_ROUND = 2**13  # pixels of images that could be asked about in the time that a round takes besides (CPU, GPU)
_ROUND_CUDA = 2**18
_SPARE = 1.5
_FORGET = 0.9  # per round, of how often windows were kept
_RARE = 1e-3
_STOCK = 128  # iterations whose random numbers are drawn together
_UNKNOWN, _KNOWN = _STOCK, -1
_HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


@entry.attack
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
    random_source: RandomSource | None = None,
) -> AttackResult:
    """Square attack: windows of random colour (Linf) or of moved mass (L2, L1) are kept where they lower the margin.

    No gradients. Windows cover 80 % of the image at first, half as much after 10, 50, 200, 500, 1000, 2000 and 4000
    iterations. An iteration whose window changes nothing, or repeats one that the present best image has been tried
    with, costs no query: the model's outputs are taken not to be random.

    Args:
        model, x, y, norm, eps, batch_size, seed, sample_ids: see `attacks`.
        queries: most forward passes per sample and restart, after the first.
        restarts: independent searches; later ones attack the samples that are still unbroken.
        random_source: draws windows and colours in place of ``seed``, see `attacks.core.rng`.

    Returns:
        The result; ``adversarial`` is the image of lowest margin, the trace's "loss" (N,) the negative margin there.
    """
    problem = validate_inputs(x, y, norm=norm, eps=eps, sample_ids=sample_ids)
    options: dict[str, Any] = {"queries": queries, "restarts": restarts, "random_source": random_source}
    return in_batches(
        lambda part: run_square(model, part, seed, **options), problem, batch_size, patient=True
    )


def run_square(
    model: Model,
    problem: Problem,
    seed: int,
    *,
    queries: int = 5000,
    restarts: int = 1,
    random_source: RandomSource | None = None,
) -> AttackResult:
    """Attack one batch of validated inputs; those of another shape than images as images of one channel."""
    if problem.x.ndim != 4:
        shape, size = problem.x.shape[1:], problem.x[0].numel()
        height = next(side for side in range(math.isqrt(size), 0, -1) if size % side == 0)
        flat = replace(problem, x=problem.x.reshape(-1, 1, height, size // height))
        on_rows: Model = lambda images: model(images.reshape(len(images), *shape))  # noqa: E731
        result = run_square(
            on_rows, flat, seed, queries=queries, restarts=restarts, random_source=random_source
        )
        return replace(result, adversarial=result.adversarial.reshape_as(problem.x))
    counted = CountedModel(model, problem, max_batch=default_batch_size(problem.x))
    counted.scorer = traced_forward(model, problem.x, len(problem) * queries)
    attack = _Attack(counted, random_source or SampleSource(seed, _STREAM))
    with fast_layout(model, problem.x):
        wrong = misclassified(counted.clean_logits(), problem.y)
        attack.broken |= wrong
        for restart in range(restarts):
            rows = (~attack.broken).nonzero().squeeze(1)
            if len(rows):
                attack.search(rows, restart, queries)
    return finish(counted, problem, attack.best, clean_wrong=wrong, trace={"loss": -attack.margin})


class _Run(Rows):
    """n searches in progress.

    Attributes:
        row: the sample, an index into the problem (n,).
        y, ids: labels and what random numbers depend on (n,).
        moves: where windows go and what they hold, for these samples.
        best: the image of lowest margin so far (n, C, H, W).
        margin: how far the label's logit is above the others there (n,).
        iteration: how many windows were tried (n,).
        tried: by proposal id (n, ids), the windows of one side that were asked about since ``best`` changed.
        numbers: uniform numbers of coming iterations (n, stock, k).
        unused: where in them the next iteration's are (n,).
        spent: how large ``unused`` may be at most.
        least: the least ``iteration``.
    """

    def __init__(self, problem: Problem, row: Tensor, moves: Moves) -> None:
        self.row, self.y, self.ids, self.moves = row, problem.y[row], problem.ids[row], moves
        self.best = problem.x[row]
        self.margin = torch.full_like(problem.eps[row], torch.inf)
        self.iteration = torch.full_like(row, -1)
        self.unused = torch.full_like(row, _STOCK)
        self.spent, self.least = _STOCK, -1
        self.forget()

    def forget(self) -> None:
        """Windows have another side from now on."""
        shape = (len(self.row), self.moves.distinct())
        self.tried = torch.full(shape, _UNKNOWN, dtype=torch.int16, device=self.row.device)

    def first_time(self, proposal_id: Tensor) -> Tensor:
        """Whether windows (n, K) were not asked about yet, and are the first such among the K."""
        place = torch.arange(proposal_id.shape[1], dtype=torch.int16, device=proposal_id.device)
        place = place.expand_as(proposal_id)
        first = self.tried.scatter_reduce_(1, proposal_id, place, "amin").gather(1, proposal_id)
        self.tried.scatter_(1, proposal_id, torch.where(first == _KNOWN, _KNOWN, _UNKNOWN).to(torch.int16))
        return first == place

    def note_asked(self, search: Tensor, ids: Tensor, asked: Tensor, found: Tensor, rows: Tensor) -> None:
        """Note windows ``ids`` (m,) that were ``asked`` about; where a better one was ``found`` (n,) all are new."""
        place = search * self.tried.shape[1] + ids
        known = torch.where(asked, _KNOWN, _UNKNOWN).to(self.tried.dtype)
        self.tried.view(-1).scatter_reduce_(0, place, known, "amin")
        if found.is_cuda:
            self.tried.masked_fill_(found[:, None], _UNKNOWN)
        else:
            self.tried.index_fill_(0, rows, _UNKNOWN)

    def draw(self, source: RandomSource, restart: int, ahead: int) -> Tensor:
        """The uniform numbers of the next ``ahead`` iterations of each search, (n, ahead, k)."""
        if self.spent + ahead > _STOCK:
            iteration = self.iteration[:, None] + torch.arange(_STOCK, device=self.row.device)
            each = self.ids.repeat_interleave(_STOCK)
            numbers = source.uniform(each, (self.moves.draws,), restart, 1, iteration.flatten())
            self.numbers, self.unused = numbers.view(*iteration.shape, -1), torch.zeros_like(self.row)
            self.spent = 0
        place = self.unused[:, None] + torch.arange(ahead, device=self.row.device)
        return self.numbers[torch.arange(len(place), device=place.device)[:, None], place]


class _Pace:
    """How many windows ahead it pays to look, by how often windows were kept, and had to be asked about, of late."""

    def __init__(self, image: Tensor) -> None:
        self.fixed = (_ROUND_CUDA if image.is_cuda else _ROUND) / image.numel()
        self.reached = self.asked = self.judged = self.kept = 1.0

    def note(self, reached: int, asked: int, judged: int, kept: int) -> None:
        """Take up that of ``reached`` windows ``asked`` had to be asked about, ``judged`` of them without being void,
        and ``kept`` of these were kept.
        """
        self.reached = max(_FORGET * self.reached + reached, _RARE)
        self.asked = max(_FORGET * self.asked + asked, _RARE)
        self.judged = max(_FORGET * self.judged + judged, _RARE)
        self.kept = max(_FORGET * self.kept + kept, _RARE)

    def asks(self, searches: int, room: int) -> int:
        """Queries of each search at once; ``room`` for all together.

        More share a round's fixed cost, fewer are void after a kept window. Where windows are kept at rate p, a round
        of k costs fixed + searches * k, of which about 1 - k p / 2 is of use: k = sqrt(2 fixed / (p searches)) is best.
        """
        between = self.judged / self.kept
        best = min(math.sqrt(2 * self.fixed * between / searches), 2 * between)
        return max(1, min(room // searches, round(best)))

    def windows(self, asks: int) -> int:
        """Windows to propose at once, so that mostly ``asks`` of them have to be asked about."""
        return math.ceil(_SPARE * asks * self.reached / self.asked) if self.reached > self.asked else asks


class _Attack:
    """One batch under attack.

    Each window is kept or dropped before the next is tried. Where a batch has room, the model is asked about several
    windows of a sample ahead: those up to the first that is kept are what one at a time would have met, the others are
    void. Windows that change nothing, or were asked about since the best image last changed, are passed over without
    asking. So nothing changes but the time.
    """

    def __init__(self, counted: CountedModel, source: RandomSource) -> None:
        self.counted, self.source, self.problem = counted, source, counted.problem
        self.best = self.problem.x.clone()
        self.margin = torch.full_like(self.problem.eps, torch.inf)
        self.broken = torch.zeros_like(self.problem.y, dtype=torch.bool)
        batch = default_batch_size(self.problem.x)
        self.room = max(1, _AHEAD * batch)
        self.held = _HELD * batch * self.problem.x.shape[2:].numel()

    def search(self, rows: Tensor, restart: int, queries: int) -> None:
        """One random search for the samples ``rows`` (n,)."""
        moves = moves_for(self.problem[rows])
        run = _Run(self.problem, rows, moves)
        pace = _Pace(self.problem.x[0])
        each = torch.ones_like(rows, dtype=torch.bool)[:, None]
        self._consider(run, Proposals(each, moves.first(self.source, run.ids, restart)), each, 1, pace)
        height, width = self.problem.x.shape[2:]
        before = 0
        for level, (start, stop) in enumerate(levels(queries)):
            side = moves.side(math.sqrt(_SHARE / 2**level * height * width), min(height, width))
            if side != before:
                run.forget()
                before = side
            while len(run.row) and run.least < stop:
                asks = pace.asks(len(run.row), self.room)
                held = self.held // (len(run.row) * side**2)
                ahead = min(max(1, min(pace.windows(asks), held, _STOCK)), stop - start)
                proposals = run.moves.propose(run.best, side, run.draw(self.source, restart, ahead))
                steps = torch.arange(ahead, device=rows.device)
                self._consider(run, proposals, run.iteration[:, None] + steps < stop, asks, pace)
        self._close(run)

    def _consider(self, run: _Run, proposals: Proposals, valid: Tensor, asks: int, pace: _Pace) -> None:
        """Ask about the first ``asks`` of each search's ``valid`` (n, K) ``proposals`` that need it.

        The first better one of each search is kept.
        """
        ahead = valid.shape[1]
        fresh = valid & proposals.changes
        if proposals.ids is not None:
            fresh &= run.first_time(proposals.ids)
        reached = valid if ahead <= asks else valid & (fresh.cumsum(1) <= asks)
        ask = fresh & reached
        search, place, each = _chosen(ask, asks)
        asked = proposals.images(search, place)
        margin, wrong, better = self._judge(run, search, asked)
        better &= ask[search, place]
        first = torch.where(better, place, ahead)
        first = torch.full_like(run.row, ahead).scatter_reduce_(0, search, first, "amin")
        found = first < ahead
        best = torch.where(
            better & (place == first[search]), torch.arange(len(search), device=ask.device), NEVER
        )
        best = torch.full_like(run.row, NEVER).scatter_reduce_(0, search, best, "amin")
        tried = torch.where(found, first + 1, reached.sum(1))
        used = (ask & (torch.arange(ahead, device=ask.device) < tried[:, None])).sum(1)
        self.counted.queries[run.row] -= each - used  # those after the first better one are void

        run.iteration += tried
        run.unused += tried
        broken = torch.zeros_like(found)
        # A GPU would wait for the number of those found, and goes through all.
        rows = torch.arange(len(found), device=ask.device) if ask.is_cuda else found.nonzero().squeeze(1)
        if len(rows):
            take, which = found[rows], best[rows].clamp_max(len(search) - 1)
            run.best[rows] = torch.where(per_sample(take, asked), asked[which], run.best[rows])
            run.margin[rows] = torch.where(take, margin[which], run.margin[rows])
            broken[rows] = take & wrong[which]
        if proposals.ids is not None:
            run.note_asked(search, proposals.ids[search, place], ask[search, place], found, rows)
        going = torch.where(broken, NEVER, run.iteration).amin()
        counts = [reached.sum(), ask.sum(), used.sum(), found.sum(), broken.sum(), run.unused.amax(), going]
        *shares, leave, run.spent, run.least = torch.stack(counts).tolist()
        pace.note(*shares)
        if leave:
            self.broken[run.row] = broken
            self._close(run)
            run.keep(broken.int().argsort(stable=True)[: len(broken) - leave])

    def _judge(self, run: _Run, search: Tensor, asked: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Margins (m,) of the images ``asked`` (m, ...) of searches (m,), whether they succeed, and are better."""
        if not len(search):
            return run.margin[:0], search > 0, search > 0
        logits, y, least = self.counted.logits(asked, run.row[search]), run.y[search], run.margin[search]
        own = logits.gather(1, y[:, None])
        margin = (own - logits.scatter(1, y[:, None], -torch.inf).amax(1, keepdim=True)).squeeze(1)
        wrong = (logits.argmax(1) != y) | margin.isnan()
        better = (margin < least - _NOISE * logits.abs().amax(1)) | wrong
        return margin.to(least.dtype), wrong, better

    def _close(self, run: _Run) -> None:
        """Write down where the searches have come to."""
        better = run.margin < self.margin[run.row]
        self.best[run.row] = torch.where(per_sample(better, run.best), run.best, self.best[run.row])
        self.margin[run.row] = torch.where(better, run.margin, self.margin[run.row])


def _chosen(ask: Tensor, most: int) -> tuple[Tensor, Tensor, int | Tensor]:
    """Searches (m,) and places (m,) of the windows to ``ask`` about, (n, K) bool, and how many each search gets.

    On a GPU, which would wait for their number, each gets ``most``, others among them.
    """
    if not ask.is_cuda:
        search, place = ask.nonzero(as_tuple=True)
        return search, place, ask.sum(1)
    place = (~ask).int().argsort(dim=1, stable=True)[:, :most]
    search = torch.arange(len(place), device=place.device)[:, None].expand_as(place)
    return search.flatten(), place.flatten(), place.shape[1]


def levels(queries: int) -> list[tuple[int, int]]:
    """First and one past the last iteration of each window size."""
    starts = [0, *(after + 1 for after in _HALVED_AFTER if after + 1 < queries)]
    return list(zip(starts, [*starts[1:], queries], strict=True))
