"""Network bodies: one definition for any image size, worn by SB3 policies and by plain classifiers.

A body is an ``nn.Module`` from normalised images ``(N, C, H, W)`` to features ``(N, D)``; the last linear
layer, from features to one logit per class, is not part of it. Your own network needs a function of the image
shape::

    @register_network("mine")
    def mine(shape):
        return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), 64), nn.ReLU())
"""

import importlib
import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, NatureCNN
from torch import Tensor, nn

from agents.models.layers import ConsistentDropout
from attacks.core.errors import is_machine_error
from attacks.core.memory_format import passes_laid_out
from envs._torchvision import import_torchvision
from envs.errors import InputError, unknown_name

Shape = tuple[int, int, int]
Build = Callable[[Shape], nn.Module]

NETWORKS: dict[str, Build] = {}
BUILT_IN: frozenset[str] = frozenset()
SPEC_VERSION = 1
_STANDARD_STEM = 96  # pixels from which torchvision's stem, made for 224, leaves enough of the image


def register_network(name: str, build: Build | None = None) -> Any:
    """Add ``build``, a function from the image shape (C, H, W) to a body, to `NETWORKS`; also a decorator.

    Raises:
        InputError: the name is that of a built-in network.
    """
    if build is None:
        return lambda function: register_network(name, function)
    if name in BUILT_IN:
        raise InputError(f"network {name!r} is built in; register yours under another name")
    NETWORKS[name] = build
    return build


def resolve_network(name: str, allow_import: bool = False) -> Build:
    """Return the registered network called ``name``.

    Args:
        name: a key of `NETWORKS`, or an import path "package.module:Callable".
        allow_import: import the path, which executes code, and register it. Only for names that the user
            typed; a name that comes from a file must not reach this with True.

    Raises:
        InputError: the name is unknown, or the import fails or is not allowed.
    """
    if name in NETWORKS:
        return NETWORKS[name]
    if ":" not in name:
        raise unknown_name("network", name, [*NETWORKS, "package.module:Callable"])
    if not allow_import:
        raise InputError(
            f"network {name!r} is an import path, and a name in a file is never imported; "
            f"if you trust that code, name it yourself: --network {name}, or the function as network="
        )
    module_name, _, attribute = name.partition(":")
    try:
        build: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            build = getattr(build, part)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise InputError(
            f"cannot import network {name!r}: {error}; expected package.module:Callable"
        ) from error
    if not callable(build):
        raise InputError(
            f"network {name!r} is a {type(build).__name__}; expected a callable (shape) -> nn.Module"
        )
    return register_network(name, build)


def network_name(build: Build) -> str:
    """Return the name under which ``build`` is registered, else its import path."""
    for name, registered in NETWORKS.items():
        if registered is build:
            return name
    kind = build if hasattr(build, "__qualname__") else type(build)
    return f"{kind.__module__}:{kind.__qualname__}"


def image_space(shape: Shape) -> spaces.Box:
    """Return the observation space of uint8 images of ``shape`` (C, H, W)."""
    return spaces.Box(0, 255, shape, np.uint8)


class ImageNetwork(BaseFeaturesExtractor):
    """Body with its normalisation: float images ``(N, C, H, W)`` in [0, 1] to features ``(N, features_dim)``.

    Usable as ``features_extractor_class`` of any SB3 policy, which divides uint8 images by 255 before. The
    state dict carries ``spec``, the uint8 bytes of a JSON object with version, network and shape, so weights
    describe themselves.

    Args:
        observation_space: ``Box`` of shape (C, H, W).
        network: a name in `NETWORKS`, or a function from (C, H, W) to an ``nn.Module``.
        mean: per channel ``(C,)``, of pixels in [0, 1]; subtracted. None: zeros.
        std: per channel ``(C,)``, above 0; divides. None: ones.
        name: how weights shall call the network. None: its registered name, else its import path.

    Raises:
        InputError: unknown network, or one that does not fit the images; wrong mean or std.
    """

    spec: Tensor
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        observation_space: spaces.Box,
        network: str | Build = "small",
        mean: Sequence[float] | Tensor | None = None,
        std: Sequence[float] | Tensor | None = None,
        name: str | None = None,
    ) -> None:
        shape = tuple(int(size) for size in observation_space.shape or ())
        if len(shape) != 3:
            raise InputError(f"image shape {shape} is not (C, H, W)")
        self.shape: Shape = shape
        build = resolve_network(network) if isinstance(network, str) else network
        self.network_name = name or (network if isinstance(network, str) else network_name(network))
        body, features_dim = _build_body(build, self.network_name, shape)
        super().__init__(observation_space, features_dim)
        self.network = body
        device = next(body.parameters(), torch.empty(0)).device
        self.takes_channels_last = passes_laid_out(body, torch.zeros(1, *shape, device=device))
        self.register_buffer("mean", _per_channel("mean", mean, 0.0, shape[0]))
        self.register_buffer("std", _per_channel("std", std, 1.0, shape[0]))
        spec = {"version": SPEC_VERSION, "network": self.network_name, "shape": list(shape)}
        self.register_buffer("spec", torch.tensor(list(json.dumps(spec).encode()), dtype=torch.uint8))

    def forward(self, images: Tensor) -> Tensor:
        """Return features ``(N, features_dim)`` of float images ``(N, C, H, W)`` in [0, 1]."""
        wrong = not torch.jit.is_tracing() and images.shape[1:] != self.shape  # a tracer takes sizes for data
        if wrong or not images.is_floating_point():
            raise InputError(
                f"images are {images.dtype} {tuple(images.shape)}, expected floats in [0, 1] "
                f"(N, {', '.join(map(str, self.shape))}); divide uint8 by 255, resize to that shape"
            )
        normalised = (images - self.mean[:, None, None]) / self.std[:, None, None]
        if not self.takes_channels_last:
            normalised = normalised.flatten(1).unflatten(1, self.shape)
        return self.network(normalised).flatten(1)


