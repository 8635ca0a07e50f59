"""Small networks for scikit-learn's digits, and the ways in which the audit's test bed trains them.

Training takes seconds; networks are kept for the process, by seed.
"""

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks.core.norms import get_norm
from envs.datasets import load_splits
from envs.sampling import choose_indices

Activation = Callable[[], nn.Module]
BatchLoss = Callable[[nn.Module, Tensor, Tensor], Tensor]
NORM, EPS = "L2", 0.5  # breaks about half of the images of standard networks
TEMPERATURE = 20.0


class TinyNet(nn.Module):
    """Two convolutions and two linear layers for 8x8 images.

    Args:
        width: channels of the first convolution.
        activation: between layers.
        channels: of the input.
        classes: of the output.
        norm: "" for none, "batch", "layer", or "test batch" for statistics of the batch at hand.
    """

    def __init__(
        self,
        width: int = 16,
        activation: Activation = nn.ReLU,
        channels: int = 1,
        classes: int = 10,
        norm: str = "",
    ):
        super().__init__()

        def normalised(size: int) -> nn.Module:
            if norm == "layer":
                return nn.GroupNorm(1, size)
            return nn.BatchNorm2d(size, track_running_stats=norm == "batch") if norm else nn.Identity()

        self.features = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1),
            normalised(width),
            activation(),
            nn.Conv2d(width, 2 * width, 3, padding=1),
            normalised(2 * width),
            activation(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(32 * width, 64),
            activation(),
        )
        self.head = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


class TinyViT(nn.Module):
    """A vision transformer of two layers on 2x2 patches (Dosovitskiy et al. 2021)."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 32, 2, stride=2)
        self.place = nn.Parameter(0.02 * torch.randn(16, 32))
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, activation="gelu", batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(self.patches(x).flatten(2).mT + self.place).mean(1))


class Linear(nn.Sequential):
    """Logistic regression, or with hidden layers of 64 a multilayer perceptron."""

    def __init__(self, hidden: int = 0) -> None:
        layers = [part for _ in range(hidden) for part in (nn.Linear(64, 64), nn.ReLU())]
        super().__init__(nn.Flatten(), *layers, nn.Linear(64, 10))


def images(count: int, split: str = "test", task: str = "digits") -> tuple[Tensor, Tensor]:
    """Images spread over a split, floats in [0, 1], and their labels.

    Tasks other than "digits": "parity" has two classes, "turned" has 40, the digit and its quarter turn.
    """
    data = load_splits("digits")
    part = data.test if split == "test" else data.train
    rows = choose_indices(len(part), count)
    x, y = part.images[rows].float() / 255, part.labels[rows]
    if task == "parity":
        return x, y % 2
    if task == "turned":
        turns = torch.arange(len(x)) % 4
        return torch.stack(
            [image.rot90(int(k), (1, 2)) for image, k in zip(x, turns, strict=True)]
        ), 4 * y + turns
    return x, y


def cross_entropy(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x), y)


def smoothed_labels(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x), y, label_smoothing=0.2)


def noisy_images(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy on Gaussian noise: the base classifier of randomised smoothing (Cohen et al. 2019)."""
    return F.cross_entropy(model((x + 0.25 * torch.randn_like(x)).clamp(0, 1)), y)


