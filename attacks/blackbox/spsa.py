"""Score-based attacks that estimate the gradient from queries: SPSA and NES."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from attacks.core import entry
from attacks.core.batching import default_batch_size, leave_every
from attacks.core.errors import AttackError
from attacks.core.inputs import Problem, validate_inputs
from attacks.core.losses import Loss, get_loss, misclassified
from attacks.core.model import CountedModel, Model
from attacks.core.model_state import fast_layout
from attacks.core.norms import per_sample
from attacks.core.pass_counts import repair
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
        model, x, y, norm, eps, seed, sample_ids: see `attacks`.
        queries: the most forward passes per image, the clean one included.
        samples: queries per gradient estimate, an even number.
        delta: how far the model is probed, in units of pixels.
        learning_rate: Adam's, the step of a pixel; default half of eps spread over all pixels.
        loss: what is raised: "margin", "ce", "dlr" or "mifpe".
        random_start: start uniform in the ball, else at ``x``.
        batch_size: the most images attacked at once; None chooses. It changes no result.

    Returns:
        The result; samples leave once misclassified. The trace holds "loss" (N,), that of the image returned.

    Raises:
        AttackError: wrong inputs, or a budget that does not suffice for one step.
    """
    problem = validate_inputs(x, y, norm=norm, eps=eps, sample_ids=sample_ids)
    options: dict[str, Any] = {"queries": queries, "samples": samples, "delta": delta, "loss": loss}
    options |= {"random_start": random_start, "seed": seed, "draw": Draws.signs}
    return in_batches(
        lambda part: _search(model, part, _Adam(part, learning_rate), **options), problem, batch_size
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
    options: dict[str, Any] = {"queries": queries, "samples": samples, "delta": delta, "loss": loss}
    options |= {"random_start": random_start, "seed": seed, "draw": Draws.normal}
    return in_batches(
        lambda part: _search(model, part, _Steepest(part, step_size), **options), problem, batch_size
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
        bias_first, bias_second = (1 - decay**step for decay in _DECAY)
        direction = (first / bias_first) / ((second / bias_second).sqrt() + 1e-8)
        return torch.addcmul(x_adv, direction, per_sample(self.rate[rows], x_adv))


def _search(
    model: Model,
    problem: Problem,
    climb: Callable[[Tensor, Problem, Tensor, Tensor, int], Tensor],
    *,
    draw: Callable[[Draws, tuple[int, ...]], Tensor],
    queries: int,
    samples: int,
    delta: float,
    loss: str,
    random_start: bool,
    seed: int,
) -> AttackResult:
    """Attack one batch by steps ``climb`` along gradients estimated within the budget, in directions of ``draw``."""
    if samples % 2:
        raise AttackError(f"samples must be even, they come in pairs x +- delta v; got {samples}")
    if queries < samples + 2:
        raise AttackError(
            f"queries={queries} does not suffice for one step of {samples} samples and two checks; "
            f"allow {samples + 2} or lower samples"
        )
    counted, objective = CountedModel(model, problem), get_loss(loss)
    best, best_loss = problem.x.clone(), torch.full_like(problem.eps, -torch.inf)
    shape = tuple(problem.x.shape[1:])
    with fast_layout(model, problem.x):
        clean_wrong = misclassified(counted.clean_logits(), problem.y)
        rows = (~clean_wrong).nonzero().squeeze(1)
        part = problem[rows]
        x_adv, draws = part.x, part.draws(seed)
        if random_start:
            x_adv = x_adv + part.norm.random(draws.fork(_START), shape, part.eps)
            x_adv = part.norm.confine(x_adv, part.x, part.eps)
        going, every = torch.ones_like(rows, dtype=torch.bool), leave_every(problem.x)
        for step in range(1, 1 + (queries - 1) // (samples + 1)):
            if not len(rows):
                break
            directions = draw(draws.fork(_DIRECTIONS, step - 1), (samples // 2, *shape)).to(x_adv.dtype)
            grad = _estimate(counted, objective, rows, x_adv, delta, directions)
            x_adv = part.norm.confine(climb(rows, part, x_adv, grad, step), part.x, part.eps)
            logits = counted.logits(x_adv, rows)
            value = objective(logits, part.y, None).to(best_loss.dtype)
            wrong = misclassified(logits, part.y)
            better = (wrong | (value > best_loss[rows])) & going
            best[rows] = torch.where(per_sample(better, x_adv), x_adv, best[rows])
            best_loss[rows] = torch.where(better, value, best_loss[rows])
            counted.queries[rows] -= ~going * (samples + 1)
            going &= ~wrong
            if step % every == 0:
                left = going.nonzero().squeeze(1)
                if len(left) < len(rows):
                    part, draws = part[left], draws[left]
                    rows, x_adv, going = rows[left], x_adv[left], going[left]
    return finish(counted, problem, best, clean_wrong=clean_wrong, trace={"loss": best_loss})


def _estimate(
    counted: CountedModel, loss: Loss, rows: Tensor, x_adv: Tensor, delta: float, directions: Tensor
) -> Tensor:
    """Gradient (n, C, H, W) from antithetic pairs along ``directions`` (n, samples / 2, C, H, W)."""
    probes = (x_adv[:, None] + delta * torch.cat([directions, -directions], dim=1)).clamp_(0, 1)
    logits = counted.many_logits(probes, rows, default_batch_size(x_adv))
    y = counted.problem.y[rows].repeat_interleave(probes.shape[1])
    ahead, behind = loss(logits.flatten(0, 1), y, None).view(len(rows), -1).chunk(2, dim=1)
    slope = ((ahead - behind) / (2 * delta)).to(x_adv.dtype)
    repaired = repair(slope)  # of a probe that the model answers with NaN or infinity
    slope = slope if repaired is None else repaired.grad
    return torch.einsum("np,np...->n...", slope, directions) / directions.shape[1]