def _build_body(build: Build, name: str, shape: Shape) -> tuple[nn.Module, int]:
    """Return the body for ``shape`` and the number of its features, found by a forward pass on zeros."""
    fit = f"network {name!r} does not fit images of shape {shape}"
    try:
        body = build(shape)
        if not isinstance(body, nn.Module):
            raise InputError(f"network {name!r} built a {type(body).__name__}; expected an nn.Module")
        body.eval()
        device = next(body.parameters(), torch.empty(0)).device
        with torch.no_grad():
            features = body(torch.zeros(1, *shape, device=device)).flatten(1)
    except InputError:
        raise
    except Exception as error:  # whatever a user's own code raises
        if is_machine_error(error):
            raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"{fit}: {reason}; choose another network or a larger image size") from error
    body.train()
    return body, features.shape[1]


def _per_channel(name: str, values: Sequence[float] | Tensor | None, default: float, channels: int) -> Tensor:
    if values is None:
        return torch.full((channels,), default)
    tensor = torch.as_tensor(values, dtype=torch.float32).detach().clone()
    if tensor.shape != (channels,) or not tensor.isfinite().all() or (name == "std" and (tensor <= 0).any()):
        wanted = "positive" if name == "std" else "finite"
        raise InputError(
            f"{name} {tensor.tolist()} does not fit; expected {channels} {wanted} numbers, one per channel"
        )
    return tensor


def to_fast_layout(module: nn.Module) -> nn.Module:
    """Store the weights of 2-d convolutions channels_last, in place, and return ``module``.

    The bodies of `ImageNetwork` that do not take this layout are left out.
    """
    networks = [part for part in module.modules() if isinstance(part, ImageNetwork)]
    left_out = {layer for part in networks if not part.takes_channels_last for layer in part.modules()}
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d) and layer not in left_out:
            layer.weight.data = layer.weight.data.contiguous(memory_format=torch.channels_last)
    return module


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
        """Append a 2x2 max pool; a side of one pixel stays."""
        sides = (min(2, self.height), min(2, self.width))
        pool = nn.MaxPool2d(sides)
        if isinstance(self.layers[-1], nn.ReLU):  # they commute, and ReLU after the pool sees a quarter
            self.layers.insert(-1, pool)
        else:
            self.layers.append(pool)
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


def _small_images(shape: Shape) -> bool:
    return min(shape[1:]) < _STANDARD_STEM


def _resnet(name: str, shape: Shape) -> nn.Module:
    net = getattr(import_torchvision("models"), name)(weights=None)
    if _small_images(shape):
        net.conv1 = nn.Conv2d(shape[0], 64, 3, padding=1, bias=False)
        net.maxpool = nn.Identity()
    elif shape[0] != 3:
        net.conv1 = nn.Conv2d(shape[0], 64, 7, stride=2, padding=3, bias=False)
    net.fc = nn.Identity()
    return net


@register_network("resnet18")
def resnet18(shape: Shape) -> nn.Module:
    """ResNet-18 (He et al. 2016); under 96 pixels with a 3x3 stem of stride 1 and no max pool."""
    return _resnet("resnet18", shape)


@register_network("resnet50")
def resnet50(shape: Shape) -> nn.Module:
    """ResNet-50 (He et al. 2016); under 96 pixels with a 3x3 stem of stride 1 and no max pool."""
    return _resnet("resnet50", shape)


@register_network("densenet121")
def densenet121(shape: Shape) -> nn.Module:
    """DenseNet-121 (Huang et al. 2017); under 96 pixels with a 3x3 stem of stride 1 and no max pool."""
    net = import_torchvision("models").densenet121(weights=None)
    if _small_images(shape):
        net.features.conv0 = nn.Conv2d(shape[0], 64, 3, padding=1, bias=False)
        net.features.pool0 = nn.Identity()
    elif shape[0] != 3:
        net.features.conv0 = nn.Conv2d(shape[0], 64, 7, stride=2, padding=3, bias=False)
    net.classifier = nn.Identity()
    return net


BUILT_IN = frozenset(NETWORKS)
