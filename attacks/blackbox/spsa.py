"""Score-based attacks that estimate the gradient from queries: SPSA and NES."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.core import entry
from attacks.core.batching import default_batch_size
from attacks.core.errors import AttackError
from attacks.core.inputs import Problem, at_least_one, validate_inputs
from attacks.core.losses import Loss, get_loss, misclassified
from attacks.core.memory_format import fast_layout
from attacks.core.model import CountedModel, Model
from attacks.core.norms import per_sample
from attacks.core.repair import repair
from attacks.core.result import AttackResult, finish, in_batches
from attacks.core.rng import Draws

_DECAY = (0.9, 0.999)  # of Adam's first and second moment
_START, _DIRECTIONS = 0, 1  # branches of the random streams


@entry.attack
def spsa(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    norm: str,
    eps: float | Tensor,
    queries: int = 5000,
    samples: int = 64,
    delta: float = 0.01,
    learning_rate: float | None = None,
    loss: str = "margin",
    random_start: bool = True,
    batch_size: int | None = None,
    seed: int = 0,
    sample_ids: Tensor | None = None,
) -> AttackResult:
    """Simultaneous perturbation stochastic approximation with Adam (Uesato et al. 2018).

    The gradient is the mean of v * (L(x + delta v) - L(x - delta v)) / (2 delta) over random signs v.

    Args:
        model: images (n, C, H, W) in [0, 1] to logits (n, K); no gradient is asked of it.
        x: images (N, C, H, W), floats in [0, 1].
        y: labels (N,) int64.
        norm: "Linf", "L2" or "L1".
        eps: radius in units of pixels, one for all or per sample (N,).
        queries: the most forward passes per image, the clean one included.
        samples: queries per gradient estimate, an even number.
        delta: how far the model is probed, in units of pixels.
        learning_rate: Adam's, the step of a pixel; default half of eps spread over all pixels.
        loss: what is raised: "margin", "ce", "dlr" or "mifpe".
        random_start: start uniform in the ball, else at ``x``.
        batch_size: the most images attacked at once; None chooses. It changes no result.
        seed: seeds all draws.
        sample_ids: integers (N,) that the random numbers of each sample hang on; default 0..N-1.

    Returns:
        The result; samples leave once misclassified. The trace holds "loss" (N,), that of the image returned.

    Raises:
        AttackError: wrong inputs, or a budget that does not suffice for one step.
    """
    problem = validate_inputs(x, y, norm=norm, eps=eps, sample_ids=sample_ids)
    search = _Search(get_loss(loss), queries, samples, delta, random_start, seed)
    return in_batches(
        lambda batch: search.attack(model, batch, Draws.signs, _Adam(batch, learning_rate)),
        problem,
        batch_size,
    )


@entry.attack
def nes(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    norm: str,
    eps: float | Tensor,
    queries: int = 5000,
    samples: int = 64,
    delta: float = 0.01,
    step_size: float | None = None,
    loss: str = "margin",
    random_start: bool = True,
    batch_size: int | None = None,
    seed: int = 0,
    sample_ids: Tensor | None = None,
) -> AttackResult:
    """Natural evolution strategies with projected steepest steps (Ilyas et al. 2018, sec. 2.1).

    As `spsa`, but with Gaussian directions v in pairs, and steps of the length ``step_size`` (default eps / 8).
    """
    problem = validate_inputs(x, y, norm=norm, eps=eps, sample_ids=sample_ids)
    search = _Search(get_loss(loss), queries, samples, delta, random_start, seed)
    return in_batches(
        lambda batch: search.attack(model, batch, Draws.normal, _Steepest(batch, step_size)),
        problem,
        batch_size,
    )


class _Steepest:
    """Moves by steepest steps of one length."""

    def __init__(self, problem: Problem, step_size: float | None) -> None:
        self.length = problem.eps / 8 if step_size is None else torch.full_like(problem.eps, step_size)

    def __call__(self, rows: Tensor, part: Problem, x_adv: Tensor, grad: Tensor, step: int) -> Tensor:
        return part.norm.ascend(x_adv, grad, self.length[rows])


class _Adam:
    """Moves by Adam (Kingma and Ba 2015), upwards, with moments of each sample's own."""

    def __init__(self, problem: Problem, learning_rate: float | None) -> None:
        share = problem.eps / (2 * problem.norm.diameter(problem.x[0].numel()))
        self.rate = share if learning_rate is None else torch.full_like(share, learning_rate)
        self.first = torch.zeros_like(problem.x)
        self.second = torch.zeros_like(problem.x)

    def __call__(self, rows: Tensor, part: Problem, x_adv: Tensor, grad: Tensor, step: int) -> Tensor:
        first = self.first[rows].lerp_(grad, 1 - _DECAY[0])
        second = self.second[rows].lerp_(grad.square(), 1 - _DECAY[1])
        self.first[rows], self.second[rows] = first, second
        bias_first, bias_second = (1 - decay ** (step + 1) for decay in _DECAY)
        direction = (first / bias_first) / ((second / bias_second).sqrt() + 1e-8)
        return torch.addcmul(x_adv, direction, per_sample(self.rate[rows], x_adv))


