"""Published defences in small form, and other ways to hide adversarial images: functions of images, and wrappers."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Stage = Callable[[Tensor], Tensor]


class Before(nn.Module):
    """A model behind a function of its input."""

    def __init__(self, model: nn.Module, preprocess: Stage):
        super().__init__()
        self.model, self.preprocess = model, preprocess

    def forward(self, x: Tensor) -> Tensor:
        return self.model(self.preprocess(x))


class After(nn.Module):
    """A function of a model's logits."""

    def __init__(self, model: nn.Module, postprocess: Stage):
        super().__init__()
        self.model, self.postprocess = model, postprocess

    def forward(self, x: Tensor) -> Tensor:
        return self.postprocess(self.model(x))


class Detached(nn.Module):
    """The features are computed without gradient."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model.head(self.model.features(x).detach())  # type: ignore[union-attr, operator]


class Mean(nn.Module):
    """The mean of several models' logits, or of their probabilities."""

    def __init__(self, *members: nn.Module, probabilities: bool = False):
        super().__init__()
        self.members, self.probabilities = nn.ModuleList(members), probabilities

    def forward(self, x: Tensor) -> Tensor:
        logits = torch.stack([member(x) for member in self.members])
        return (logits.softmax(2) if self.probabilities else logits).mean(0)


class RandomMember(nn.Module):
    """An ensemble of which every call draws one member."""

    def __init__(self, *members: nn.Module):
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, x: Tensor) -> Tensor:
        return self.members[int(torch.randint(len(self.members), ()))](x)


# Functions of images.


def quantise(x: Tensor, levels: int = 8) -> Tensor:
    """Fewer grey levels (feature squeezing, Xu et al. 2018)."""
    return (x * (levels - 1)).round() / (levels - 1)


def jpeg_like(x: Tensor, step: float = 0.15) -> Tensor:
    """Round the cosine coefficients of the 8x8 block, high frequencies more coarsely (JPEG: Guo et al. 2018)."""
    k, n = torch.arange(8.0)[:, None], torch.arange(8.0)[None, :]
    basis = torch.cos(math.pi * (2 * n + 1) * k / 16) * math.sqrt(2 / 8)
    basis[0] /= math.sqrt(2)
    steps = step * (1 + (k + n) / 4)
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
    """Noise on every image (randomised smoothing with one draw, Cohen et al. 2019)."""
    return x + sigma * torch.randn_like(x)


def pixel_deflection(x: Tensor, count: int = 12) -> Tensor:
    """Pixels replaced by random neighbours, then a blur (Prakash et al. 2018)."""
    n = len(x)
    rows, columns = torch.randint(1, 7, (2, n, count))
    up, right = torch.randint(-1, 2, (2, n, count))
    each = torch.arange(n)[:, None]
    deflected = x.clone()
    deflected[each, 0, rows, columns] = x[each, 0, rows + up, columns + right]
    return 0.8 * deflected + 0.2 * F.avg_pool2d(deflected, 3, 1, 1)


def total_variation(x: Tensor, weight: float = 0.05, steps: int = 8) -> Tensor:
    """The image of least total variation near the given one, without gradient (Guo et al. 2018)."""
    with torch.enable_grad():
        smooth = x.detach().clone()
        for _ in range(steps):
            leaf = smooth.requires_grad_()
            edges = (leaf.diff(dim=2).square() + 1e-4).sqrt().sum() + (
                leaf.diff(dim=3).square() + 1e-4
            ).sqrt().sum()
            (grad,) = torch.autograd.grad(weight * edges + 0.5 * (leaf - x.detach()).square().sum(), leaf)
            smooth = (smooth - 0.3 * grad).detach()
    return smooth


class Purifier(nn.Module):
    """An autoencoder trained to take noise off images (MagNet's reformer, Meng and Chen 2017)."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.Softplus(), nn.Conv2d(16, 16, 3, padding=1), nn.Softplus(),
            nn.Conv2d(16, 1, 3, padding=1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def denoising(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The purifier's loss: squared distance to the clean image."""
    return (model((x + 0.2 * torch.randn_like(x)).clamp(0, 1)) - x).square().mean()


def gamma(x: Tensor) -> Tensor:
    """Gamma correction, whose slope at black is infinite."""
    return x ** (1 / 2.2)


# Layers.


class KWinners(nn.Module):
    """Keep the largest activations of each layer and image, zero the others (k-WTA, Xiao et al. 2020)."""

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        least = flat.topk(max(1, round(0.1 * flat.shape[1])), dim=1).values[:, -1:]
        return (flat * (flat >= least)).view_as(x)


class Sign(nn.Module):
    """sign(x); in training with the gradient of a clipped identity (binarised networks, Galloway et al. 2018)."""

    def forward(self, x: Tensor) -> Tensor:
        hard = x.sign()
        if not self.training:
            return hard
        soft = x.clamp(-1, 1)
        return soft + (hard - soft).detach()


