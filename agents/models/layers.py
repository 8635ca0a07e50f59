"""Dropout and BatchNorm that agree between a rollout and the policy updates that follow it.

PPO compares log-probabilities of one image under the old and the new weights. Fresh dropout masks, or
statistics of another minibatch, change them at unchanged weights: then the first update's ratio is not 1.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from envs.errors import InputError
from envs.rng import hash_tensor

_LAYERS = 8  # whose hashes are made together


@dataclass
class _Seeds:
    """Seeds of the images of a batch, int64 ``(N,)``, and their hashes for each layer."""

    values: Tensor

    @cached_property
    def _hashes(self) -> Tensor:
        layers = torch.arange(_LAYERS, device=self.values.device)
        return hash_tensor(self.values[:, None], layers).to(torch.int32)

    def hashes(self, layer: int) -> Tensor:
        """Return int32 ``(N,)``."""
        return self._hashes[:, layer] if layer < _LAYERS else hash_tensor(self.values, layer).to(torch.int32)


_seeds: ContextVar[_Seeds | None] = ContextVar("seeds", default=None)


@contextmanager
def in_mode(training: bool, *modules: nn.Module) -> Iterator[None]:
    """Within this context all parts of ``modules`` are in train or eval mode; then each has its own mode again.

    Every part is set by itself, since `frozen_batchnorm` disables ``train()``.
    """
    modes = [(part, part.training) for module in modules for part in module.modules()]
    try:
        for part, _ in modes:
            part.training = training
        yield
    finally:
        for part, mode in modes:
            part.training = mode


@contextmanager
def sample_seeds(seeds: Tensor) -> Iterator[None]:
    """Within this context a `ConsistentDropout` in train mode takes the mask of image i from ``seeds[i]`` alone.

    ``seeds``: int64 ``(N,)``, on the device of the images; N is the batch size of every forward pass inside.
    """
    token = _seeds.set(_Seeds(seeds))
    try:
        yield
    finally:
        _seeds.reset(token)


class ConsistentDropout(nn.Dropout):
    """Dropout with repeatable masks (consistent dropout: Hausknecht and Wagener 2022, arXiv 2202.11818).

    The paper stores the masks of the rollout; here they are hashes of (seed of the image, layer, position),
    so nothing is stored and minibatches may group images in any way. Outside of `sample_seeds` it is
    ``nn.Dropout`` with probability ``p``, in [0, 1). Layers of one network with equal numbers ``layer`` share masks.
    """

    def __init__(self, p: float, layer: int) -> None:
        if not 0 <= p < 1:
            raise InputError(f"dropout probability {p} is outside [0, 1)")
        super().__init__(p)
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` ``(N, ...)`` with elements zeroed at rate p and the rest scaled by 1 / (1 - p)."""
        seeds = _seeds.get()
        if seeds is None or not self.training or self.p == 0:
            return F.dropout(x, self.p, self.training)
        if len(seeds.values) != len(x):
            remedy = "give one seed per image"
            raise InputError(f"{len(seeds.values)} sample seeds for a batch of {len(x)} images; {remedy}")
        return x * self._keep(seeds, x).to(x.dtype).mul_(1 / (1 - self.p))

    def _keep(self, seeds: _Seeds, x: Tensor) -> Tensor:
        # 32-bit arithmetic, in place: on a CPU this costs what drawing the mask at random does.
        channels_last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
        images = seeds.hashes(self.layer).view(-1, *[1] * (x.dim() - 1))
        bits = images ^ _positions(x.shape[1:], channels_last, x.device)
        bits.mul_(0x2C1B3C6D)
        bits.bitwise_xor_(bits >> 15)
        bits.mul_(0x297A2D39)
        return bits >= int(self.p * 2**32) - 2**31

    def extra_repr(self) -> str:
        """Return the arguments, as ``print(network)`` shows them."""
        return f"p={self.p}, layer={self.layer}"


def _batchnorm_layers(module: nn.Module) -> list[_BatchNorm]:
    return [layer for layer in module.modules() if isinstance(layer, _BatchNorm)]


@lru_cache(maxsize=32)
def _positions(shape: torch.Size, channels_last: bool, device: torch.device) -> Tensor:
    """Return a hash of each position in activations of this shape, int32 ``(1, *shape)``, in their memory layout."""
    hashes = hash_tensor(torch.arange(shape.numel(), device=device)).to(torch.int32).view(1, *shape)
    return hashes.contiguous(memory_format=torch.channels_last) if channels_last else hashes


@contextmanager
def frozen_batchnorm(module: nn.Module) -> Iterator[None]:
    """Within this context BatchNorm layers of ``module`` use and keep their running statistics.

    They do so even through ``module.train()``, with which SB3's updates begin; scales and shifts still learn.
    """
    layers = [layer for layer in _batchnorm_layers(module) if "train" not in layer.__dict__]  # not yet frozen
    modes = [layer.training for layer in layers]
    for layer in layers:
        layer.eval()
        layer.__dict__["train"] = lambda mode=True, layer=layer: layer
    try:
        yield
    finally:
        for layer, mode in zip(layers, modes, strict=True):
            del layer.__dict__["train"]
            layer.train(mode)


@torch.no_grad()
def refresh_batchnorm(module: nn.Module, batches: Iterable[Tensor]) -> None:
    """Replace the running statistics of BatchNorm layers by their mean over ``batches`` at the present weights.

    ``module`` is called in train mode, without gradients, on every batch, all of about the same size and of at least
    two images; its modes are restored.
    """
    layers = _batchnorm_layers(module)
    if not layers:
        return
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # PyTorch's name for the cumulative mean
    try:
        with in_mode(True, module):
            for batch in batches:
                module(batch)
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
