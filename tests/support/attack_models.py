"""Models with known answers, and the data they are attacked on, shared by the tests of the attacks."""

import torch
from torch import Tensor, nn

SHAPE = (1, 4, 4)


class Linear(nn.Module):
    """Logits (0, w.x + b): the margin of class 1 is linear, so every optimal attack is known in closed form."""

    def __init__(self, weight: Tensor, bias: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.flatten())
        self.bias = bias

    def margin(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight + self.bias

    def forward(self, x: Tensor) -> Tensor:
        margin = self.margin(x)
        return torch.stack([torch.zeros_like(margin), margin], dim=1)


def linear_problem(n: int = 12, seed: int = 0) -> tuple[Linear, Tensor, Tensor]:
    """A linear model, images near the middle of the box, and labels that are all correct; float64."""
    generator = torch.Generator().manual_seed(seed)
    model = Linear(torch.randn(16, generator=generator, dtype=torch.float64))
    x = 0.4 + 0.2 * torch.rand(n, *SHAPE, generator=generator, dtype=torch.float64)
    return model, x, model(x).argmax(1)


def random_cnn(classes: int = 5, *, scale: float = 1.0, dtype: torch.dtype = torch.float64) -> nn.Module:
    """A fixed small convolutional network on 1x8x8 images; logits times ``scale``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        layers = [
            nn.Conv2d(1, 6, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 8, 3, padding=1),
            nn.Tanh(),
        ]
        model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(128, classes)).to(dtype).eval()
    model[-1].weight.data *= 8 * scale
    model[-1].bias.data *= scale
    return model


def cnn_problem(
    n: int = 40, *, dtype: torch.dtype = torch.float64, **options
) -> tuple[nn.Module, Tensor, Tensor]:
    """`random_cnn`, random images, and its own predictions as labels but for every tenth, which is wrong."""
    model = random_cnn(dtype=dtype, **options)
    x = torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(2), dtype=dtype)
    logits = model(x).detach()
    y = logits.argmax(1)
    y[::10] = (y[::10] + 1) % logits.shape[1]
    return model, x, y
