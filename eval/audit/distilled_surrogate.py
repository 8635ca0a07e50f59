"""A surrogate distilled from the audited model: differentiable whatever that model is made of.

Papernot et al. 2017: it learns from queries alone, here on the audited images, the balls around them, and the points
where it was attacked itself, until both agree there.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks.core.norms import get_norm
from attacks.gradient.pgd import pgd
from eval.audit.record import logits_of

_BATCH = 64
_COPIES = 12
_SPREAD = 2.0  # points are drawn from balls this many times as large, so that their edge is learnt too
_CLIP = 5.0  # standardised logits further below the largest say no more


class Surrogate:
    """A small network that learns to give the model's logits.

    Args:
        model: what is imitated; only its outputs are used.
        x: the audited images (N, C, H, W).
        y: their labels (N,).
        points: further points (N, C, H, W) of interest, such as attacked images.
        norm: of the balls.
        eps: their radius.
        seed: of initialisation and points.
    """

    def __init__(
        self, model: nn.Module, x: Tensor, y: Tensor, points: Tensor, norm: str, eps: float, seed: int
    ) -> None:
        self.model, self.x, self.y, self.norm, self.eps, self.seed = model, x, y, norm, eps, seed
        self.generator = torch.Generator().manual_seed(seed)
        classes = logits_of(model, x[:2]).shape[1]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.network = _network(x.shape[1], min(x.shape[2:]), classes).to(x.device)
        pool = torch.cat([x, points])
        self.pool = torch.cat([pool, *(self._around(pool, copy) for copy in range(_COPIES))])
        self.answers = self._ask(self.pool)
        gaps = self.answers - self.answers.amax(1, keepdim=True)
        self.scale = gaps.square().mean(1).sqrt().median().clamp_min(1e-12)

    def learn(self, steps: int) -> None:
        """Train for ``steps`` batches of 64 points."""
        optimizer = torch.optim.Adam(self.network.parameters(), lr=4e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        self.network.train()
        with torch.enable_grad():
            for _ in range(steps):
                rows = torch.randint(len(self.pool), (_BATCH,), generator=self.generator).to(self.pool.device)
                optimizer.zero_grad()
                self._loss(self.network(self.pool[rows]), self.answers[rows]).backward()
                optimizer.step()
                schedule.step()
        self.network.eval()

    def _loss(self, outputs: Tensor, answers: Tensor) -> Tensor:
        """Squared error of the gaps to the largest logit; where the model's are flat, only from above."""
        top = answers.argmax(1, keepdim=True)
        gaps = (answers - answers.gather(1, top)) / self.scale
        lowest = gaps.amin(1, keepdim=True)
        flat = (gaps == lowest) & ((gaps == lowest).sum(1, keepdim=True) > 1) & (lowest < 0)
        error = outputs - outputs.gather(1, top) - gaps.clamp_min(-_CLIP)
        error = torch.where(flat | (gaps < -_CLIP), error.clamp_min(0), error)
        return error.square().mean()

    def agreement(self, rows: Tensor, turn: int) -> float:
        """How often the model agrees where the surrogate is attacked, at the images ``rows``; learnt from next time."""
        result = pgd(
            self.network,
            self.x[rows],
            self.y[rows],
            norm=self.norm,
            eps=self.eps,
            steps=15,
            loss="margin",
            seed=self.seed + turn,
            early_stop=turn % 2 == 0,
            sample_ids=rows,
        )
        points = torch.cat([result.adversarial, self._around(result.adversarial, turn)])
        answers = self._ask(points)
        same = answers[: len(rows)].argmax(1) == logits_of(self.network, result.adversarial).argmax(1)
        weight = max(1, len(self.pool) // (4 * len(points)))  # a fifth of what it learns from
        self.pool = torch.cat([self.pool, *[points] * weight])
        self.answers = torch.cat([self.answers, *[answers] * weight])
        return float(same.double().mean())

    def _ask(self, points: Tensor) -> Tensor:
        return logits_of(self.model, points).nan_to_num(0.0, 1e9, -1e9)

    def _around(self, centres: Tensor, copy: int) -> Tensor:
        """Points about the centres: along noise, coarse noise, or towards other images, by turns."""
        shape = list(centres.shape)
        if copy % 3 == 1 and min(shape[2:]) >= 4:
            shape[2:] = [side // 3 + 1 for side in shape[2:]]
        noise = torch.rand(shape, generator=self.generator).to(centres) * 2 - 1
        if copy % 3 == 2:
            other = torch.randint(len(self.x), (len(centres),), generator=self.generator)
            noise = self.x[other.to(centres.device)] - centres
        elif noise.shape != centres.shape:
            noise = F.interpolate(noise, size=centres.shape[2:], mode="nearest")
        reach = _SPREAD * self.eps * torch.rand(len(centres), generator=self.generator).to(centres)
        length = get_norm(self.norm).length(noise).clamp_min(1e-12)
        return (centres + noise * (reach / length).view(-1, 1, 1, 1)).clamp(0, 1)


def _network(channels: int, side: int, classes: int) -> nn.Module:
    """Smooth activations, no batch statistics: gradients that exist everywhere."""
    large = side >= 16
    pooled = 7 if large else 4
    return nn.Sequential(
        nn.Conv2d(channels, 16, 3, padding=1),
        nn.SiLU(),
        nn.Conv2d(16, 32, 3, padding=1, stride=2 if large else 1),
        nn.SiLU(),
        nn.AdaptiveAvgPool2d(pooled),
        nn.Flatten(),
        nn.Linear(32 * pooled**2, 64),
        nn.SiLU(),
        nn.Linear(64, classes),
    )
