"""Adversarial images made on other models: momentum (MI), input diversity (DI), translation invariance (TI)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks.core import entry
from attacks.core.batching import Batches
from attacks.core.errors import AttackError
from attacks.core.inputs import validate_inputs
from attacks.core.losses import get_loss, misclassified
from attacks.core.model import CountedModel, Model, check_labels, forward
from attacks.core.model_state import fast_layout, frozen
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

    The attacked model is asked about the clean image alone, a single query. The trace's "nonfinite_gradient" and
    "not_attacked" (N,) are of the sources' gradients.

    Raises:
        AttackError: wrong inputs, or a source without gradients.
    """
    trace: dict[str, Tensor] = {}
    images = transfer_images(sources, x, y, norm=norm, eps=eps, batch_size=batch_size, trace=trace, **options)
    result = judge(model, x, y, images, norm=norm, eps=eps, batch_size=batch_size)
    result.trace["nonfinite_gradient"] = trace["nonfinite_gradient"]
    result.trace["not_attacked"] = trace["no_gradient"] & ~result.success
    return result


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
    counted, batches = CountedModel(model, problem), Batches(problem.x, batch_size)
    clean_wrong = misclassified(counted.clean_logits(batches), problem.y)
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
    trace: dict[str, Tensor] | None = None,
) -> Tensor:
    """Images (N, C, H, W) that fool one or several source models, made to fool others too.

    Each step goes along ``g <- momentum * g + grad / sum(abs(grad))`` (Dong et al. 2018), with the gradient of the
    loss of the sources' mean logits, taken at an image that is, by chance, shrunk and moved (Xie et al. 2019), and
    smoothed over neighbouring pixels (Dong et al. 2019).

    Args:
        x, y, norm, eps, batch_size, seed, sample_ids: see `attacks`.
        sources: models like ``model``, whose loss is raised.
        steps: gradient steps from ``x``.
        step_size: length of a step; default eps / steps.
        loss: what is raised: "ce", "margin", "dlr" or "mifpe".
        momentum: decay of the gathered gradient; 0 is plain PGD (MI off).
        diversity: chance that a step looks at a shrunk and moved image; 0 is DI off.
        smallest: factor in (0, 1] of the smallest such image.
        kernel: side of the Gaussian that smooths the gradient, odd; 1 is TI off, 7 is usual for small images.
        targets: classes (N,) to move towards.
        trace: takes up "nonfinite_gradient" (N,), the share of gradients with infinite or NaN entries, and
            "no_gradient" (N,) bool, none had anything else.

    Raises:
        AttackError: wrong inputs, or a source without gradients.
    """
    problem = validate_inputs(x, y, norm=norm, eps=eps, targets=targets, sample_ids=sample_ids)
    if not sources:
        raise AttackError("no source models; give at least one to make the images on")
    if kernel % 2 == 0:
        raise AttackError(f"kernel must be odd, got {kernel}")
    length = problem.eps / steps if step_size is None else torch.full_like(problem.eps, step_size)
    together, streams, objective = _Sources(sources), problem.draws(seed), get_loss(loss)

    def ascend(rows: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The images of these samples, and what to know of the gradients."""
        part, draws = problem[rows], streams[rows]
        counted = CountedModel(together, part)
        together.view = _as_it_is
        check_labels(part, forward(together, part.x[:1]).shape[1])
        x_adv, gathered = part.x, torch.zeros_like(part.x)
        for step in range(steps):
            together.view = random_view(draws.fork(step), part.x, diversity, smallest)
            grad = counted.gradient(x_adv, lambda logits: objective(logits, part.y, part.targets)).grad
            grad = smooth(grad, kernel)
            size = grad.flatten(1).abs().sum(1).clamp_min(torch.finfo(grad.dtype).tiny)
            gathered = momentum * gathered + grad / per_sample(size, grad)
            x_adv = part.norm.confine(part.norm.ascend(x_adv, gathered, length[rows]), part.x, part.eps)
        return x_adv, counted.trace()

    with frozen(together), fast_layout(together, problem.x):
        parts = Batches(problem.x, batch_size).map(ascend)
    if trace is not None:
        trace |= {name: torch.cat([found[name] for _, found in parts]) for name in parts[0][1]}
    return torch.cat([images for images, _ in parts])


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


def random_view(draws: Draws, x: Tensor, diversity: float, smallest: float) -> Callable[[Tensor], Tensor]:
    """How a step looks at images like ``x`` (n, ...): each, by chance, shrunk and moved on a black ground."""
    if not diversity or x.ndim != 4:
        return _as_it_is
    chance, size, right, down = draws.uniform((4,)).to(x.dtype).unbind(1)
    scale = torch.where(chance < diversity, smallest + (1 - smallest) * size, 1)
    # In the sampler's units, in which the image spans -1..1, a pixel at p comes from (p - move) / scale.
    move = (1 - scale)[:, None] * (2 * torch.stack([right, down], 1) - 1)
    shrink = torch.eye(2, dtype=x.dtype, device=x.device) / scale[:, None, None]
    matrix = torch.cat([shrink, -(move / scale[:, None])[:, :, None]], dim=2)
    grid = F.affine_grid(matrix, list(x.shape), align_corners=False)
    return lambda images: F.grid_sample(images, grid, align_corners=False)


def smooth(grad: Tensor, kernel: int) -> Tensor:
    """Convolve the gradient (n, C, H, W) with a Gaussian of this side, whose edge lies at three standard deviations."""
    if kernel == 1 or grad.ndim != 4:
        return grad
    bell = torch.exp(-torch.linspace(-3, 3, kernel, dtype=grad.dtype, device=grad.device).square() / 2)
    bell = bell / bell.sum()
    channels = grad.shape[1]
    weight = (bell[:, None] * bell).expand(channels, 1, -1, -1)
    return F.conv2d(grad, weight, padding=kernel // 2, groups=channels)
