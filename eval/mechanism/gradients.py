"""Input gradients of per-sample losses: the raw material of every indicator."""

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn

from attacks.core.losses import get_loss
from attacks.core.model_state import frozen, in_eval_mode


class InputGradient(NamedTuple):
    """Gradient (N, C, H, W) of each image's own loss, the loss (N,), and the logits (N, K)."""

    grad: Tensor
    loss: Tensor
    logits: Tensor


def input_gradient(model: nn.Module, x: Tensor, y: Tensor, loss: str = "ce") -> InputGradient:
    """Return the gradient of each image's ``loss`` with respect to that image; samples do not mix.

    ``model`` is evaluated in eval mode; the gradient has the type of the images ``x`` (N, C, H, W); ``y``: labels
    (N,); ``loss``: a name of `attacks.core.losses`.
    """
    with frozen(model), in_eval_mode(model), torch.enable_grad():
        leaf = x.detach().requires_grad_()
        logits = model(leaf)
        losses = get_loss(loss)(logits, y, None)
        (grad,) = torch.autograd.grad(losses.sum(), leaf)
    return InputGradient(grad, losses.detach(), logits.detach())


def in_double(model: nn.Module) -> nn.Module:
    """Return a float64 copy of the model: what rounding hides in float32, it shows."""
    return copy.deepcopy(model).double().eval()


def lengths(grad: Tensor) -> Tensor:
    """Return the L2 length (N,) of each gradient, computed so that squares neither overflow nor underflow."""
    flat = grad.flatten(1)
    scale = flat.abs().amax(1, keepdim=True)
    safe = scale.masked_fill(scale == 0, 1)
    return (flat / safe).norm(dim=1) * scale.squeeze(1)


def units(grad: Tensor) -> Tensor:
    """Return each gradient (flattened, (N, D)) scaled to length 1; a zero gradient stays zero."""
    flat = grad.flatten(1)
    scale = flat.abs().amax(1, keepdim=True)
    flat = flat / scale.masked_fill(scale == 0, 1)
    return flat / flat.norm(dim=1, keepdim=True).clamp_min(1)


def cosines(first: Tensor, second: Tensor) -> Tensor:
    """Return the cosine (N,) between gradients, NaN where either is zero and has no direction."""
    a, b = units(first), units(second)
    cosine = (a * b).sum(1).clamp(-1, 1)
    undefined = (a.abs().amax(1) == 0) | (b.abs().amax(1) == 0)
    return cosine.masked_fill(undefined, float("nan"))
