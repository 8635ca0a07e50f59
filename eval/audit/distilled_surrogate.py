"""A surrogate distilled from the audited model: differentiable whatever that model is made of.

Papernot et al. 2017: it learns from queries alone, here on the audited images and the balls around them.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks.core.norms import get_norm
from eval.audit.record import logits_of

_BATCH = 64
_SPREAD = 2.0  # points are drawn from balls this many times as large, so that their edge is learnt too
_CLIP = 5.0  # standardised logits further out than this say no more


def distil(
    model: nn.Module, x: Tensor, points: Tensor, norm: str, eps: float, steps: int, seed: int
) -> nn.Module:
    """Train a small network to give the model's standardised logits.

    Args:
        model: what is imitated; only its outputs are used.
        x: the audited images (N, C, H, W).
        points: further points (N, C, H, W) of interest, such as attacked images.
        norm: of the balls.
        eps: their radius.
        steps: of training, each on 64 points.
        seed: of initialisation and points.
    """
    generator = torch.Generator().manual_seed(seed)
    classes = logits_of(model, x[:2]).shape[1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _network(x.shape[1], classes).to(x.device)
    pool, targets = _questions(model, torch.cat([x, points]), norm, eps, generator)
    optimizer = torch.optim.Adam(network.parameters(), lr=4e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    with torch.enable_grad():
        for _ in range(steps):
            rows = torch.randint(len(pool), (_BATCH,), generator=generator)
            optimizer.zero_grad()
            F.mse_loss(network(pool[rows]), targets[rows]).backward()
            optimizer.step()
            schedule.step()
    return network.eval()


def _network(channels: int, classes: int) -> nn.Module:
    """Smooth activations, no batch statistics: gradients that exist everywhere."""
    return nn.Sequential(
        nn.Conv2d(channels, 16, 3, padding=1),
        nn.SiLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.SiLU(),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(512, 64),
        nn.SiLU(),
        nn.Linear(64, classes),
    )


def _questions(
    model: nn.Module, centres: Tensor, norm: str, eps: float, generator: torch.Generator, copies: int = 8
) -> tuple[Tensor, Tensor]:
    """Points of the balls around the centres, and the model's standardised logits there."""
    pool = centres.repeat(copies + 1, 1, 1, 1)
    noise = torch.rand(pool.shape, generator=generator).to(pool) * 2 - 1
    reach = _SPREAD * eps * torch.rand(len(pool), generator=generator).to(pool)
    length = get_norm(norm).length(noise)
    reach[: len(centres)] = 0  # the centres themselves first
    pool = (pool + noise * (reach / length).view(-1, 1, 1, 1)).clamp(0, 1)
    logits = logits_of(model, pool).nan_to_num(0.0, 1e9, -1e9)
    logits = logits - logits.mean(1, keepdim=True)
    scale = logits.std(dim=1).median().clamp_min(1e-12)
    return pool, (logits / scale).clamp(-_CLIP, _CLIP)
