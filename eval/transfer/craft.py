"""How transfer images are made on a model, and which of them another model still classifies correctly."""

from typing import Any

from torch import Tensor, nn

import attacks
from agents.common.protocols import CLEVERHANS_BATCH
from attacks.core.losses import misclassified
from eval.core.targets import logits_of
from eval.core.threats import Threat

# "paper": the protocol of Zou et al. 2026 (arXiv 2606.12251), which attacks the true labels, kept in [0, 1]; "strong":
# steps of full length on the MIFPE loss, which no saturated softmax weakens.
CRAFTS: dict[str, dict[str, Any]] = {
    "paper": {"protocol": "cleverhans", "averaged_over": CLEVERHANS_BATCH},
    "strong": {"loss": "mifpe"},
}


def defined(craft: str, threat: Threat) -> bool:
    """Return whether a craft exists for a threat model; the paper's does not for L1."""
    return craft != "paper" or threat.norm != "L1"


def make_images(
    craft: str,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    steps: int,
    seed: int,
    ids: Tensor,
    batch_size: int | None = None,
) -> Tensor:
    """Return the last iterates (N, C, H, W) of PGD on ``model``, steps of eps / 10, in the ball and in [0, 1].

    ``craft`` is one of `CRAFTS`, ``x`` (N, C, H, W) in [0, 1] with labels ``y`` (N,); random starts depend on ``seed``
    and on ``ids`` (N,), one an image; ``batch_size``: most images at once, None chooses. An AttackError tells of wrong
    inputs, or of a model without gradients.
    """
    options: dict[str, Any] = {**vars(threat), **CRAFTS[craft], "keep": "last", "early_stop": False}
    options |= {"steps": steps, "step_size": threat.eps / 10, "batch_size": batch_size}
    return attacks.pgd(model, x, y, seed=seed, sample_ids=ids, **options).adversarial


def still_correct(model: nn.Module, images: Tensor, labels: Tensor) -> list[bool]:
    """Return per image whether ``model`` classifies it correctly; images and labels on the model's device."""
    return (~misclassified(logits_of(model, images), labels)).tolist()
