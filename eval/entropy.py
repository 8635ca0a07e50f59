"""How sure the classifier is: entropy of its predictions in bits, on clean and attacked images."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class EntropySplit:
    """Predictive entropies of one set of images.

    Attributes:
        bits: (N,), between 0 and log2(K).
        correct: (N,) bool, the image is classified correctly.
        most: log2(K), the entropy of a uniform prediction.
    """

    bits: Tensor
    correct: Tensor
    most: float

    def figures(self, bins: int = 20) -> dict[str, Any]:
        """Return count, mean, quartiles and histogram over [0, log2 K] for all, correct and wrong images."""
        groups = {"all": torch.ones_like(self.correct), "correct": self.correct, "wrong": ~self.correct}
        return {"max_bits": self.most} | {
            name: _group(self.bits[mask], self.most, bins) for name, mask in groups.items()
        }


def _group(bits: Tensor, most: float, bins: int) -> dict[str, Any]:
    if not len(bits):
        return {"n": 0, "mean": None, "quartiles": None, "histogram": [0] * bins}
    quartiles = torch.quantile(bits.double(), torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64))
    return {
        "n": len(bits),
        "mean": float(bits.double().mean()),
        "quartiles": quartiles.tolist(),
        "histogram": torch.histc(bits.float(), bins=bins, min=0, max=most).long().tolist(),
    }


def entropy_bits(logits: Tensor) -> Tensor:
    """Return the entropy -sum p log2 p of softmax(logits), (N, K) to (N,), in float64 and exact at p = 0."""
    return torch.special.entr(logits.double().softmax(dim=1)).sum(1) / math.log(2)


@torch.inference_mode()
def entropy_split(model: nn.Module, x: Tensor, y: Tensor, batch_size: int = 512) -> EntropySplit:
    """Return the predictive entropies of the images ``x`` (N, C, H, W) with labels ``y`` (N,)."""
    logits = torch.cat([model(images) for images in x.split(batch_size)]).float().cpu()
    return EntropySplit(entropy_bits(logits).float(), logits.argmax(1) == y.cpu(), math.log2(logits.shape[1]))