@dataclass(frozen=True)
class _Search:
    """Climbs along estimated gradients within a budget of queries."""

    loss: Loss
    queries: int
    samples: int
    delta: float
    random_start: bool
    seed: int

    def __post_init__(self) -> None:
        if at_least_one("samples", self.samples) % 2:
            raise AttackError(f"samples must be even, they come in pairs x +- delta v; got {self.samples}")
        if at_least_one("queries", self.queries) < self.samples + 2:
            raise AttackError(
                f"queries={self.queries} does not suffice for one step of {self.samples} samples and two checks; "
                f"allow {self.samples + 2} or lower samples"
            )
        if not self.delta > 0:
            raise AttackError(f"delta must be positive, got {self.delta}")

    def attack(
        self,
        model: Model,
        problem: Problem,
        draw: Callable[[Draws, tuple[int, ...]], Tensor],
        climb: Callable[[Tensor, Problem, Tensor, Tensor, int], Tensor],
    ) -> AttackResult:
        """Attack one batch with directions by ``draw`` and steps by ``climb``."""
        counted = CountedModel(model, problem)
        best, best_loss = problem.x.clone(), torch.full_like(problem.eps, -torch.inf)
        draws = problem.draws(self.seed)
        shape = (self.samples // 2, *problem.x.shape[1:])
        with fast_layout(model, problem.x):
            clean_wrong = misclassified(counted.clean_logits(), problem.y)
            rows = (~clean_wrong).nonzero().squeeze(1)
            x_adv = self._start(problem[rows], draws[rows])
            for step in range((self.queries - 1) // (self.samples + 1)):
                if not len(rows):
                    break
                part = problem[rows]
                directions = draw(draws[rows].fork(_DIRECTIONS, step), shape).to(x_adv.dtype)
                grad = self._estimate(counted, part, rows, x_adv, directions)
                x_adv = part.norm.confine(climb(rows, part, x_adv, grad, step), part.x, part.eps)
                logits = counted.logits(x_adv, rows)
                loss = self.loss(logits, part.y, None).to(best_loss.dtype)
                wrong = misclassified(logits, part.y)
                better = wrong | (loss > best_loss[rows])
                best[rows] = torch.where(per_sample(better, x_adv), x_adv, best[rows])
                best_loss[rows] = torch.where(better, loss, best_loss[rows])
                rows, x_adv = rows[~wrong], x_adv[~wrong]
        return finish(counted, problem, best, clean_wrong=clean_wrong, trace={"loss": best_loss})

    def _start(self, problem: Problem, draws: Draws) -> Tensor:
        if not self.random_start:
            return problem.x
        delta = problem.norm.random(draws.fork(_START), tuple(problem.x.shape[1:]), problem.eps)
        return problem.norm.confine(problem.x + delta, problem.x, problem.eps)

    def _estimate(
        self, counted: CountedModel, part: Problem, rows: Tensor, x_adv: Tensor, directions: Tensor
    ) -> Tensor:
        """Gradient (n, C, H, W) from antithetic pairs along ``directions`` (n, samples / 2, C, H, W)."""
        probes = self.delta * torch.cat([directions, -directions], dim=1)
        probes = (x_adv[:, None] + probes).clamp_(0, 1)
        logits = counted.many_logits(probes, rows, default_batch_size(x_adv))
        loss = self.loss(logits.flatten(0, 1), part.y.repeat_interleave(self.samples), None)
        ahead, behind = loss.view(len(rows), self.samples).chunk(2, dim=1)
        slope = ((ahead - behind) / (2 * self.delta)).to(x_adv.dtype)
        repaired = repair(slope)  # of a probe that the model answers with NaN or infinity
        slope = slope if repaired is None else repaired.grad
        return torch.einsum("np,np...->n...", slope, directions) / directions.shape[1]
