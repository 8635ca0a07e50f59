"""Network bodies by name, and the module in which SB3 policies and plain classifiers use them.

A body is an ``nn.Module`` from normalised images ``(N, C, H, W)`` to features ``(N, D)``; the last linear
layer, from features to one logit per class, is not part of it. Your own network needs a function of the image
shape::

    @register_network("mine")
    def mine(shape):
        return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), 64), nn.ReLU())
"""

import importlib
import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn

from attacks.core.errors import is_machine_error
from attacks.core.model_state import passes_laid_out
from envs.errors import InputError, unknown_name

Shape = tuple[int, int, int]
Build = Callable[[Shape], nn.Module]

NETWORKS: dict[str, Build] = {}
BUILT_IN: set[str] = set()  # those of `agents.models.architectures`
SPEC_VERSION = 1


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
        expected = "expected package.module:Callable"
        raise InputError(f"cannot import network {name!r}: {error}; {expected}") from error
    if not callable(build):
        kind = type(build).__name__
        raise InputError(f"network {name!r} is a {kind}; expected a callable (shape) -> nn.Module")
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
        mean, std: per channel ``(C,)``, of pixels in [0, 1], std above 0; None: zeros and ones.
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
        wanted = f"{channels} {'positive' if name == 'std' else 'finite'} numbers, one per channel"
        raise InputError(f"{name} {tensor.tolist()} does not fit; expected {wanted}")
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
