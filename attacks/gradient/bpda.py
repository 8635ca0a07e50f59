"""Backward pass differentiable approximation: gradients for layers that have none, or useless ones."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from attacks.core.errors import AttackError

Function = Callable[[Tensor], Tensor]
Backward = Callable[[Tensor, Tensor], Tensor]


class BPDA(nn.Module):
    """Wear ``layer`` forwards and another one backwards (Athalye et al. 2018, arXiv 1802.00420).

    Put in front of a classifier, ``nn.Sequential(BPDA(quantise), classifier)``, and attack the whole by gradients.

    Args:
        layer: what the forward pass computes, exactly: any function of images, differentiable or not.
        substitute: a differentiable function close to ``layer``, whose gradient is used instead; default the identity.
        backward: instead of a substitute, a function ``(x, grad_output) -> grad_input``.

    Raises:
        AttackError: both a substitute and a backward are given.
    """

    def __init__(
        self, layer: Function, *, substitute: Function | None = None, backward: Backward | None = None
    ) -> None:
        super().__init__()
        if substitute is not None and backward is not None:
            raise AttackError("give BPDA a substitute or a backward, not both")
        self.layer = layer
        self.backward_of = backward or partial(_pulled_back, substitute)

    def forward(self, x: Tensor) -> Tensor:
        """``layer(x)``, with the other gradient."""
        return _Replace.apply(x, self.layer, self.backward_of)


class _Replace(torch.autograd.Function):
    """A function with a hand-given backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Function, backward: Backward) -> Tensor:
        ctx.save_for_backward(x)
        ctx.backward_of = backward
        return layer(x).clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        grad = ctx.backward_of(x.detach(), grads[0])
        if grad.shape != x.shape:
            raise AttackError(
                f"BPDA's backward gave a gradient of shape {tuple(grad.shape)} for images of shape {tuple(x.shape)}; "
                "a layer that changes the shape needs a substitute that does the same"
            )
        return grad, None, None


def _pulled_back(substitute: Function | None, x: Tensor, grad: Tensor) -> Tensor:
    """The gradient through ``substitute``, by default the identity."""
    if substitute is None:
        return grad
    with torch.enable_grad():
        leaf = x.requires_grad_()
        (found,) = torch.autograd.grad(substitute(leaf), leaf, grad)
    return found
