"""Classifiers that are masked in known ways, and sound ones: the audit's test bed, on scikit-learn's digits.

Every case says what the audit should answer. Training takes seconds; models are kept for the process, by seed.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks.core.norms import get_norm
from envs.datasets import load_splits
from eval.audit.findings import Cause

Activation = Callable[[], nn.Module]
BatchLoss = Callable[[nn.Module, Tensor, Tensor], Tensor]


class TinyNet(nn.Module):
    """Two convolutions and two linear layers for 8x8 images; ``channels`` of the input, ``width`` of the first."""

    def __init__(
        self, width: int = 16, activation: Activation = nn.ReLU, channels: int = 1, norm: bool = False
    ):
        super().__init__()

        def batch_norm(size: int) -> nn.Module:
            return nn.BatchNorm2d(size, track_running_stats=False) if norm else nn.Identity()

        self.features = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1),
            batch_norm(width),
            activation(),
            nn.Conv2d(width, 2 * width, 3, padding=1),
            batch_norm(2 * width),
            activation(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(32 * width, 64),
            activation(),
        )
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


# Wrappers that leave the decisions as they are.


class Scaled(nn.Module):
    def __init__(self, model: nn.Module, factor: float):
        super().__init__()
        self.model, self.factor = model, factor

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x) * self.factor


class HalfPrecision(nn.Module):
    """Large logits, handed on in float16."""

    def __init__(self, model: nn.Module, factor: float = 300.0):
        super().__init__()
        self.model, self.factor = model, factor

    def forward(self, x: Tensor) -> Tensor:
        return (self.model(x) * self.factor).half()


class Softmax(nn.Module):
    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x).softmax(1)


class DetachedStage(nn.Module):
    """The features are computed without gradient."""

    def __init__(self, model: TinyNet):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model.head(self.model.features(x).detach())


# Wrappers that change the input.


class Preprocessed(nn.Module):
    """A model behind a function of its input."""

    def __init__(self, model: nn.Module, preprocess: Callable[[Tensor], Tensor]):
        super().__init__()
        self.model, self.preprocess = model, preprocess

    def forward(self, x: Tensor) -> Tensor:
        return self.model(self.preprocess(x))


def quantise(x: Tensor, levels: int = 8) -> Tensor:
    return (x * (levels - 1)).round() / (levels - 1)


def _cosines() -> Tensor:
    """The orthonormal 8-point discrete cosine transform."""
    k, n = torch.arange(8.0)[:, None], torch.arange(8.0)[None, :]
    basis = torch.cos(math.pi * (2 * n + 1) * k / 16) * math.sqrt(2 / 8)
    basis[0] /= math.sqrt(2)
    return basis


def jpeg_like(x: Tensor, step: float = 0.15) -> Tensor:
    """Round the cosine coefficients of the 8x8 block, high frequencies more coarsely."""
    basis = _cosines().to(x)
    frequency = torch.arange(8.0, device=x.device)
    steps = step * (1 + (frequency[:, None] + frequency[None, :]) / 4)
    coefficients = basis @ (x - 0.5) @ basis.T
    return basis.T @ ((coefficients / steps).round() * steps) @ basis + 0.5


def thermometer(x: Tensor, levels: int = 8) -> Tensor:
    """One channel per threshold that the pixel exceeds (Buckman et al. 2018)."""
    thresholds = (torch.arange(levels, device=x.device) + 0.5) / levels
    return (x > thresholds[None, :, None, None]).float()


def random_resize_pad(x: Tensor) -> Tensor:
    """Shrink to 6, 7 or 8 pixels and pad at a random place (Xie et al. 2018)."""
    size = int(torch.randint(6, 9, ()))
    left, top = (int(torch.randint(0, 9 - size, ())) for _ in range(2))
    small = F.interpolate(x, size=(size, size), mode="bilinear", align_corners=False)
    return F.pad(small, (left, 8 - size - left, top, 8 - size - top))


def gaussian_noise(x: Tensor, sigma: float = 0.15) -> Tensor:
    return x + sigma * torch.randn_like(x)


# Layers and mixtures.


class KWinners(nn.Module):
    """Keep the largest activations of each layer and image, zero the others (Xiao et al. 2020)."""

    def __init__(self, share: float = 0.1):
        super().__init__()
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        keep = max(1, round(self.share * flat.shape[1]))
        least = flat.topk(keep, dim=1).values[:, -1:]
        return (flat * (flat >= least)).view_as(x)


class Sign(nn.Module):
    """sign(x); in training with the gradient of a clipped identity."""

    def forward(self, x: Tensor) -> Tensor:
        hard = x.sign()
        if not self.training:
            return hard
        soft = x.clamp(-1, 1)
        return soft + (hard - soft).detach()


class RandomMember(nn.Module):
    """An ensemble of which every call draws one member."""

    def __init__(self, members: list[nn.Module]):
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, x: Tensor) -> Tensor:
        return self.members[int(torch.randint(len(self.members), ()))](x)


# Training.


def cross_entropy(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x), y)


def distillation(teacher: nn.Module, temperature: float) -> BatchLoss:
    """Soft labels of a teacher at a high temperature (Papernot et al. 2016)."""

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            soft = (teacher(x) / temperature).softmax(1)
        return F.cross_entropy(model(x) / temperature, soft)

    return loss


def behind(preprocess: Callable[[Tensor], Tensor]) -> BatchLoss:
    """Cross-entropy of a model that only sees preprocessed images."""
    return lambda model, x, y: F.cross_entropy(model(preprocess(x)), y)


def hot_cross_entropy(temperature: float) -> BatchLoss:
    return lambda model, x, y: F.cross_entropy(model(x) / temperature, y)


def epsilon_greedy(model: nn.Module, x: Tensor, y: Tensor, epsilon: float = 0.1) -> Tensor:
    """Policy gradient with reward 1 for the label; with chance epsilon a batch's actions are uniform."""
    p = model(x).softmax(1) + 1e-6
    p = p / p.sum(1, keepdim=True)
    uniform = bool(torch.rand(()) < epsilon)
    actions = torch.randint(10, (len(x),)) if uniform else torch.multinomial(p.detach(), 1).squeeze(1)
    return -(p.gather(1, actions[:, None]).squeeze(1).log() * (actions == y)).mean()