class Spikes(nn.Module):
    """Integrate and fire: rates of 4 steps; trained with a straight slope (Sharmin et al. 2019)."""

    def forward(self, x: Tensor) -> Tensor:
        rate = (x.clamp(0, 1) * 4).floor() / 4
        if not self.training:
            return rate
        soft = x.clamp(0, 1)
        return soft + (rate - soft).detach()


class Pruned(nn.Module):
    """Stochastic activation pruning: activations drawn by size, scaled by chance (Dhillon et al. 2018)."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return x.relu()
        flat = x.relu().flatten(1)
        share = flat / flat.sum(1, keepdim=True).clamp_min(1e-12)
        kept = 1 - (1 - share).clamp_min(1e-12) ** flat.shape[1]
        drawn = (torch.rand_like(flat) < kept).float()
        return (flat * drawn / kept.clamp_min(1e-6)).view_as(x)


# Functions of logits.


def clamped(logits: Tensor) -> Tensor:
    """Gaps to the largest logit, cut off at 1 and sharpened."""
    return (logits - logits.amax(1, keepdim=True)).clamp(min=-1) * 50


def sine(logits: Tensor) -> Tensor:
    """A ripple of tiny amplitude and high frequency."""
    return logits + 1e-3 * torch.sin(1e5 * logits)


def error_correcting(logits: Tensor) -> Tensor:
    """Saturated bits compared with the classes' code words (Verma and Swami 2019): the rows of a Hadamard matrix."""
    code = torch.ones(1, 1)
    for _ in range(4):
        code = torch.cat([torch.cat([code, code], 1), torch.cat([code, -code], 1)])
    code = code[1:11]  # ten words of 16 bits
    bits = (logits @ code).div(4).tanh()
    return 20 * bits @ code.T


# Wrong backward passes.


class TurnedRound(torch.autograd.Function):
    """The identity with the gradient's sign turned round."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return -grad


class NoNumber(TurnedRound):
    """The identity with NaN for a gradient."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return grad * torch.nan


class _Decoy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, model: nn.Module, other: nn.Module) -> Tensor:
        ctx.save_for_backward(x)
        ctx.other = other
        return model(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        with torch.enable_grad():
            leaf = ctx.saved_tensors[0].detach().requires_grad_()
            return torch.autograd.grad((ctx.other(leaf) * grad).sum(), leaf)[0], None, None


class Decoy(nn.Module):
    """The forward pass of one network with the backward pass of another."""

    def __init__(self, model: nn.Module, other: nn.Module):
        super().__init__()
        self.model, self.other = model, other

    def forward(self, x: Tensor) -> Tensor:
        return _Decoy.apply(x, self.model, self.other)


# Wrappers with data or steps of their own.


class MixupInference(nn.Module):
    """Mean prediction over mixtures with images of other classes (Pang et al. 2020)."""

    def __init__(self, model: nn.Module, pool: Tensor, share: float = 0.6, draws: int = 5):
        super().__init__()
        self.model, self.pool, self.share, self.draws = model, pool, share, draws

    def forward(self, x: Tensor) -> Tensor:
        others = (self.pool[torch.randint(len(self.pool), (len(x),))] for _ in range(self.draws))
        return torch.stack([self.model(self.share * x + (1 - self.share) * o) for o in others]).mean(0)


class AntiAdversary(nn.Module):
    """The image is first moved to where the model is surer of what it says (Alfarra et al. 2022)."""

    def __init__(self, model: nn.Module, length: float = 0.4, steps: int = 2):
        super().__init__()
        self.model, self.length, self.steps = model, length, steps

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            moved = x.detach()
            label = self.model(moved).argmax(1)
            for _ in range(self.steps):
                leaf = moved.requires_grad_()
                (grad,) = torch.autograd.grad(F.cross_entropy(self.model(leaf), label, reduction="sum"), leaf)
                unit = F.normalize(grad.flatten(1), eps=1e-12).view_as(grad)
                moved = (moved - self.length / self.steps * unit).detach()
        return self.model(x + (moved - x.detach()))


class Neighbours(nn.Module):
    """Labels of the nearest training images in a network's features (deep k-nearest neighbours, Papernot 2018)."""

    def __init__(self, model: nn.Module, pool: Tensor, labels: Tensor, k: int = 15, soft: bool = False):
        super().__init__()
        self.features, self.k, self.soft = model.features, k, soft
        with torch.no_grad():
            self.known = F.normalize(self.features(pool))  # type: ignore[operator]
        self.labels = F.one_hot(labels, 10).float()

    def forward(self, x: Tensor) -> Tensor:
        close = F.normalize(self.features(x)) @ self.known.T  # type: ignore[operator]
        if self.soft:  # the substitute of Sitawarin and Wagner 2019
            return ((close - 1) * 60).softmax(1) @ self.labels
        return self.labels[close.topk(self.k, dim=1).indices].mean(1)
