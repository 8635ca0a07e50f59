"""Adversarial images made on other models: momentum (MI), input diversity (DI), translation invariance (TI)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks.core import entry
from attacks.core.batching import Batches
from attacks.core.errors import AttackError
from attacks.core.inputs import Problem, validate_inputs
from attacks.core.losses import Loss, get_loss, misclassified
from attacks.core.memory_format import fast_layout
from attacks.core.model import CountedModel, Model, check_labels, forward, frozen
from attacks.core.norms import per_sample
from attacks.core.result import AttackResult, finish
from attacks.core.rng import Draws


@entry.attack
def transfer(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    sources: Sequence[Model],
    norm: str,
    eps: float | Tensor,
    batch_size: int | None = None,
    **options: Any,
) -> AttackResult:
    """Attack ``model`` by images made on ``sources`` with `transfer_images`, which documents the ``options``.

    The attacked model is asked about the clean image alone, a single query.

    Raises:
        AttackError: wrong inputs, or a source without gradients.
    """
    images = transfer_images(sources, x, y, norm=norm, eps=eps, batch_size=batch_size, **options)
    return judge(model, x, y, images, norm=norm, eps=eps, batch_size=batch_size)


@entry.attack
def judge(
    model: Model,
    x: Tensor,
    y: Tensor,
    images: Tensor,
    *,
    norm: str,
    eps: float | Tensor,
    batch_size: int | None = None,
) -> AttackResult:
    """The verified outcome of ``images`` (N, C, H, W), made elsewhere, as an attack on ``model``; one query each.

    Raises:
        AttackError: wrong inputs.
    """
    problem = validate_inputs(x, y, norm=norm, eps=eps)
    if images.shape != x.shape or images.device != x.device:
        raise AttackError(f"images must be like x, {tuple(x.shape)} on {x.device}; got {tuple(images.shape)}")
    batches = Batches(problem.x, batch_size)
    counted = CountedModel(model, problem)
    rows = torch.arange(len(problem), device=x.device)
    clean = torch.cat(batches.map(lambda part: counted.logits(problem.x[part], part), rows))
    check_labels(problem, clean.shape[1])
    clean_wrong = misclassified(clean, problem.y)
    return finish(counted, problem, images.detach(), clean_wrong=clean_wrong, batches=batches)


@entry.attack
def transfer_images(
    sources: Sequence[Model],
    x: Tensor,
    y: Tensor,
    *,
    norm: str,
    eps: float | Tensor,
    steps: int = 10,
    step_size: float | None = None,
    loss: str = "ce",
    momentum: float = 1.0,
    diversity: float = 0.5,
    smallest: float = 0.9,
    kernel: int = 1,
    targets: Tensor | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    sample_ids: Tensor | None = None,
) -> Tensor:
    """Images (N, C, H, W) that fool one or several source models, made to fool others too.

    Each step goes along ``g <- momentum * g + grad / sum(abs(grad))`` (Dong et al. 2018), with the gradient of the
    loss of the sources' mean logits, taken at an image that is, by chance, shrunk and moved (Xie et al. 2019), and
    smoothed over neighbouring pixels (Dong et al. 2019).

    Args:
        x, y, norm, eps, batch_size, seed, sample_ids: see `attacks`.
        sources: models to climb on, images (n, C, H, W) in [0, 1] to logits (n, K).
        steps: gradient steps from ``x``.
        step_size: length of a step; default eps / steps.
        loss: what is raised: "ce", "margin", "dlr" or "mifpe".
        momentum: decay of the gathered gradient; 0 is plain PGD (MI off).
        diversity: chance that a step looks at a shrunk and moved image; 0 is DI off.
        smallest: factor in (0, 1] of the smallest such image.
        kernel: side of the Gaussian that smooths the gradient, odd; 1 is TI off, 7 is usual for small images.
        targets: classes (N,) to move towards.

    Raises:
        AttackError: wrong inputs, or a source without gradients.
    """
    problem = validate_inputs(x, y, norm=norm, eps=eps, targets=targets, sample_ids=sample_ids)
    if not sources:
        raise AttackError("no source models; give at least one to make the images on")
    if kernel % 2 == 0:
        raise AttackError(f"kernel must be odd, got {kernel}")
    climb = _Climb(get_loss(loss), steps, step_size, momentum, diversity, smallest, kernel, seed)
    together = _Sources(sources)
    with frozen(together), fast_layout(together, problem.x):
        rows = torch.arange(len(problem), device=x.device)
        return torch.cat(
            Batches(problem.x, batch_size).map(lambda part: climb(together, problem[part]), rows)
        )


def _as_it_is(images: Tensor) -> Tensor:
    return images


class _Sources(nn.Module):
    """Mean logits of several models, which look at the image through ``view``."""

    view: Callable[[Tensor], Tensor]

    def __init__(self, models: Sequence[Model]) -> None:
        super().__init__()
        self.models = models
        self.known = nn.ModuleList(model for model in models if isinstance(model, nn.Module))
        self.view = _as_it_is

    def forward(self, x: Tensor) -> Tensor:
        seen = self.view(x)
        return torch.stack([model(seen) for model in self.models]).mean(0)


@dataclass(frozen=True)
class _Climb:
    """The iteration of `transfer_images` on one batch."""

    loss: Loss
    steps: int
    step_size: float | None
    momentum: float
    diversity: float
    smallest: float
    kernel: int
    seed: int

    def __call__(self, sources: _Sources, problem: Problem) -> Tensor:
        counted = CountedModel(sources, problem)
        draws = problem.draws(self.seed)
        length = (
            problem.eps / self.steps
            if self.step_size is None
            else torch.full_like(problem.eps, self.step_size)
        )

        def objective(logits: Tensor) -> Tensor:
            return self.loss(logits, problem.y, problem.targets)

        sources.view = _as_it_is
        check_labels(problem, forward(sources, problem.x[:1]).shape[1])
        x_adv, gathered = problem.x, torch.zeros_like(problem.x)
        for step in range(self.steps):
            sources.view = self._view(draws.fork(step), problem.x)
            grad = self._smooth(counted.gradient(x_adv, objective).grad)
            size = grad.flatten(1).abs().sum(1).clamp_min(torch.finfo(grad.dtype).tiny)
            gathered = self.momentum * gathered + grad / per_sample(size, grad)
            x_adv = problem.norm.confine(problem.norm.ascend(x_adv, gathered, length), problem.x, problem.eps)
        return x_adv

    def _view(self, draws: Draws, x: Tensor) -> Callable[[Tensor], Tensor]:
        """How a step looks at its images: each, by chance, shrunk and moved on a black ground."""
        if not self.diversity or x.ndim != 4:
            return _as_it_is
        chance, size, right, down = draws.uniform((4,)).to(x.dtype).unbind(1)
        scale = torch.where(chance < self.diversity, self.smallest + (1 - self.smallest) * size, 1)
        # In the sampler's units, in which the image spans -1..1, a pixel at p comes from (p - move) / scale.
        move = (1 - scale)[:, None] * (2 * torch.stack([right, down], 1) - 1)
        shrink = torch.eye(2, dtype=x.dtype, device=x.device) / scale[:, None, None]
        matrix = torch.cat([shrink, -(move / scale[:, None])[:, :, None]], dim=2)
        grid = F.affine_grid(matrix, list(x.shape), align_corners=False)
        return lambda images: F.grid_sample(images, grid, align_corners=False)

    def _smooth(self, grad: Tensor) -> Tensor:
        """Convolve the gradient with a Gaussian whose edge lies at three standard deviations."""
        if self.kernel == 1 or grad.ndim != 4:
            return grad
        bell = torch.exp(
            -torch.linspace(-3, 3, self.kernel, dtype=grad.dtype, device=grad.device).square() / 2
        )
        bell = bell / bell.sum()
        channels = grad.shape[1]
        weight = (bell[:, None] * bell).expand(channels, 1, -1, -1)
        return F.conv2d(grad, weight, padding=self.kernel // 2, groups=channels)
