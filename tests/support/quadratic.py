"""A model of which every indicator is known in closed form."""

import torch
from torch import nn


class Quadratic(nn.Module):
    """Two classes with logits (0, q(x)), q(x) = s (x - c)' A (x - c) / 2: the margin loss of class 0 is q itself."""

    def __init__(self, matrix, centre, scale=1.0):
        super().__init__()
        self.matrix = nn.Parameter(torch.as_tensor(matrix))
        self.centre = nn.Parameter(torch.as_tensor(centre))
        self.scale = scale

    def forward(self, x):
        offset = x.flatten(1) - self.centre
        value = self.scale * (offset @ self.matrix * offset).sum(1) / 2
        return torch.stack([torch.zeros_like(value), value], dim=1)


def quadratic_problem():
    """Return a quadratic model, its matrix, five images near its centre and their labels."""
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(4, 4, generator=generator)
    matrix = (root + root.T) / 2
    centre = torch.full((4,), 0.3)
    x = 0.4 + 0.2 * torch.rand(5, 1, 2, 2, generator=generator)
    return Quadratic(matrix, centre), matrix, x, torch.zeros(5, dtype=torch.int64)
