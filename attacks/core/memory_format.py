"""How a model is laid out in memory while it is attacked, which decides half of an attack's time on a CPU."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks.core.errors import is_machine_error
from attacks.core.sharing import Undo, held, to_eval_mode

# When a first layer's own backward pass is the faster one, as measured: at most 3 input channels, at least 10 output
# channels for each of them, and 4,096 pixels in the batch.
_FEW, _MANY, SMALL = 3, 10, 2**12

_TRIALS: WeakKeyDictionary[nn.Module, dict[tuple[int, ...], bool]] = WeakKeyDictionary()


@contextmanager
def fast_layout(model: Callable[[Tensor], Tensor], x: Tensor) -> Iterator[None]:
    """Pass images like ``x`` (n, C, H, W) faster through the plain ``nn.Conv2d`` layers of ``model``.

    Inside the block weights are held channels_last and images follow: on a CPU passes run up to 1.7 times as fast, and
    on a GPU it is the layout of tensor cores, which would copy activations to and fro. On a CPU layers of few input
    channels, as the first is, get a backward pass of their own: PyTorch's takes 1.2 to 6 times as long. The values are
    the same, but another kernel may round differently in the last bit, so the final verification belongs outside the
    block. Models that fail this way are left as they are (see `takes_channels_last`).
    """
    if not takes_channels_last(model, x):
        yield
        return
    with laid_out(model):
        yield


@contextmanager
def laid_out(model: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Within this context the plain convolutions of ``model`` work in channels_last."""
    layers = plain_convolutions(model)
    weights = {id(layer.weight): layer.weight for layer in layers}  # one weight may serve several layers
    with held((("layout", key), partial(_lay_weight_out, weight)) for key, weight in weights.items()):
        stems = [layer for layer in layers if _is_stem(layer)]
        with held((("stem", id(layer)), partial(_make_stem, layer)) for layer in stems):
            yield


def _lay_weight_out(weight: Tensor) -> Undo:
    undo = partial(setattr, weight, "data", weight.data)
    weight.data = weight.data.contiguous(memory_format=torch.channels_last)
    return undo


def _make_stem(layer: nn.Conv2d) -> Undo:
    layer.forward = _Stem(layer)  # type: ignore[assignment, method-assign]
    return partial(delattr, layer, "forward")


def takes_channels_last(model: Callable[[Tensor], Tensor], x: Tensor) -> bool:
    """Whether ``model`` has plain convolutions that gain by it, and `passes_laid_out` images like ``x`` (n, ...)."""
    layers = plain_convolutions(model)
    if not isinstance(model, nn.Module) or not layers or x.ndim != 4 or not len(x):
        return False
    return all(_gains(layer.weight) for layer in layers) and passes_laid_out(model, x)


def _gains(weight: Tensor) -> bool:
    """Whether channels_last is the faster layout: on a CPU, and where a GPU's tensor cores do the work."""
    if weight.device.type == "cpu":
        return True
    half = weight.dtype in (torch.float16, torch.bfloat16)
    return weight.device.type == "cuda" and (half or torch.backends.cudnn.allow_tf32)


def passes_laid_out(model: nn.Module, x: Tensor) -> bool:
    """Whether ``model`` passes images like ``x`` (n >= 1, C, H, W) with them and its convolutions channels_last.

    Code such as ``x.view(len(x), -1)`` behind a convolution does not. One image tries it, once for each model and
    shape, in eval mode and without gradient; no attack counts that pass.
    """
    known, shape = _TRIALS.setdefault(model, {}), tuple(x.shape[1:])
    if shape not in known:
        eval_mode = held((("eval", id(one)), partial(to_eval_mode, one)) for one in model.modules())
        try:
            with eval_mode, laid_out(model), torch.no_grad(), torch.random.fork_rng(devices=[]):
                model(x[:1].detach().clone(memory_format=torch.channels_last))
            known[shape] = True
        except Exception as error:  # if the model fails in any layout, its use will say so
            if is_machine_error(error):
                raise
            known[shape] = False
    return known[shape]


def plain_convolutions(model: Callable[[Tensor], Tensor]) -> list[nn.Conv2d]:
    """Layers that may be laid out again: of no subclass, which might do otherwise, and of no compiled model."""
    if not isinstance(model, nn.Module) or hasattr(model, "_orig_mod"):
        return []
    return [layer for layer in model.modules() if type(layer) is nn.Conv2d]


def _is_stem(layer: nn.Conv2d) -> bool:
    """Whether `_Stem` does what the layer does, faster."""
    return (
        layer.weight.device.type == "cpu"
        and layer.in_channels <= min(_FEW, layer.out_channels // _MANY)
        and layer.groups == 1
        and layer.padding_mode == "zeros"
        and not isinstance(layer.padding, str)
        and not layer.weight.requires_grad
        and ("forward" not in vars(layer) or isinstance(vars(layer)["forward"], _Stem))
    )


class _Stem:
    """The forward method of a convolution with few input channels whose weights are frozen."""

    def __init__(self, layer: nn.Conv2d) -> None:
        self.layer = layer
        # (C k k, channels out), each row what one input pixel of a window receives.
        self.back = layer.weight.detach().flatten(1).T.contiguous()

    def __call__(self, x: Tensor) -> Tensor:
        layer = self.layer
        if x.numel() < SMALL:
            return F.conv2d(x, layer.weight, layer.bias, layer.stride, layer.padding, layer.dilation)
        return _StemFunction.apply(x, layer, self.back)


class _StemFunction(torch.autograd.Function):
    """Convolution whose input gradient is one matrix product, its windows then added up where they overlap."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: nn.Conv2d, back: Tensor) -> Tensor:
        ctx.layer, ctx.back, ctx.size = layer, back, x.shape[2:]
        return F.conv2d(x, layer.weight, layer.bias, layer.stride, layer.padding, layer.dilation)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        layer = ctx.layer
        windows = ctx.back.to(grads[0].dtype) @ grads[0].flatten(2)
        # The images' windows as channels of one image: fold goes through images one by one, through channels at once.
        joined = windows.flatten(0, 1)[None]
        folded = F.fold(joined, ctx.size, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
        return folded.view(len(windows), -1, *ctx.size), None, None
