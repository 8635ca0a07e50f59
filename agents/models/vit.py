"""A small vision transformer (Dosovitskiy et al. 2021; without class token: Beyer et al. 2022)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _Block(nn.Module):
    """Self-attention and a two-layer perceptron, each behind LayerNorm and added to its input."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.join = nn.Linear(width, width)
        self.perceptron = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        parts = self.query_key_value(self.norm1(x)).unflatten(-1, (3, self.heads, -1))
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        x = x + self.join(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))
        return x + self.perceptron(self.norm2(x))


class VisionTransformer(nn.Module):
    """Images (N, C, H, W) of one size to the mean of the last tokens, (N, width), after ``depth`` blocks.

    Sides that are no multiple of ``patch`` pixels are padded with zeros on the right and at the bottom; ``width`` is a
    multiple of the attention's ``heads``.
    """

    def __init__(
        self, shape: tuple[int, int, int], patch: int = 4, width: int = 192, depth: int = 6, heads: int = 3
    ) -> None:
        super().__init__()
        channels, height, width_pixels = shape
        self.padding = (0, -width_pixels % patch, 0, -height % patch)
        self.patches = nn.Conv2d(channels, width, patch, patch)
        tokens = -(-height // patch) * -(-width_pixels // patch)
        self.positions = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, tokens, width), std=0.02))
        self.blocks = nn.Sequential(*(_Block(width, heads) for _ in range(depth)), nn.LayerNorm(width))

    def forward(self, x: Tensor) -> Tensor:
        """Return features (N, width) of images (N, C, H, W)."""
        tokens = self.patches(F.pad(x, self.padding)).flatten(2).transpose(1, 2)
        return self.blocks(tokens + self.positions).mean(1)