def _ascend(
    x: Tensor, norm: str, eps: float, objective: Callable[[Tensor], Tensor], steps: int = 7
) -> Tensor:
    measure, radius = get_norm(norm), torch.full((len(x),), eps)
    x_adv = (x + 0.01 * torch.randn_like(x)).clamp(0, 1)
    for _ in range(steps):
        leaf = x_adv.detach().requires_grad_()
        (grad,) = torch.autograd.grad(objective(leaf), leaf)
        x_adv = measure.confine(measure.ascend(x_adv, grad, radius / 3), x, radius)
    return x_adv.detach()


def pgd_at(norm: str, eps: float) -> BatchLoss:
    """Cross-entropy on the images that PGD finds (Madry et al. 2018)."""

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(model, _ascend(x, norm, eps, lambda z: cross_entropy(model, z, y)), y)

    return loss


def trades(norm: str, eps: float, beta: float = 6.0) -> BatchLoss:
    """Cross-entropy plus beta times the divergence to the attacked images (Zhang et al. 2019)."""

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        clean = model(x)
        target = clean.detach().softmax(1)

        def divergence(z: Tensor, reference: Tensor) -> Tensor:
            return F.kl_div(model(z).log_softmax(1), reference, reduction="batchmean")

        return F.cross_entropy(clean, y) + beta * divergence(
            _ascend(x, norm, eps, lambda z: divergence(z, target)), clean.softmax(1)
        )

    return loss


def fit(model: nn.Module, loss: BatchLoss, seed: int, epochs: int, lr: float = 2e-3) -> nn.Module:
    """Train on the digits and return the model in eval mode."""
    data = load_splits("digits").train
    images, labels = data.images.float() / 255, data.labels
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        optimizer = torch.optim.Adam(model.parameters(), lr=lr)
        model.train()
        for _ in range(epochs):
            for rows in torch.randperm(len(images)).split(64):
                optimizer.zero_grad()
                loss(model, images[rows], labels[rows]).backward()
                optimizer.step()
    return model.eval()


def _net(seed: int, *args: object, **options: object) -> TinyNet:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return TinyNet(*args, **options)  # type: ignore[arg-type]


