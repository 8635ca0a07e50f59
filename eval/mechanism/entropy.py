"""How sure the classifier is: entropy of its predictions in bits, on clean and attacked images."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from eval.core.targets import logits_of


@dataclass(frozen=True)
class EntropySplit:
    """Predictions of one set of images, and how uncertain they are."""

    logits: Tensor  #: (N, K) float32 on the CPU
    labels: Tensor  #: true labels (N,)

    @property
    def bits(self) -> Tensor:
        """Entropy of each prediction (N,), between 0 and log2(K)."""
        return entropy_bits(self.logits).float()

    @property
    def correct(self) -> Tensor:
        """(N,) bool, the image is classified correctly."""
        return self.logits.argmax(1) == self.labels

    @property
    def most(self) -> float:
        """log2(K), the entropy of a uniform prediction."""
        return math.log2(self.logits.shape[1])

    def figures(self, bins: int = 20) -> dict[str, Any]:
        """Return count, mean, quartiles and histogram over [0, log2 K] for all, correct and wrong images."""
        entropy, right = self.bits, self.correct
        points = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
        found: dict[str, Any] = {"max_bits": self.most}
        for name, bits in (("all", entropy), ("correct", entropy[right]), ("wrong", entropy[~right])):
            found[name] = {
                "n": len(bits),
                "mean": float(bits.double().mean()) if len(bits) else None,
                "quartiles": torch.quantile(bits.double(), points).tolist() if len(bits) else None,
                "histogram": torch.histc(bits, bins=bins, min=0, max=self.most).long().tolist(),
            }
        return found


def entropy_bits(logits: Tensor) -> Tensor:
    """Return the entropy -sum p log2 p of softmax(logits), (N, K) to (N,), in float64 and exact at p = 0."""
    return torch.special.entr(logits.double().softmax(dim=1)).sum(1) / math.log(2)


def entropy_split(model: nn.Module, x: Tensor, y: Tensor, batch_size: int = 512) -> EntropySplit:
    """Return the predictions of the images ``x`` (N, C, H, W) with labels ``y`` (N,)."""
    return EntropySplit(logits_of(model, x, batch_size).float().cpu(), y.cpu())