def squeezed_logits(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy on noise plus the size of the logits (logit squeezing, Kannan et al. 2018; Shafahi et al. 2019)."""
    logits = model((x + 0.25 * torch.randn_like(x)).clamp(0, 1))
    return F.cross_entropy(logits, y) + 0.05 * logits.square().sum(1).mean()


def hot_cross_entropy(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x) / TEMPERATURE, y)


def one_against_all(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    logits = model(x)
    return F.binary_cross_entropy_with_logits(logits, F.one_hot(y, logits.shape[1]).float())


def distillation(teacher: nn.Module) -> BatchLoss:
    """Soft labels of a teacher at a high temperature (Papernot et al. 2016)."""

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            soft = (teacher(x) / TEMPERATURE).softmax(1)
        return F.cross_entropy(model(x) / TEMPERATURE, soft)

    return loss


def behind(preprocess: Callable[[Tensor], Tensor]) -> BatchLoss:
    """Cross-entropy of a model that only sees preprocessed images."""
    return lambda model, x, y: F.cross_entropy(model(preprocess(x)), y)


def epsilon_greedy(model: nn.Module, x: Tensor, y: Tensor, epsilon: float = 0.1) -> Tensor:
    """Policy gradient with reward 1 for the label; with chance epsilon a batch's actions are uniform."""
    p = model(x).softmax(1) + 1e-6
    p = p / p.sum(1, keepdim=True)
    uniform = bool(torch.rand(()) < epsilon)
    actions = torch.randint(10, (len(x),)) if uniform else torch.multinomial(p.detach(), 1).squeeze(1)
    return -(p.gather(1, actions[:, None]).squeeze(1).log() * (actions == y)).mean()


def _ascend(x: Tensor, objective: Callable[[Tensor], Tensor], steps: int = 7) -> Tensor:
    measure, radius = get_norm(NORM), torch.full((len(x),), EPS)
    x_adv = (x + 0.01 * torch.randn_like(x)).clamp(0, 1)
    for _ in range(steps):
        leaf = x_adv.detach().requires_grad_()
        (grad,) = torch.autograd.grad(objective(leaf), leaf)
        x_adv = measure.confine(measure.ascend(x_adv, grad, radius * (1 if steps == 1 else 1 / 3)), x, radius)
    return x_adv.detach()


def pgd_at(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy on the images that PGD finds (Madry et al. 2018)."""
    return cross_entropy(model, _ascend(x, lambda z: cross_entropy(model, z, y)), y)


def fgsm_at(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy on the images that one step finds (Goodfellow et al. 2015)."""
    return cross_entropy(model, _ascend(x, lambda z: cross_entropy(model, z, y), 1), y)


def trades(model: nn.Module, x: Tensor, y: Tensor, beta: float = 6.0) -> Tensor:
    """Cross-entropy plus beta times the divergence to the attacked images (Zhang et al. 2019)."""
    clean = model(x)
    target = clean.detach().softmax(1)

    def divergence(z: Tensor, reference: Tensor) -> Tensor:
        return F.kl_div(model(z).log_softmax(1), reference, reduction="batchmean")

    attacked = _ascend(x, lambda z: divergence(z, target))
    return F.cross_entropy(clean, y) + beta * divergence(attacked, clean.softmax(1))


def fit(
    model: nn.Module, loss: BatchLoss, seed: int, epochs: int, lr: float = 2e-3, task: str = "digits"
) -> nn.Module:
    """Train on the digits and return the model in eval mode."""
    x, y = images(10**6, "train", task)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        optimizer = torch.optim.Adam(model.parameters(), lr=lr)
        model.train()
        for _ in range(epochs):
            for rows in torch.randperm(len(x)).split(64):
                optimizer.zero_grad()
                loss(model, x[rows], y[rows]).backward()
                optimizer.step()
    return model.eval()


def made(seed: int, network: Callable[..., nn.Module] = TinyNet, **options: object) -> nn.Module:
    """A network with the seed's own initial weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return network(**options)


@functools.cache
def base(
    seed: int,
    loss: BatchLoss = cross_entropy,
    epochs: int = 20,
    network: Callable[..., nn.Module] = TinyNet,
    task: str = "digits",
    **options: object,
) -> nn.Module:
    """A trained network, kept for the process."""
    return fit(made(seed, network, **options), loss, seed, epochs, task=task)


@functools.cache
def distilled(seed: int) -> nn.Module:
    """A student of a teacher at a high temperature, used at temperature 1 (Papernot et al. 2016)."""
    return fit(made(seed + 100), distillation(base(seed, hot_cross_entropy)), seed, 20)


def greedy(seed: int) -> nn.Module:
    """An epsilon-greedy policy trained for long."""
    return base(seed, epsilon_greedy, 200)
