"""The built-in network bodies: one definition each for any image size."""

import math
import urllib.error
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from stable_baselines3.common.torch_layers import NatureCNN
from torch import Tensor, nn
from torch.hub import get_dir

from agents.models.image_network import BUILT_IN, NETWORKS, Shape, image_space, register_network
from agents.models.layers import ConsistentDropout
from envs.errors import InputError, cause
from envs.lazy_imports import import_torchvision

# Stem, max pool and head of the networks that torchvision has, with weights (He et al. 2016, Huang et al. 2017).
_PARTS = {
    "resnet18": ("conv1", "maxpool", "fc"),
    "resnet50": ("conv1", "maxpool", "fc"),
    "densenet121": ("features.conv0", "features.pool0", "classifier"),
}
PRETRAINED = tuple(_PARTS)
_STANDARD_STEM = 96  # pixels from which torchvision's stem, made for 224, leaves enough of the image


class _WideBlock(nn.Module):
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
                layers.append(_WideBlock(before if first else after, after, 2 if first and group else 1))
        layers += [nn.BatchNorm2d(widths[-1]), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        super().__init__(*layers)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")


class _Attention(nn.Module):
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
    """A small vision transformer (Dosovitskiy et al. 2021; without class token: Beyer et al. 2022).

    Images (N, C, H, W) of one size go to the mean of the last tokens, (N, width), after ``depth`` blocks.

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
        self.blocks = nn.Sequential(*(_Attention(width, heads) for _ in range(depth)), nn.LayerNorm(width))

    def forward(self, x: Tensor) -> Tensor:
        """Return features (N, width) of images (N, C, H, W)."""
        tokens = self.patches(F.pad(x, self.padding)).flatten(2).transpose(1, 2)
        return self.blocks(tokens + self.positions).mean(1)


class _Stack:
    """Grows a sequential body, keeping track of the shape of its activations."""

    def __init__(self, shape: Shape) -> None:
        self.channels, self.height, self.width = shape
        self.layers: list[nn.Module] = []
        self.dropouts = 0

    def conv(self, channels: int, kernel: int = 3, batchnorm: bool = False) -> "_Stack":
        """Append a stride-1 convolution that keeps height and width, optional BatchNorm, ReLU."""
        before, after = (kernel - 1) // 2, kernel // 2
        if before != after:
            self.layers.append(nn.ZeroPad2d((before, after, before, after)))
        self.layers.append(
            nn.Conv2d(self.channels, channels, kernel, padding=before if before == after else 0)
        )
        if batchnorm:
            self.layers.append(nn.BatchNorm2d(channels))
        self.layers.append(nn.ReLU())
        self.channels = channels
        return self

    def halving(self, channels: int) -> "_Stack":
        """Append a 4x4 convolution that halves the sides (one pixel stays), ReLU."""
        sides = (self.height, self.width)
        padding = (1 + (self.height == 1), 1 + (self.width == 1))
        self.layers += [nn.Conv2d(self.channels, channels, 4, stride=2, padding=padding), nn.ReLU()]
        self.channels = channels
        self.height, self.width = (max(side // 2, 1) for side in sides)
        return self

    def pool(self) -> "_Stack":
        """Insert a 2x2 max pool before the last ReLU, which then sees a quarter; a side of one pixel stays."""
        sides = (min(2, self.height), min(2, self.width))
        self.layers.insert(-1, nn.MaxPool2d(sides))
        self.height, self.width = self.height // sides[0], self.width // sides[1]
        return self

    def shrink(self, side: int) -> "_Stack":
        """Append an average pool to at most ``side`` x ``side``, where the activations are larger."""
        if max(self.height, self.width) > side:
            self.height, self.width = min(side, self.height), min(side, self.width)
            self.layers.append(nn.AdaptiveAvgPool2d((self.height, self.width)))
        return self

    def dropout(self, p: float) -> "_Stack":
        """Append dropout with probability ``p``."""
        self.layers.append(ConsistentDropout(p, self.dropouts))
        self.dropouts += 1
        return self

    def linear(self, features: int, batchnorm: bool = False) -> "_Stack":
        """Append flattening, a linear layer, optional BatchNorm, ReLU."""
        self.layers += [nn.Flatten(), nn.Linear(self.channels * self.height * self.width, features)]
        if batchnorm:
            self.layers.append(nn.BatchNorm1d(features))
        self.layers.append(nn.ReLU())
        self.channels, self.height, self.width = features, 1, 1
        return self

    def body(self) -> nn.Sequential:
        dropouts = tuple(layer for layer in self.layers if isinstance(layer, ConsistentDropout))
        for layer in dropouts:
            layer.group = dropouts
        return nn.Sequential(*self.layers)


@register_network("small")
def small(shape: Shape) -> nn.Module:
    """Two convolutions and a linear layer: above 97 % on 8x8 digits within seconds on one CPU core."""
    return _Stack(shape).conv(32).pool().conv(64).pool().shrink(8).linear(128).body()


@register_network("strided")
def strided(shape: Shape) -> nn.Module:
    """Two strided convolutions and a linear layer (Wong and Kolter 2018); .6 MMAC at 1x28x28: MNIST on a CPU."""
    return _Stack(shape).halving(16).halving(32).shrink(8).linear(100).body()


@register_network("mlp")
def mlp(shape: Shape) -> nn.Module:
    """Two hidden layers of 128 units."""
    flat = (math.prod(shape), 1, 1)
    return _Stack(flat).linear(128).linear(128).body()


@register_network("cnn4")
def cnn4(shape: Shape) -> nn.Module:
    """Four 3x3 convolutions and a wide linear layer ("alicnn" of Zou et al., arXiv 2606.12251)."""
    stack = _Stack(shape).conv(32).conv(64).pool().dropout(0.25)
    stack.conv(128).pool().conv(128).pool().dropout(0.25)
    return stack.linear(1024).dropout(0.5).body()


@register_network("cnn6")
def cnn6(shape: Shape) -> nn.Module:
    """Six 4x4 convolutions with BatchNorm ("cnn" of Zou et al., arXiv 2606.12251); 1.14 GMAC at 3x32x32."""
    stack = _Stack(shape)
    for first, second, p in ((264, 128, 0.2), (512, 128, 0.25), (128, 128, 0.35)):
        stack.conv(first, 4, batchnorm=True).conv(second, 4, batchnorm=True).pool().dropout(p)
    return stack.linear(256, batchnorm=True).dropout(0.5).body()


@register_network("nature")
def nature(shape: Shape) -> nn.Module:
    """Return SB3's default for images, NatureCNN (Mnih et al. 2015); needs at least 36x36 pixels."""
    return NatureCNN(image_space(shape))


@register_network("wrn16-4")
def wrn16_4(shape: Shape) -> nn.Module:
    """WideResNet-16-4 (Zagoruyko and Komodakis 2016): 2.75 million weights with the head of ten classes."""
    return WideResNet(shape[0], depth=16, widen=4)


@register_network("vit")
def vit(shape: Shape) -> nn.Module:
    """Return a small vision transformer: 6 blocks of width 192, patches of 2, 4 or 16 pixels by the images' size."""
    side = min(shape[1:])
    return VisionTransformer(shape, patch=2 if side < 16 else 4 if side < _STANDARD_STEM else 16)


def _of_torchvision(name: str, shape: Shape) -> nn.Module:
    """Return torchvision's network without its head; under 96 pixels with a 3x3 stem of stride 1 and no max pool."""
    stem, pool, head = _PARTS[name]
    net = getattr(import_torchvision("models"), name)(weights=None)
    if min(shape[1:]) < _STANDARD_STEM:
        net.set_submodule(stem, nn.Conv2d(shape[0], 64, 3, padding=1, bias=False))
        net.set_submodule(pool, nn.Identity())
    elif shape[0] != 3:
        net.set_submodule(stem, nn.Conv2d(shape[0], 64, 7, stride=2, padding=3, bias=False))
    net.set_submodule(head, nn.Identity())
    return net


for _name in PRETRAINED:
    register_network(_name, partial(_of_torchvision, _name))


def load_pretrained(body: nn.Module, name: str, shape: Shape) -> None:
    """Give ``body`` of `NETWORKS` the weights that torchvision publishes for ImageNet (``IMAGENET1K_V1``).

    They are those of ``name``, one of `PRETRAINED`, but for the head, and are downloaded to ``torch.hub.get_dir()``
    unless they lie there.

    Raises:
        InputError: the network has no such weights or another stem, or the download fails.
    """
    if name not in PRETRAINED:
        advice = f"use one of {', '.join(PRETRAINED)}"
        raise InputError(f"network {name!r} has no weights of torchvision; {advice}")
    if shape[0] != 3 or min(shape[1:]) < _STANDARD_STEM:
        raise InputError(
            f"torchvision's weights are for colour images of at least {_STANDARD_STEM} pixels a side, and these are "
            f"{shape}; resize them, such as by --image-size 224"
        )
    models = import_torchvision("models")
    weights = models.get_model_weights(name).IMAGENET1K_V1
    try:
        whole = models.get_model(name, weights=weights).state_dict()
    except (urllib.error.URLError, OSError, RuntimeError) as error:
        remedy = f"put {weights.url} into {get_dir()}/checkpoints"
        problem = f"cannot get torchvision's weights of {name}: {cause(error, 200)}"
        raise InputError(f"{problem}; {remedy}") from error
    body.load_state_dict({key: value for key, value in whole.items() if key in body.state_dict()})


BUILT_IN.update(NETWORKS)
