"""Losses that attacks raise: per sample (N,), bigger means more adversarial.

Untargeted losses take ``(logits (N, K), y (N,))``; targeted ones take ``(logits, y, targets (N,))`` and grow as the
logit of ``targets`` rises. All are differentiable in the logits.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from attacks.core.errors import AttackError, unknown_name

Loss = Callable[[Tensor, Tensor, Tensor | None], Tensor]
_TINY = 1e-12


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """-log p(y): the usual loss; its gradient vanishes where the softmax saturates."""
    return F.cross_entropy(logits, y, reduction="none")


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """max_{j != y} z_j - z_y (Carlini and Wagner 2017): positive exactly where the sample is misclassified."""
    _need_classes(logits, 2, "margin")
    other, own = _at(logits, _best_other(logits, y), y)
    return other - own


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """Difference of logits ratio, -(z_y - max_{j != y} z_j) / (z_(1) - z_(3) + 1e-12) (Croce and Hein 2020, eq. 6).

    Invariant to scale and shift of the logits.

    Raises:
        AttackError: fewer than 3 classes, where the ratio is undefined.
    """
    _need_classes(logits, 3, "dlr")
    top = logits.detach().topk(3, dim=1).indices
    own, other, first, third = _at(logits, y, _best_other(logits, y), top[:, 0], top[:, 2])
    return (other - own) / (first - third + _TINY)


def mifpe(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy of logits divided by (z_(1) - z_(2)), held constant: minimal impact of floating-point error (Yu
    and Xu 2023); it keeps gradients alive where the softmax saturates.
    """
    return cross_entropy(_unit_gap(logits), y)


def cross_entropy_targeted(logits: Tensor, y: Tensor, targets: Tensor) -> Tensor:
    """Log p(target)."""
    return -cross_entropy(logits, targets)


def margin_targeted(logits: Tensor, y: Tensor, targets: Tensor) -> Tensor:
    """z_t - z_y (Gowal et al. 2019)."""
    aim, own = _at(logits, targets, y)
    return aim - own


def dlr_targeted(logits: Tensor, y: Tensor, targets: Tensor) -> Tensor:
    """-(z_y - z_t) / (z_(1) - (z_(3) + z_(4)) / 2 + 1e-12) (Croce and Hein 2020, eq. 7).

    Raises:
        AttackError: fewer than 4 classes, where the ratio is undefined.
    """
    _need_classes(logits, 4, "targeted dlr")
    top = logits.detach().topk(4, dim=1).indices
    own, aim, first, third, fourth = _at(logits, y, targets, top[:, 0], top[:, 2], top[:, 3])
    return (aim - own) / (first - 0.5 * (third + fourth) + _TINY)


def mifpe_targeted(logits: Tensor, y: Tensor, targets: Tensor) -> Tensor:
    """Log p(target) of the logits divided by their gap, as in `mifpe`."""
    return cross_entropy_targeted(_unit_gap(logits), y, targets)


# By name, untargeted and targeted.
_LOSSES: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Tensor, Tensor, Tensor], Tensor]]] = {
    "ce": (cross_entropy, cross_entropy_targeted),
    "margin": (margin, margin_targeted),
    "dlr": (dlr, dlr_targeted),
    "mifpe": (mifpe, mifpe_targeted),
}
LOSSES = tuple(_LOSSES)


def get_loss(name: str) -> Loss:
    """The loss called ``name`` as ``loss(logits, y, targets)``: targeted unless ``targets`` is None.

    Raises:
        AttackError: no loss has that name.
    """
    if name not in _LOSSES:
        raise unknown_name("loss", name, LOSSES)
    untargeted, targeted = _LOSSES[name]

    def loss(logits: Tensor, y: Tensor, targets: Tensor | None = None) -> Tensor:
        return untargeted(logits, y) if targets is None else targeted(logits, y, targets)

    return loss


def misclassified(logits: Tensor, y: Tensor) -> Tensor:
    """Whether the largest of the logits (..., N, K) is not that of ``y``, or one is NaN, which is a failure, too."""
    largest, found = logits.max(dim=-1)  # NaN, if there is one
    return (found != y) | largest.isnan()


def _at(logits: Tensor, *classes: Tensor) -> tuple[Tensor, ...]:
    """The logits (n,) of each of these ``classes`` (n,), taken together, for backward passes take them apart."""
    return logits.gather(1, torch.stack(classes, 1)).unbind(1)


def _best_other(logits: Tensor, y: Tensor) -> Tensor:
    """The class of the largest logit but that of ``y``."""
    first, second = logits.detach().topk(2, dim=1).indices.unbind(1)
    return torch.where(first == y, second, first)


def _unit_gap(logits: Tensor) -> Tensor:
    """Logits divided by the gap between the two largest, which is held constant."""
    _need_classes(logits, 2, "mifpe")
    top = logits.detach().topk(2, dim=1).values
    return logits / (top[:, 0] - top[:, 1]).clamp_min(_TINY)[:, None]


def _need_classes(logits: Tensor, least: int, name: str) -> None:
    if logits.shape[1] < least:
        raise AttackError(
            f"the {name} loss needs at least {least} classes, the model has {logits.shape[1]}; use loss='ce'"
        )