@functools.cache
def base(seed: int, loss: BatchLoss = cross_entropy, epochs: int = 20, **options: object) -> TinyNet:
    """A trained network, kept for the process."""
    return fit(_net(seed, **options), loss, seed, epochs)  # type: ignore[return-value]


# The test bed.

NORM, EPS = "L2", 0.5  # breaks about half of the images of standard networks
TEMPERATURE = 20.0
_through_thermometer = behind(thermometer)
_through_resizing = behind(random_resize_pad)
_hot = hot_cross_entropy(TEMPERATURE)
_robust = pgd_at(NORM, EPS)
_smooth_robust = trades(NORM, EPS)


@dataclass(frozen=True)
class Case:
    """A classifier and what the audit should say of it.

    Attributes:
        name: for tables.
        build: seed to classifier, in eval mode.
        cause: why it is masked; None if it is sound.
        truth: seed to a classifier with the same decisions that nothing masks, where there is one.
    """

    name: str
    build: Callable[[int], nn.Module]
    cause: Cause | None = None
    truth: Callable[[int], nn.Module] | None = None


@functools.cache
def distilled(seed: int) -> nn.Module:
    teacher = base(seed, _hot)
    return fit(_net(seed + 100), distillation(teacher, TEMPERATURE), seed, 20)


def greedy(seed: int) -> nn.Module:
    return base(seed, epsilon_greedy, 200)


MASKED = (
    Case("logits x10", lambda seed: Scaled(base(seed), 10), Cause.SATURATED, base),
    Case("logits x100", lambda seed: Scaled(base(seed), 100), Cause.SATURATED, base),
    Case("float16 saturation", lambda seed: HalfPrecision(base(seed)), Cause.SATURATED, base),
    Case(
        "defensive distillation",
        distilled,
        Cause.SATURATED,
        lambda seed: Scaled(distilled(seed), 1 / TEMPERATURE),
    ),
    Case("softmax outputs", lambda seed: Softmax(base(seed)), Cause.PROBABILITIES, base),
    Case("input quantisation", lambda seed: Preprocessed(base(seed), quantise), Cause.QUANTISED),
    Case("JPEG-like rounding", lambda seed: Preprocessed(base(seed), jpeg_like), Cause.QUANTISED),
    Case(
        "thermometer code",
        lambda seed: Preprocessed(base(seed, _through_thermometer, channels=8), thermometer),
        Cause.QUANTISED,
    ),
    Case("k winners take all", lambda seed: base(seed, activation=KWinners), Cause.SHATTERED),
    Case(
        "random resize and pad",
        lambda seed: Preprocessed(base(seed, _through_resizing, 40), random_resize_pad),
        Cause.RANDOM,
    ),
    Case("Gaussian noise", lambda seed: Preprocessed(base(seed), gaussian_noise), Cause.RANDOM),
    Case("detached stage", lambda seed: DetachedStage(base(seed)), Cause.DETACHED, base),
    Case("sign activation", lambda seed: base(seed, activation=Sign), Cause.QUANTISED),
    Case("random ensemble", lambda seed: RandomMember([base(seed + k) for k in range(3)]), Cause.RANDOM),
    Case("batch statistics", lambda seed: base(seed, norm=True), Cause.BATCH),
    Case(
        "long-trained epsilon-greedy policy",
        greedy,
        Cause.SATURATED,
        lambda seed: Scaled(greedy(seed), 1 / TEMPERATURE),
    ),
)
SOUND = (
    Case("standard training", base),
    Case("standard training, narrow", lambda seed: base(seed, width=8)),
    Case("standard training, wide", lambda seed: base(seed, width=32)),
    Case("PGD-AT", lambda seed: base(seed, _robust)),
    Case("TRADES", lambda seed: base(seed, _smooth_robust)),
    Case("softplus", lambda seed: base(seed, activation=nn.Softplus)),
    Case("SiLU", lambda seed: base(seed, activation=nn.SiLU)),
)


def images(count: int) -> tuple[Tensor, Tensor]:
    """The first test images, floats in [0, 1], and their labels."""
    data = load_splits("digits").test
    return data.images[:count].float() / 255, data.labels[:count]
