"""Threat models: the Linf, L2 and L1 balls around each image, and the box [0, 1] of valid pixels.

A norm is looked up once, `get_norm("L2")`, and then knows its length, projections, steepest step and uniform draws.
Perturbations ``delta`` have any shape (N, ...); radii ``eps`` are per sample (N,), in units of pixels.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from attacks.core.errors import unknown_name
from attacks.core.projections import threshold
from attacks.core.rng import Draws

_EXACT_FROM = 4096  # values of an image: float32 sums of more of them lose too many digits
_ORDERS = {"Linf": math.inf, "L2": 2, "L1": 1}
DUAL = {"Linf": "L1", "L2": "L2", "L1": "Linf"}  # the norm of gradients where perturbations have this one


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """View ``values`` (N,) as (N, 1, ..., 1), so that they broadcast against ``like`` (N, ...)."""
    return values.view(-1, *(1,) * (like.ndim - 1))


def _dims(delta: Tensor) -> tuple[int, ...]:
    return tuple(range(1, delta.ndim))


class Norm(ABC):
    """One way to measure perturbations."""

    name: ClassVar[str]

    @abstractmethod
    def length(self, delta: Tensor) -> Tensor:
        """The norm of each perturbation, (N,)."""

    def project(self, delta: Tensor, eps: Tensor) -> Tensor:
        """The nearest point (Euclidean) of the ball of radius ``eps`` to each perturbation."""
        free = torch.full_like(delta, math.inf)
        return self.project_box(delta, -free, free, eps)

    @abstractmethod
    def project_box(self, delta: Tensor, lower: Tensor, upper: Tensor, eps: Tensor) -> Tensor:
        """The nearest point (Euclidean) of the ball that also lies in ``lower <= delta <= upper``.

        ``lower <= 0 <= upper``, both shaped like ``delta``.
        """

    @abstractmethod
    def step(self, grad: Tensor) -> Tensor:
        """The direction of unit length that raises a loss with this gradient fastest; 0 where the gradient is 0."""

    def ascend(self, x_adv: Tensor, grad: Tensor, step: Tensor) -> Tensor:
        """The images (N, ...) moved by the steepest step of length ``step`` (N,); it may leave ball and box."""
        return torch.addcmul(x_adv, self.step(grad), per_sample(step, x_adv))

    def confine(self, x_adv: Tensor, x: Tensor, eps: Tensor) -> Tensor:
        """A point inside ball and [0, 1] near ``x_adv``, see `within`."""
        return self.within(x, eps)(x_adv)

    @abstractmethod
    def within(self, x: Tensor, eps: Tensor, box: bool = True) -> Callable[[Tensor], Tensor]:
        """What brings points into the ball of radius ``eps`` (N,) around ``x`` (N, ...), then into [0, 1] if ``box``.

        Clipping cannot leave the ball, because ``x`` lies in the box. At Linf and L1 it is the nearest point.
        """

    @abstractmethod
    def random(self, draws: Draws, shape: tuple[int, ...], eps: Tensor) -> Tensor:
        """Perturbations (N, *shape) uniform in the ball of radius ``eps`` (N,)."""

    @abstractmethod
    def diameter(self, pixels: int) -> float:
        """The length of the longest perturbation that an image of ``pixels`` values in [0, 1] allows."""


class _Linf(Norm):
    """The largest change of a pixel."""

    name = "Linf"

    def length(self, delta: Tensor) -> Tensor:
        return torch.linalg.vector_norm(delta, ord=math.inf, dim=_dims(delta))

    def project_box(self, delta: Tensor, lower: Tensor, upper: Tensor, eps: Tensor) -> Tensor:
        radius = per_sample(eps, delta)
        return torch.clamp(delta, torch.maximum(lower, -radius), torch.minimum(upper, radius))

    def within(self, x: Tensor, eps: Tensor, box: bool = True) -> Callable[[Tensor], Tensor]:
        radius = per_sample(eps, x)
        lower = (x - radius).clamp_min_(0 if box else -math.inf)
        upper = (x + radius).clamp_max_(1 if box else math.inf)
        return lambda x_adv: torch.clamp(x_adv, lower, upper)

    def step(self, grad: Tensor) -> Tensor:
        return grad.sign()

    def random(self, draws: Draws, shape: tuple[int, ...], eps: Tensor) -> Tensor:
        uniform = draws.uniform(shape).to(eps.dtype)
        return (2 * uniform - 1) * per_sample(eps, uniform)

    def diameter(self, pixels: int) -> float:
        return 1.0


class _L2(Norm):
    """Euclidean length."""

    name = "L2"

    def length(self, delta: Tensor) -> Tensor:
        return _summed(delta, 2)

    def project(self, delta: Tensor, eps: Tensor) -> Tensor:
        return delta * per_sample(_shrink(self.length(delta), eps), delta)

    def within(self, x: Tensor, eps: Tensor, box: bool = True) -> Callable[[Tensor], Tensor]:
        least = eps.clamp_min(_tiny(eps))

        def confined(x_adv: Tensor) -> Tensor:
            delta = x_adv - x
            share = eps / torch.maximum(self.length(delta), least)
            moved = torch.addcmul(x, delta, per_sample(share, x))
            return moved.clamp_(0, 1) if box else moved

        return confined

    def project_box(self, delta: Tensor, lower: Tensor, upper: Tensor, eps: Tensor) -> Tensor:
        """By the optimality conditions the answer is clip(s * delta) for one s in [0, 1], found among the sorted
        values of s at which a pixel reaches its bound.
        """
        clipped = torch.clamp(delta, lower, upper)
        flat, room = delta.abs().flatten(1), torch.where(delta > 0, upper, -lower).flatten(1)
        reach = torch.where(flat > 0, room / flat, math.inf)
        order = reach.argsort(dim=1)
        reach = reach.gather(1, order)
        bound = room.square().gather(1, order).cumsum(1)
        moving = flat.square().gather(1, order).flip(1).cumsum(1).flip(1)
        # Squared length when s is the k-th reach: pixels up to k at their bounds, the others scaled.
        after = torch.cat([moving[:, 1:], torch.zeros_like(moving[:, :1])], dim=1)
        length2 = bound + reach.nan_to_num(posinf=0).square() * after
        radius2 = eps.square()[:, None]
        k = ((length2 < radius2) & reach.isfinite()).sum(1, keepdim=True)
        held = torch.where(k > 0, bound.gather(1, (k - 1).clamp_min(0)), 0)
        free = moving.gather(1, k.clamp_max(flat.shape[1] - 1))
        s = ((radius2 - held).clamp_min(0) / free.clamp_min(torch.finfo(free.dtype).tiny)).sqrt()
        scaled = torch.clamp(delta * per_sample(s.squeeze(1), delta), lower, upper)
        return torch.where(per_sample(self.length(clipped) > eps, delta), self.project(scaled, eps), clipped)

    def step(self, grad: Tensor) -> Tensor:
        # Squares of gradients under 1e-19 leave float32.
        length = torch.linalg.vector_norm(grad, dim=_dims(grad), dtype=torch.float64)
        least = _tiny(grad) * torch.finfo(grad.dtype).eps
        return grad / per_sample(length.clamp_min_(least).to(grad.dtype), grad)

    def random(self, draws: Draws, shape: tuple[int, ...], eps: Tensor) -> Tensor:
        direction = draws.fork(0).normal(shape).to(eps.dtype)
        radius = draws.fork(1).uniform().to(eps.dtype) ** (1 / math.prod(shape))
        return direction * per_sample(eps * radius / self.length(direction), direction)

    def diameter(self, pixels: int) -> float:
        return math.sqrt(pixels)


class _L1(Norm):
    """The sum of the changes of all pixels."""

    name = "L1"

    def length(self, delta: Tensor) -> Tensor:
        return _summed(delta, 1)

    def project_box(self, delta: Tensor, lower: Tensor, upper: Tensor, eps: Tensor) -> Tensor:
        """The answer is clip(soft(delta, t)) for one threshold t >= 0 (Croce and Hein 2021)."""
        size = delta.abs().flatten(1)
        far = torch.copysign(delta.new_full((), math.inf), delta)
        room = torch.clamp(far, lower, upper).abs_().flatten(1)
        return self._shrunk(delta, size, room, eps)

    def _shrunk(self, delta: Tensor, size: Tensor, room: Tensor, eps: Tensor) -> Tensor:
        """``delta`` (N, ...) of the sizes ``size`` (N, D), less one threshold, at most ``room`` (N, D)."""
        shrunk = torch.minimum((size - threshold(size, room, eps)[:, None]).clamp_min_(0), room)
        shrunk *= _shrink(self.length(shrunk), eps)[:, None]
        return torch.copysign(shrunk.view_as(delta), delta)

    def step(self, grad: Tensor) -> Tensor:
        flat = grad.flatten(1)
        best = flat.abs().argmax(dim=1, keepdim=True)
        return torch.zeros_like(flat).scatter_(1, best, flat.gather(1, best).sign()).view_as(grad)

    def ascend(self, x_adv: Tensor, grad: Tensor, step: Tensor) -> Tensor:
        """Spend the length on the pixels of largest gradient, each as far as [0, 1] allows: steepest in the box."""
        slope = grad.flatten(1)
        # Where the slope is 0 the sign will be, so that its room does not matter.
        room = torch.where(slope > 0, 1 - x_adv.flatten(1), x_adv.flatten(1))
        order = slope.abs().argsort(dim=1, descending=True)
        room = room.gather(1, order)
        spent = (step[:, None] - (room.cumsum(1) - room)).clamp_min_(0).minimum(room)
        move = torch.empty_like(slope).scatter_(1, order, spent).view_as(x_adv)
        return torch.addcmul(x_adv, move, grad.sign())

    def within(self, x: Tensor, eps: Tensor, box: bool = True) -> Callable[[Tensor], Tensor]:
        """In the box the nearest point: clipping afterwards would waste much of the ball (Croce and Hein 2021)."""
        if not box:
            return lambda x_adv: x + self.project(x_adv - x, eps)
        up = 1 - x

        def nearest(x_adv: Tensor) -> Tensor:
            delta = x_adv - x
            room = torch.where(delta > 0, up, x).flatten(1)
            return self._shrunk(delta, delta.abs().flatten(1), room, eps).add_(x).clamp_(0, 1)

        return nearest

    def random(self, draws: Draws, shape: tuple[int, ...], eps: Tensor) -> Tensor:
        """Exponential lengths divided by their sum and one more are uniform in the simplex."""
        pixels = math.prod(shape)
        exponential = -torch.log1p(-draws.fork(0).uniform((pixels + 1,)).to(eps.dtype))
        share = exponential[:, :pixels] / exponential.sum(1, keepdim=True)
        return (share * draws.fork(1).signs((pixels,)) * eps[:, None]).view(-1, *shape)

    def diameter(self, pixels: int) -> float:
        return float(pixels)


_NORMS: dict[str, Norm] = {norm.name: norm for norm in (_Linf(), _L2(), _L1())}
NORMS = tuple(_NORMS)


def get_norm(name: str) -> Norm:
    """The norm called ``name``: "Linf", "L2" or "L1".

    Raises:
        AttackError: no norm has that name.
    """
    if name not in _NORMS:
        raise unknown_name("norm", name, NORMS)
    return _NORMS[name]


def ball_and_box(x_adv: Tensor, x: Tensor, eps: Tensor, norm: str | Norm) -> Tensor:
    """The nearest point to ``x_adv`` within ``eps`` (N,) of ``x`` and within [0, 1]; images are (N, C, H, W)."""
    norm = get_norm(norm) if isinstance(norm, str) else norm
    delta = norm.project_box(x_adv - x, -x, 1 - x, eps)
    return (x + delta).clamp_(0, 1)


def plain_length(norm: str, delta: Tensor) -> Tensor:
    """The length (n,) of perturbations (n, ...) in the sums of the published attacks, exact to 1e-5.

    PyTorch adds up pairs, which at any size costs fewer digits than the running sum of a CPU's ``vector_norm``.
    """
    flat = delta.flatten(1)
    if flat.is_cuda:
        return torch.linalg.vector_norm(flat, ord=_ORDERS[norm], dim=1)
    if norm == "Linf":
        return flat.abs().amax(1)
    return flat.abs().sum(1) if norm == "L1" else flat.square().sum(1).sqrt()


def _summed(delta: Tensor, order: int) -> Tensor:
    """The L1 or L2 length (n,); of images of more than 4,096 values in float64, exact to 1e-7, else to 1e-5."""
    large = delta[:1].numel() > _EXACT_FROM
    dtype = torch.float64 if large else None
    return torch.linalg.vector_norm(delta, ord=order, dim=_dims(delta), dtype=dtype).to(delta.dtype)


def _shrink(length: Tensor, eps: Tensor) -> Tensor:
    """The factor that brings ``length`` down to ``eps``; 1 inside the ball."""
    return (eps / length.clamp_min(_tiny(length))).clamp_max_(1)


def _tiny(like: Tensor) -> float:
    return torch.finfo(like.dtype).tiny
