"""Square attack (Andriushchenko et al. 2020, arXiv 1912.00049): random search with square windows, scores only."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from attacks.blackbox.square_proposals import Given, Moves, Proposals, moves_for
from attacks.core import entry
from attacks.core.batching import Rows, default_batch_size
from attacks.core.inputs import Problem, at_least_one, validate_inputs
from attacks.core.losses import margin as untargeted_margin
from attacks.core.losses import misclassified
from attacks.core.memory_format import fast_layout
from attacks.core.model import CountedModel, Model
from attacks.core.random_source import Source, check_random, source_for
from attacks.core.result import AttackResult, finish, in_batches
from attacks.core.traced_forward import traced_forward

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


@dataclass(frozen=True)
class Square:
    """Square attack's options; calling it attacks one batch. See `square`."""

    queries: int = 5000
    restarts: int = 1
    random: str = "sample"

    def __call__(self, model: Model, problem: Problem, seed: int) -> AttackResult:
        """Attack ``problem`` in one batch."""
        if problem.x.ndim != 4:
            return self._on_rows(model, problem, seed)
        max_batch = None if self.random == "original" else default_batch_size(problem.x)
        return _Attack(self, CountedModel(model, problem, max_batch=max_batch), seed).run()

    def _on_rows(self, model: Model, problem: Problem, seed: int) -> AttackResult:
        """Attack inputs of another shape than images as images of one channel, as square as their size allows."""
        shape, size = problem.x.shape[1:], problem.x[0].numel()
        height = next(side for side in range(math.isqrt(size), 0, -1) if size % side == 0)
        flat = replace(problem, x=problem.x.reshape(-1, 1, height, size // height))
        result = self(lambda images: model(images.reshape(len(images), *shape)), flat, seed)
        return replace(result, adversarial=result.adversarial.reshape_as(problem.x))


class _Run(Rows):
    """n searches in progress.

    Attributes:
        row: the sample, an index into the problem (n,).
        y: labels (n,).
        moves: where windows go and what they hold, for these samples.
        best: the image of lowest margin so far (n, C, H, W).
        margin: how far the label's logit is above the others there (n,).
        iteration: how many windows were tried (n,).
        tried: by ticket (n, tickets), the windows of one side that were asked about since ``best`` changed.
        numbers: uniform numbers of coming iterations (n, stock, k).
        unused: where in them the next iteration's are (n,).
    """

    def __init__(self, problem: Problem, row: Tensor, moves: Moves) -> None:
        self.row, self.y, self.moves = row, problem.y[row], moves
        self.best = problem.x[row]
        self.margin = torch.full_like(problem.eps[row], torch.inf)
        self.iteration = torch.full_like(row, -1)
        self.unused = torch.full_like(row, _STOCK)
        self.forget()

    def forget(self) -> None:
        """Windows have another side from now on."""
        shape = (len(self.row), self.moves.tickets())
        self.tried = torch.full(shape, _UNKNOWN, dtype=torch.int16, device=self.row.device)

    def first_time(self, ticket: Tensor) -> Tensor:
        """Whether windows (n, K) were not asked about yet, and are the first such among the K."""
        place = torch.arange(ticket.shape[1], dtype=torch.int16, device=ticket.device).expand_as(ticket)
        first = self.tried.scatter_reduce_(1, ticket, place, "amin").gather(1, ticket)
        self.tried.scatter_(1, ticket, torch.where(first == _KNOWN, _KNOWN, _UNKNOWN).to(torch.int16))
        return first == place

    def draw(self, source: Source, restart: int, ahead: int) -> Tensor:
        """The uniform numbers of the next ``ahead`` iterations of each search, (n, ahead, k)."""
        if int(self.unused.max()) + ahead > _STOCK:
            iteration = self.iteration[:, None] + torch.arange(_STOCK, device=self.row.device)
            each = self.row.repeat_interleave(_STOCK)
            draws = self.moves.shared_draws + self.moves.own_draws
            numbers = source.uniform(each, (draws,), restart, 1, iteration.flatten())
            self.numbers, self.unused = numbers.view(*iteration.shape, draws), torch.zeros_like(self.row)
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

    def __init__(self, options: Square, counted: CountedModel, seed: int) -> None:
        self.options = options
        self.counted = counted
        self.problem = counted.problem
        self.source: Source = source_for(options.random, seed, self.problem, _STREAM)
        self.best = self.problem.x.clone()
        self.margin = torch.full_like(self.problem.eps, torch.inf)
        self.broken = torch.zeros_like(self.problem.y, dtype=torch.bool)
        batch = default_batch_size(self.problem.x)
        self.room = max(1, _AHEAD * batch)
        self.held = _HELD * batch * self.problem.x.shape[2:].numel()

    def run(self) -> AttackResult:
        """All restarts, then the verification."""
        if not self.source.original:
            passes = len(self.problem) * self.options.queries
            self.counted.scorer = traced_forward(self.counted.model, self.problem.x, passes)
        with nullcontext() if self.source.original else fast_layout(self.counted.model, self.problem.x):
            wrong = misclassified(self.counted.clean_logits(), self.problem.y)
            self.broken |= wrong
            for restart in range(self.options.restarts):
                rows = (~self.broken).nonzero().squeeze(1)
                if len(rows):
                    self._search(rows, restart)
        return finish(self.counted, self.problem, self.best, clean_wrong=wrong, trace={"loss": -self.margin})

    def _search(self, rows: Tensor, restart: int) -> None:
        """One random search for the samples ``rows`` (n,)."""
        moves = moves_for(self.problem[rows], self.source.original)
        run = _Run(self.problem, rows, moves)
        pace = _Pace(self.problem.x[0])
        first = Given.of(moves.first(self.source, rows, restart))
        self._consider(run, first, first.changes, 1, pace)
        height, width = self.problem.x.shape[2:]
        before = 0
        for level, (start, stop) in enumerate(_levels(self.options.queries)):
            side = moves.side(math.sqrt(_SHARE / 2**level * height * width), min(height, width))
            if side != before:
                run.forget()
                before = side
            while len(run.row) and (run.iteration < stop).any():
                asks, ahead = self._pace(pace, len(run.row), side)
                ahead = min(ahead, stop - start)
                proposals = self._propose(run, side, restart, ahead)
                steps = torch.arange(ahead, device=rows.device)
                self._consider(run, proposals, run.iteration[:, None] + steps < stop, asks, pace)
        self._close(run)

    def _pace(self, pace: _Pace, searches: int, side: int) -> tuple[int, int]:
        """How many windows of a search to ask about, and to propose, at once."""
        if self.source.original:
            return 1, 1
        asks = pace.asks(searches, self.room)
        held = self.held // (searches * side**2)
        return asks, max(1, min(pace.windows(asks), held, _STOCK))

    def _propose(self, run: _Run, side: int, restart: int, ahead: int) -> Proposals:
        """The next ``ahead`` proposals of each search, all made from its present best."""
        shared, own = run.moves.shared_draws, run.moves.own_draws
        if self.source.original:
            numbers = self.source.shared(run.row, (shared,)).expand(len(run.row), -1)
            numbers = torch.cat([numbers, self.source.uniform(run.row, (own,))], 1)
            return Given.of(run.moves.propose_original(run.best, side, numbers))
        return run.moves.propose(run.best, side, run.draw(self.source, restart, ahead))

    def _consider(self, run: _Run, proposals: Proposals, valid: Tensor, asks: int, pace: _Pace) -> None:
        """Ask about the first ``asks`` of each search's ``valid`` (n, K) ``proposals`` that need it.

        The first better one of each search is kept.
        """
        ahead = valid.shape[1]
        fresh = valid & proposals.changes
        if proposals.ticket is not None:
            fresh &= run.first_time(proposals.ticket)
        reached = valid if ahead <= asks else valid & (fresh.cumsum(1) <= asks)
        ask = fresh & reached
        search, place = ask.nonzero(as_tuple=True)
        asked = proposals.images(search, place)
        margin, wrong, better = self._judge(run, search, asked)
        first = torch.where(better, place, ahead)
        first = torch.full_like(run.row, ahead).scatter_reduce_(0, search, first, "amin")
        chosen = (better & (place == first[search])).nonzero().squeeze(1)
        tried = torch.where(first < ahead, first + 1, reached.sum(1))
        # Those after the first better one are void.
        void = (ask & (torch.arange(ahead, device=ask.device) >= tried[:, None])).sum(1)
        self.counted.queries[run.row] -= void

        run.iteration += tried
        run.unused += tried
        kept = search[chosen]
        run.best[kept], run.margin[kept] = asked[chosen], margin[chosen]
        if proposals.ticket is not None:
            run.tried[search, proposals.ticket[search, place]] = _KNOWN
            run.tried[kept] = _UNKNOWN
        pace.note(int(reached.sum()), len(search), len(search) - int(void.sum()), len(kept))
        if wrong[chosen].any():
            broken = torch.zeros_like(run.row, dtype=torch.bool)
            broken[kept] = wrong[chosen]
            self.broken[run.row[broken]] = True
            self._close(run)
            run.keep(~broken)

    def _judge(self, run: _Run, search: Tensor, asked: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Margins (m,) of the images ``asked`` (m, ...) of searches (m,), whether they succeed, and are better."""
        if not len(search):
            return run.margin[:0], search > 0, search > 0
        logits, y, least = self.counted.logits(asked, run.row[search]), run.y[search], run.margin[search]
        if self.source.original:
            margin = -untargeted_margin(logits, y).to(least.dtype)
            wrong = margin <= 0
            return margin, wrong, (margin < least) | wrong
        own = logits.gather(1, y[:, None])
        margin = (own - logits.scatter(1, y[:, None], -torch.inf).amax(1, keepdim=True)).squeeze(1)
        wrong = (logits.argmax(1) != y) | margin.isnan()
        better = (margin < least - _NOISE * logits.abs().amax(1)) | wrong
        return margin.to(least.dtype), wrong, better

    def _close(self, run: _Run) -> None:
        """Write down where the searches have come to."""
        better = run.margin < self.margin[run.row]
        self.best[run.row[better]] = run.best[better]
        self.margin[run.row[better]] = run.margin[better]


def _levels(queries: int) -> list[tuple[int, int]]:
    """First and one past the last iteration of each window size."""
    starts = [0, *(after + 1 for after in _HALVED_AFTER if after + 1 < queries)]
    return list(zip(starts, [*starts[1:], queries], strict=True))


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
    random: str = "sample",
) -> AttackResult:
    """Square attack: windows of random colour (Linf) or of moved mass (L2, L1) are kept where they lower the margin.

    No gradients. Windows cover 80 % of the image at first, half as much after 10, 50, 200, 500, 1000, 2000 and 4000
    iterations. An iteration whose window changes nothing, or repeats one that the present best image has been tried
    with, costs no query: the model's outputs are taken not to be random.

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
    problem = validate_inputs(x, y, norm=norm, eps=eps, sample_ids=sample_ids)
    return in_batches(lambda batch: attack(model, batch, seed), problem, batch_size, random == "sample")
