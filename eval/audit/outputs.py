"""Probes of the outputs: are they logits, the same every time, and each image's own?"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from eval.audit import settings as thresholds
from eval.audit.findings import Finding

_IMAGES = 64


@dataclass(frozen=True)
class Outputs:
    """What kind of outputs the model gives.

    Attributes:
        random: they differ from pass to pass.
        batch_dependent: an image's output depends on its neighbours.
        probabilities: rows lie in [0, 1] and sum to 1.
    """

    random: bool
    batch_dependent: bool
    probabilities: bool


def probe_outputs(model: nn.Module, x: Tensor) -> tuple[Outputs, list[Finding]]:
    """Pass ``x`` (N, C, H, W) several times, and in other batches."""
    x = x[:_IMAGES]
    with torch.no_grad():
        passes = torch.stack([model(x).double() for _ in range(thresholds.RANDOM_PASSES)])
        units = passes / passes.norm(dim=2, keepdim=True).clamp_min(1e-12)
        spread = float((units - units[:1]).norm(dim=2).sum(1).max())
        random = spread > thresholds.RANDOM_DIFFERENCE
        influence = None if random or len(x) < 4 else _influence(model, x, passes[0])
    off = float((passes.sum(2) - 1).abs().max())
    probabilities = bool((passes >= 0).all()) and off < thresholds.PROBABILITY_TOLERANCE
    batch_dependent = influence is not None and influence > thresholds.BATCH_DIFFERENCE
    findings = [
        Finding(
            "outputs differ from pass to pass",
            spread,
            thresholds.RANDOM_DIFFERENCE,
            random,
            "AutoAttack's check (Croce and Hein 2020): 5 passes, normalised logits",
        ),
        Finding(
            "outputs depend on the other images of the batch",
            influence,
            thresholds.BATCH_DIFFERENCE,
            batch_dependent,
            "ours: relative change of the logits in another batch",
            "not measurable on random outputs" if random else "",
        ),
        Finding(
            "outputs are probabilities: how far from summing to 1",
            off,
            thresholds.PROBABILITY_TOLERANCE,
            probabilities,
            "AutoAttack's check (Croce and Hein 2020)",
        ),
    ]
    return Outputs(random, batch_dependent, probabilities), findings


def _influence(model: nn.Module, x: Tensor, together: Tensor) -> float:
    """The largest relative change of an image's logits when every second image is missing."""
    apart = model(x[::2]).double()
    reference = together[::2]
    return float(((apart - reference).norm(dim=1) / reference.norm(dim=1).clamp_min(1e-12)).max())
