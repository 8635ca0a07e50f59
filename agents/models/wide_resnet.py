"""Wide residual networks (Zagoruyko and Komodakis 2016)."""

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from envs.errors import InputError


class _Block(nn.Module):
    """Two 3x3 convolutions behind BatchNorm and ReLU, and a shortcut: 1x1 where the shape changes, else the input."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(before)
        self.conv1 = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        changes = before != after or stride != 1
        self.shortcut = nn.Conv2d(before, after, 1, stride, bias=False) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        activated = F.relu(self.norm1(x))
        passed = x if self.shortcut is None else self.shortcut(activated)
        return passed + self.conv2(F.relu(self.norm2(self.conv1(activated))))


class WideResNet(nn.Sequential):
    """Body of WRN-``depth``-``widen``: images (N, C, H, W) of any size to features (N, 64 widen).

    ``depth`` is 6 n + 4, else InputError is raised, with n blocks in each of three groups of 16, 32 and 64 times
    ``widen`` channels; the later two halve the sides.
    """

    def __init__(self, channels: int, depth: int = 16, widen: int = 4) -> None:
        if depth < 10 or (depth - 4) % 6:
            raise InputError(f"depth is {depth}; expected 6 n + 4, such as 16 or 28")
        widths = (16, 16 * widen, 32 * widen, 64 * widen)
        layers: list[nn.Module] = [nn.Conv2d(channels, 16, 3, padding=1, bias=False)]
        for group, (before, after) in enumerate(pairwise(widths)):
            for block in range((depth - 4) // 6):
                first = block == 0
                layers.append(_Block(before if first else after, after, 2 if first and group else 1))
        layers += [nn.BatchNorm2d(widths[-1]), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        super().__init__(*layers)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
