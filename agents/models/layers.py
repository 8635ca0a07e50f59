"""Dropout and BatchNorm that agree between a rollout and the policy updates that follow it.

PPO compares log-probabilities of one image under the old and the new weights. Fresh dropout masks, or
statistics of another minibatch, change them at unchanged weights: then the first update's ratio is not 1.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from envs.errors import InputError
from envs.rng import hash_tensor

_LAYERS = 8  # whose hashes are made together


class SampleSeeds:
    """Seeds of the images of a batch, and their hashes for each layer, made when first needed.

    Args:
        values: int64 ``(N,)``.
        hashes: what `hashes` was for these seeds, if it is known.
    """

    def __init__(self, values: Tensor, hashes: Tensor | None = None) -> None:
        self.values = values
        self._hashes = hashes
        # By the identity of the layer, where they are made for all layers together.
        self.masks: dict[int, Tensor] = {}

    @property
    def hashed(self) -> bool:
        """Whether there are hashes already."""
        return self._hashes is not None

    @property
    def hashes(self) -> Tensor:
        """Hashes for the first layers, int32 ``(N, 8)``."""
        if self._hashes is None:
            self._hashes = hash_tensor(self.values[:, None], _layers(self.values.device)).to(torch.int32)
        return self._hashes


_Layout = tuple[torch.Size, bool]  # of activations: shape without images, and whether in channels_last
_seeds: ContextVar[SampleSeeds | None] = ContextVar("seeds", default=None)


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
def sample_seeds(seeds: Tensor | SampleSeeds) -> Iterator[None]:
    """Within this context a `ConsistentDropout` in train mode takes the mask of image i from ``seeds[i]`` alone.

    ``seeds``: int64 ``(N,)``, on the device of the images; N is the batch size of every forward pass inside.
    """
    token = _seeds.set(SampleSeeds(seeds) if isinstance(seeds, Tensor) else seeds)
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
        self.group: tuple[ConsistentDropout, ...] = (self,)
        self._layout: _Layout | None = None  # of the last pass

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` ``(N, ...)`` with elements zeroed at rate p and the rest scaled by 1 / (1 - p)."""
        seeds = _seeds.get()
        if seeds is None or not self.training or self.p == 0:
            return F.dropout(x, self.p, self.training)
        if len(seeds.values) != len(x):
            raise InputError(
                f"{len(seeds.values)} sample seeds for a batch of {len(x)} images; give one seed per image"
            )
        layout = (x.shape[1:], x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last))
        scale = 1 / (1 - self.p)
        if x.is_cuda and not torch.compiler.is_compiling():
            return _Masked.apply(x, self._keep_of_group(seeds, layout), scale)
        return x * self._keep(seeds, layout).to(x.dtype).mul_(scale)

    def _keep(self, seeds: SampleSeeds, layout: "_Layout") -> Tensor:
        if self.layer < _LAYERS:
            hashes = seeds.hashes[:, self.layer]
        else:
            hashes = hash_tensor(seeds.values, self.layer).to(torch.int32)
        hashes = hashes.view(-1, *[1] * len(layout[0]))
        return _mixed(hashes ^ _positions(*layout, hashes.device)) >= self.threshold

    def _keep_of_group(self, seeds: SampleSeeds, layout: "_Layout") -> Tensor:
        """Return the mask; masks of layers whose layouts are known are made together, as every launch counts."""
        if layout != self._layout or self.layer >= _LAYERS:
            self._layout = layout
            seeds.masks.pop(id(self), None)
            return self._keep(seeds, layout)
        if id(self) not in seeds.masks:
            known = [
                (id(layer), _Part(layer.layer, layer.threshold, *layer._layout))
                for layer in self.group
                if layer._layout is not None and layer.layer < _LAYERS
            ]
            parts = tuple(part for _, part in known)
            numbers, thresholds, positions = _positions_of(parts, seeds.values.device)
            bits = seeds.hashes.index_select(1, numbers).bitwise_xor_(positions)
            masks = (_mixed(bits) >= thresholds).split([part.shape.numel() for part in parts], 1)
            for (name, part), mask in zip(known, masks, strict=True):
                if part.channels_last:
                    mask = mask.unflatten(1, (*part.shape[1:], part.shape[0])).movedim(-1, 1)
                seeds.masks[name] = mask if part.channels_last else mask.unflatten(1, part.shape)
        return seeds.masks[id(self)]

    @property
    def threshold(self) -> int:
        """The least random int32 that keeps an element."""
        return int(self.p * 2**32) - 2**31

    def extra_repr(self) -> str:
        """Return the arguments, as ``print(network)`` shows them."""
        return f"p={self.p}, layer={self.layer}"


def _batchnorm_layers(module: nn.Module) -> list[_BatchNorm]:
    return [layer for layer in module.modules() if isinstance(layer, _BatchNorm)]


def _mixed(bits: Tensor) -> Tensor:
    """Make int32 hashes random bits, in place: on a CPU this costs what drawing them does."""
    bits.mul_(0x2C1B3C6D)
    bits.bitwise_xor_(bits >> 15)
    return bits.mul_(0x297A2D39)


class _Masked(torch.autograd.Function):
    """``x * keep * scale``, forward and backward by one kernel each."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, keep: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(keep)
        ctx.scale = scale
        return torch.ops.aten.native_dropout_backward(x, keep, scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (keep,) = ctx.saved_tensors
        return _Masked.apply(gradient, keep, ctx.scale), None, None


@lru_cache(maxsize=8)
def _layers(device: torch.device) -> Tensor:
    return torch.arange(_LAYERS, device=device)


@lru_cache(maxsize=32)
def _positions(shape: torch.Size, channels_last: bool, device: torch.device) -> Tensor:
    """Return a hash of each position in activations of this shape, int32 ``(1, *shape)``, in their memory layout."""
    hashes = hash_tensor(torch.arange(shape.numel(), device=device)).to(torch.int32).view(1, *shape)
    return hashes.contiguous(memory_format=torch.channels_last) if channels_last else hashes


class _Part(NamedTuple):
    """A layer whose mask is made together with those of others."""

    layer: int
    threshold: int
    shape: torch.Size
    channels_last: bool


@lru_cache(maxsize=8)
def _positions_of(parts: tuple[_Part, ...], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return layer numbers, thresholds and `_positions` of layers, in the order of memory, one after another."""
    flat = []
    for part in parts:
        hashes = _positions(part.shape, part.channels_last, device)
        flat.append((hashes.movedim(1, -1) if part.channels_last else hashes).flatten())
    sizes = torch.tensor([part.shape.numel() for part in parts])
    layers, thresholds = (
        torch.tensor([part[at] for part in parts], dtype=torch.int32).repeat_interleave(sizes).to(device)
        for at in (0, 1)
    )
    return layers, thresholds, torch.cat(flat)


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
