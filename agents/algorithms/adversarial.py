"""Adversarial training: the attack inside the training step, and the three ways in which its images enter the loss.

The attack is the literature's, without what a verified attack needs: no copies to the host, no early stop, no
per-sample random streams. Random starts come from PyTorch's global generator, so that a resumed run repeats them.

While images are crafted, parameters need no gradient, dropout is off, and BatchNorm uses its running statistics and
keeps them: the attack aims at the classifier that will be deployed, one batch's neighbours do not leak into an image's
gradient, and the running statistics stay those of images that were trained on (Pang et al. 2021 find crafting in eval
mode slightly better).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from agents.adversarial_config import AdversarialConfig, default_step_size
from agents.models.layers import in_mode
from attacks.core.model_state import frozen
from attacks.core.norms import Norm, get_norm
from attacks.core.rng import Draws
from envs.errors import InputError

Objective = Callable[[Tensor], Tensor]
_Start = Literal["clean", "random", "gaussian", "gaussian-unclipped"]
_TRADES_NOISE = 0.001  # standard deviation; at the clean image itself the divergence has no gradient


class GlobalDraws(Draws):
    """The draws that a `Norm` asks for, from PyTorch's global generator: one stream, cheap, restored on resume."""

    def fork(self, *path: int | Tensor) -> "GlobalDraws":
        """Return itself: every draw is new anyway."""
        return self

    def uniform(self, shape: tuple[int, ...] = ()) -> Tensor:
        """Return float32 (N, *shape), uniform in [0, 1)."""
        return torch.rand(len(self), *shape, device=self.keys.device)

    def normal(self, shape: tuple[int, ...] = ()) -> Tensor:
        """Return float32 (N, *shape), standard normal."""
        return torch.randn(len(self), *shape, device=self.keys.device)

    def signs(self, shape: tuple[int, ...] = ()) -> Tensor:
        """Return float32 (N, *shape), -1 or +1 with equal chance."""
        return torch.randint(0, 2, (len(self), *shape), device=self.keys.device).float().mul_(2).sub_(1)


@dataclass(frozen=True)
class Ascent:
    """The attack inside the training step: steepest ascent of an objective inside the ball and [0, 1]."""

    norm: Norm  #: of the ball
    eps: float  #: its radius, in units of pixels in [0, 1]
    steps: int  #: gradient steps
    step_size: float  #: length of one, in the same units
    #: ``clean`` (FGSM), ``random`` (uniform in the ball: Madry et al. 2018), or noise of deviation .001 (TRADES):
    #: ``gaussian``, clipped to the ball and [0, 1], or ``gaussian-unclipped``, as in its authors' code
    start: _Start

    def climb(self, objective: Objective, pixels: Tensor) -> Tensor:
        """Return attacked images; one forward and one backward pass per step, and nothing waits for the device.

        Args:
            objective: from images ``(N, C, H, W)`` to a scalar, the sum or mean of per-image objectives.
            pixels: float images in [0, 1], ``(N, C, H, W)``.
        """
        eps, step = (pixels.new_full((len(pixels),), value) for value in (self.eps, self.step_size))
        # One buffer with the strides of `pixels`: arithmetic may lose channels_last where C is 1, and convolutions then
        # take 1.7 times as long.
        attacked = torch.empty_like(pixels)
        if self.start == "clean":
            attacked.copy_(pixels)
        elif self.start == "random":
            draws = GlobalDraws(torch.empty(len(pixels), dtype=torch.int64, device=pixels.device))
            moved = pixels + self.norm.random(draws, tuple(pixels.shape[1:]), eps)
            attacked.copy_(self.norm.confine(moved, pixels, eps))
        else:
            moved = pixels + _TRADES_NOISE * torch.randn_like(pixels)
            attacked.copy_(self.norm.confine(moved, pixels, eps) if self.start == "gaussian" else moved)
        for _ in range(self.steps):
            leaf = attacked.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(objective(leaf), leaf)
            attacked.copy_(self.norm.confine(self.norm.ascend(attacked, gradient, step), pixels, eps))
        return attacked


def make_ascent(
    norm: str, eps: float, steps: int, step_size: float | None, start: str, shape: tuple[int, ...]
) -> Ascent:
    """Return the attack for images of ``shape`` (C, H, W); ``step_size`` None means 2.5 eps / steps, at most 1.25 eps.

    Raises:
        InputError: a radius, step or start is out of range.
        AttackError: the norm is unknown.
    """
    chosen = get_norm(norm)
    diameter = chosen.diameter(torch.Size(shape).numel())
    if not 0 < eps <= diameter:
        raise InputError(
            f"eps is {eps:g}; expected above 0 and at most {diameter:g}, the {norm} diameter of {shape} images in "
            "[0, 1]; on the 0..255 scale, divide by 255"
        )
    if steps < 1:
        raise InputError(f"steps is {steps}; expected at least 1")
    if step_size is not None and not step_size > 0:
        raise InputError(f"step_size is {step_size}; expected a number above 0")
    if start not in get_args(_Start):
        raise InputError(f"start is {start!r}; expected one of {', '.join(get_args(_Start))}")
    return Ascent(chosen, eps, steps, step_size or default_step_size(eps, steps), start)  # type: ignore[arg-type]


@dataclass(frozen=True)
class AdversarialTraining:
    """One regime of adversarial training, as `SinglePassAlgorithm.adversarial` takes it."""

    ascent: Ascent  #: the attack
    #: ``add``: L(x) + weight L(x_adv). ``replace``: L(x_adv). ``trades``: L(x) + weight KL(p(x) || p(x_adv))
    rule: Literal["add", "replace", "trades"] = "replace"
    weight: float = 1.0  #: of the adversarial term; unused by ``replace``
    #: what the attack raises under ``add`` and ``replace``: the algorithm's ``own`` loss, or ``ce``
    objective: Literal["own", "ce"] = "ce"
    share: float = 1.0  #: of the images that ``replace`` attacks
    begins: int = 0  #: images trained on before the first attack


def plan(config: AdversarialConfig, shape: tuple[int, ...], train_size: int) -> AdversarialTraining:
    """Return the regime that the options describe, for images of ``shape`` and passes of ``train_size`` images.

    Raises:
        InputError: the radius is larger than the images allow.
    """
    values: Any = config.resolved(shape[0])
    start = {"fgsm": "clean", "pgd": "random", "trades": "gaussian"}[config.method]
    if config.trades_start == "official":
        start = "gaussian-unclipped"
    ball = {name: values[name] for name in ("norm", "eps", "steps", "step_size")}
    return AdversarialTraining(
        make_ascent(**ball, start=start, shape=shape),
        config.rule,
        config.full_weight(),
        config.full_objective(),
        values["share"],
        round(values["start"] * train_size),
    )


@contextmanager
def crafting(module: nn.Module) -> Iterator[None]:
    """Within this context ``module`` is as attacks need it: eval mode, frozen parameters, gradients on."""
    with in_mode(False, module), frozen(module), torch.enable_grad():
        yield
