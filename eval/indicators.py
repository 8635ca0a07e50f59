"""Static indicators: what a classifier's input gradients look like around its images, before any attack."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from attacks.losses import get_loss
from attacks.rng import Draws, draws_for
from attacks.threat import get_norm
from attacks.walk import STEP_FLOOR
from eval.gradients import cosines, in_double, input_gradient, lengths, units
from eval.threats import CLEVERHANS_BATCH


@dataclass(frozen=True)
class StaticIndicators:
    """Per-image values, each (N,) on the CPU; NaN where a zero gradient has no direction.

    Attributes:
        gradient_norm: L2 length of the input gradient of the loss, per unit of pixel, float32.
        gradient_norm64: the same computed in float64.
        zero: bool, every element of the float32 gradient is exactly 0.
        under_floor: bool, the gradient of the loss averaged over ``batch`` images is shorter than 1e-6, so that the
            cleverhans protocol shortens its step.
        stability: mean cosine between the gradient at the image and at random points of the eps ball.
        nonlinearity: largest |l(x + d) - l(x) - d.g| over random d of the ball and the gradient step of length eps
            (Qin et al. 2019, local linearity measure, by sampling).
        logit_scale: standard deviation of the logits over the classes.
        margin: true logit minus the largest other; negative for an error.
        curvature: largest eigenvalue, by size, of the loss's Hessian with respect to the image (power iteration on
            finite differences of gradients, as Moosavi-Dezfooli et al. 2019).
    """

    gradient_norm: Tensor
    gradient_norm64: Tensor
    zero: Tensor
    under_floor: Tensor
    stability: Tensor
    nonlinearity: Tensor
    logit_scale: Tensor
    margin: Tensor
    curvature: Tensor

    def figures(self) -> dict[str, Any]:
        """Return shares of the flags and mean, quartiles and extremes of the rest, as plain JSON."""
        return {
            name: float(values.double().mean()) if values.dtype == torch.bool else spread(values)
            for name, values in vars(self).items()
        }


def spread(values: Tensor) -> dict[str, Any]:
    """Return count, mean, minimum, quartiles and maximum of the finite values; None where there are none."""
    finite = values[values.isfinite()].double()
    keys = ("min", "q25", "median", "q75", "max")
    if not len(finite):
        return {"n": 0, "mean": None} | dict.fromkeys(keys)
    points = torch.quantile(finite, torch.tensor([0, 0.25, 0.5, 0.75, 1], dtype=torch.float64)).tolist()
    return {"n": len(finite), "mean": float(finite.mean())} | dict(zip(keys, points, strict=True))


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
        model: in eval mode, images (N, C, H, W) to logits (N, K).
        x: images in [0, 1], (N, C, H, W).
        y: labels, (N,).
        norm: of the ball in which stability and linearity are measured.
        eps: its radius.
        loss: a name of `attacks.losses`.
        draws: random points per image.
        power_iterations: of the curvature.
        batch: images over which the cleverhans protocol averages its loss.
        batch_size: images at once.
        seed: of the random points.
        sample_ids: (N,), what each image's points hang on.
    """
    ids = torch.arange(len(x), device=x.device) if sample_ids is None else sample_ids
    double = in_double(model)
    rows: list[StaticIndicators] = []
    for start in range(0, len(x), batch_size):
        part = slice(start, start + batch_size)
        images, labels, stream = x[part], y[part], draws_for(seed, ids[part])
        centre = input_gradient(model, images, labels, loss)
        norms = lengths(centre.grad)
        top = centre.logits.topk(2, dim=1)
        other = torch.where(top.indices[:, 0] == labels, top.values[:, 1], top.values[:, 0])
        rows.append(
            StaticIndicators(
                gradient_norm=norms,
                gradient_norm64=lengths(input_gradient(double, images.double(), labels, loss).grad),
                zero=norms == 0,
                under_floor=norms / batch < STEP_FLOOR,
                stability=stability(
                    model, images, labels, centre.grad, norm, eps, loss, draws, stream.fork(0)
                ),
                nonlinearity=nonlinearity(model, images, labels, norm, eps, loss, draws, stream.fork(1)),
                logit_scale=centre.logits.std(dim=1, correction=0),
                margin=centre.logits.gather(1, labels[:, None]).squeeze(1) - other,
                curvature=curvature(model, images, labels, loss, power_iterations, stream.fork(2)),
            )
        )
    return StaticIndicators(**{k: torch.cat([vars(row)[k] for row in rows]).cpu() for k in vars(rows[0])})


def stability(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    grad: Tensor,
    norm: str,
    eps: float,
    loss: str,
    draws: int,
    stream: Draws,
) -> Tensor:
    """Return the mean cosine (N,) between ``grad`` at ``x`` and the gradients at points of the ball."""
    radius = x.new_full((len(x),), eps)
    total = torch.zeros(len(x), device=x.device)
    for k in range(draws):
        noise = get_norm(norm).random(stream.fork(k), x.shape[1:], radius)
        total += cosines(grad, input_gradient(model, (x + noise).clamp(0, 1), y, loss).grad)
    return total / draws


def nonlinearity(
    model: nn.Module, x: Tensor, y: Tensor, norm: str, eps: float, loss: str, draws: int, stream: Draws
) -> Tensor:
    """Return the largest error (N,) of the loss's linear model over random points and the gradient step."""
    centre = input_gradient(model, x, y, loss)
    radius, measure = x.new_full((len(x),), eps), get_norm(norm)
    moves = [measure.random(stream.fork(k), x.shape[1:], radius) for k in range(draws)]
    worst = torch.zeros(len(x), device=x.device)
    with torch.inference_mode():
        for move in (*moves, eps * measure.step(centre.grad)):
            linear = centre.loss + (move * centre.grad).flatten(1).sum(1)
            worst = torch.maximum(worst, (get_loss(loss)(model(x + move), y, None) - linear).abs())
    return worst


def curvature(
    model: nn.Module, x: Tensor, y: Tensor, loss: str, iterations: int, stream: Draws, step: float = 0.01
) -> Tensor:
    """Return the Rayleigh quotient (N,) after power iteration on the Hessian: its largest eigenvalue by size.

    The Hessian times a unit vector v is (g(x + h v) - g(x - h v)) / 2h with h = ``step``: unlike double
    differentiation this sees the kinks of ReLU networks, and it needs no second derivative of any layer.
    """
    direction = units(stream.normal(x.shape[1:]))
    quotient = torch.zeros(len(x), device=x.device)
    for _ in range(iterations):
        move = step * direction.view_as(x)
        ahead, behind = (input_gradient(model, x + sign * move, y, loss).grad for sign in (1, -1))
        product = (ahead - behind).flatten(1) / (2 * step)
        quotient = (product * direction).sum(1)
        direction = torch.where(product.abs().amax(1, keepdim=True) > 0, units(product), direction)
    return quotient
