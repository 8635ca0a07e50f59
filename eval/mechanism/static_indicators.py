"""Static indicators: what a classifier's input gradients look like around its images, before any attack."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from agents.common.plain_numbers import takes_numbers
from agents.common.protocols import CLEVERHANS_BATCH
from attacks.core.losses import get_loss, margin
from attacks.core.model_state import fast_layout, in_eval_mode
from attacks.core.norms import get_norm
from attacks.core.rng import Draws, draws_for
from attacks.gradient.pgd import STEP_FLOOR
from eval.core.stats import bootstrap
from eval.mechanism.gradients import InputGradient, cosines, in_double, input_gradient, lengths, units


@dataclass(frozen=True)
class StaticIndicators:
    """Per-image values, each (N,) on the CPU; NaN where a zero gradient has no direction."""

    gradient_norm: Tensor  #: L2 length of the input gradient of the loss, per unit of pixel, float32
    gradient_norm64: Tensor  #: the same computed in float64
    zero: Tensor  #: bool, every element of the float32 gradient is exactly 0
    #: bool, the gradient of the loss averaged over ``batch`` images is shorter than 1e-6, so that the
    #: cleverhans protocol shortens its step
    under_floor: Tensor
    stability: Tensor  #: mean cosine between the gradient at the image and at random points of the eps ball
    #: largest |l(x + d) - l(x) - d.g| over random d of the ball and the gradient step of length eps
    #: (Qin et al. 2019, local linearity measure, by sampling)
    nonlinearity: Tensor
    logit_scale: Tensor  #: standard deviation of the logits over the classes
    margin: Tensor  #: true logit minus the largest other; negative for an error
    #: largest eigenvalue, by size, of the loss's Hessian with respect to the image (power iteration on
    #: finite differences of gradients, as Moosavi-Dezfooli et al. 2019)
    curvature: Tensor

    def figures(self) -> dict[str, Any]:
        """Return shares of the flags and mean, quartiles and extremes of the rest, as plain JSON."""
        return {
            name: float(values.double().mean()) if values.dtype == torch.bool else summary(values)
            for name, values in vars(self).items()
        }


def summary(values: Tensor) -> dict[str, Any]:
    """Return count, mean with its bootstrap interval, extremes and quartiles of the finite values.

    Entries are None where there is no value, or no interval because there is only one.
    """
    finite = values[values.isfinite()].double()
    keys = ("min", "q25", "median", "q75", "max")
    if not len(finite):
        return {"n": 0, "mean": None, "ci95": None} | dict.fromkeys(keys)
    mean, interval, n = bootstrap(finite.numpy())
    points = torch.quantile(finite, torch.tensor([0, 0.25, 0.5, 0.75, 1], dtype=torch.float64)).tolist()
    ci95 = None if interval is None else list(interval)
    return {"n": n, "mean": mean, "ci95": ci95} | dict(zip(keys, points, strict=True))


@dataclass(frozen=True)
class Neighbourhood:
    """Images, what the model says at them, and the ball in which the indicators look around."""

    model: nn.Module  #: in eval mode, images (N, C, H, W) to logits (N, K)
    x: Tensor  #: images in [0, 1], (N, C, H, W)
    y: Tensor  #: labels, (N,)
    loss: str  #: a name of `attacks.core.losses`
    norm: str  #: of the ball
    eps: float  #: its radius
    centre: InputGradient  #: gradient, loss and logits at the images

    def move(self, stream: Draws) -> Tensor:
        """Return one perturbation per image, uniform in the ball."""
        return get_norm(self.norm).random(stream, self.x.shape[1:], self.x.new_full((len(self.x),), self.eps))

    def gradient(self, x: Tensor) -> Tensor:
        """Return the input gradient at other points ``x``."""
        return input_gradient(self.model, x, self.y, self.loss).grad


@takes_numbers
def static_indicators(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    norm: str = "L2",
    eps: float,
    loss: str = "ce",
    draws: int = 10,
    power_iterations: int = 10,
    batch: int = CLEVERHANS_BATCH,
    batch_size: int = 256,
    seed: int = 0,
    sample_ids: Tensor | None = None,
) -> StaticIndicators:
    """Measure the static indicators of every image.

    Args:
        model: images (N, C, H, W) to logits (N, K); used in eval mode and left as it is found.
        x, y: images in [0, 1], (N, C, H, W), and labels, (N,).
        norm, eps: the ball in which stability and linearity are measured.
        loss: a name of `attacks.core.losses`.
        draws: random points per image; power_iterations: of the curvature.
        batch: images over which the cleverhans protocol averages its loss; batch_size: images at once.
        seed: of the random points; sample_ids: (N,), what each image's points depend on.
    """
    ids = torch.arange(len(x), device=x.device) if sample_ids is None else sample_ids
    rows: list[tuple[Tensor, ...]] = []
    with in_eval_mode(model), fast_layout(model, x):
        double = in_double(model)
        for images, labels, known in zip(*(item.split(batch_size) for item in (x, y, ids)), strict=True):
            stream, centre = draws_for(seed, known), input_gradient(model, images, labels, loss)
            place = Neighbourhood(model, images, labels, loss, norm, eps, centre)
            norms = lengths(centre.grad)
            rows.append(
                (  # in the order of the fields
                    norms,
                    lengths(input_gradient(double, images.double(), labels, loss).grad),
                    norms == 0,
                    norms / batch < STEP_FLOOR,
                    stability(place, draws, stream.fork(0)),
                    nonlinearity(place, draws, stream.fork(1)),
                    centre.logits.std(dim=1, correction=0),
                    -margin(centre.logits, labels),
                    curvature(place, power_iterations, stream.fork(2)),
                )
            )
    return StaticIndicators(*(torch.cat(column).cpu() for column in zip(*rows, strict=True)))


def stability(place: Neighbourhood, draws: int, stream: Draws) -> Tensor:
    """Return the mean cosine (N,) between the gradients at the images and at points of the ball, in [0, 1]."""
    total = torch.zeros(len(place.x), device=place.x.device)
    for k in range(draws):
        point = (place.x + place.move(stream.fork(k))).clamp(0, 1)
        total += cosines(place.centre.grad, place.gradient(point))
    return total / draws


def nonlinearity(place: Neighbourhood, draws: int, stream: Draws) -> Tensor:
    """Return the largest error (N,) of the loss's linear model over random points and the gradient step."""
    loss, centre = get_loss(place.loss), place.centre
    worst = torch.zeros(len(place.x), device=place.x.device)
    ascent = place.eps * get_norm(place.norm).step(centre.grad)
    with torch.no_grad():
        for move in (*(place.move(stream.fork(k)) for k in range(draws)), ascent):
            linear = centre.loss + (move * centre.grad).flatten(1).sum(1)
            error = loss(place.model(place.x + move), place.y, None) - linear
            worst = torch.maximum(worst, error.abs())
    return worst


def curvature(place: Neighbourhood, iterations: int, stream: Draws, step: float = 0.01) -> Tensor:
    """Return the Rayleigh quotient (N,) after power iteration on the Hessian: its largest eigenvalue by size.

    The Hessian times a unit vector v is (g(x + h v) - g(x - h v)) / 2h with h = ``step``: unlike double
    differentiation this sees the kinks of ReLU networks, and it needs no second derivative of any layer.
    """
    direction = units(stream.normal(place.x.shape[1:]))
    quotient = torch.zeros(len(place.x), device=place.x.device)
    for _ in range(iterations):
        move = step * direction.view_as(place.x)
        ahead, behind = (place.gradient(place.x + sign * move) for sign in (1, -1))
        product = (ahead - behind).flatten(1) / (2 * step)
        quotient = (product * direction).sum(1)
        direction = torch.where(product.abs().amax(1, keepdim=True) > 0, units(product), direction)
    return quotient
