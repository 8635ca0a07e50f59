"""What is changed about a model while it is attacked: frozen, in eval mode, laid out in memory for fast passes.

Several attacks may need a change at once, also in several threads: the first makes it, the last one undoes it.
"""

import threading
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks.core.errors import is_machine_error

IN_TRAINING = (
    "the model was in training mode ({}); it is attacked in eval mode; "
    "what is meant to stay random must be so there, too"
)
Model = Callable[[Tensor], Tensor]
Undo = Callable[[], None]
Change = Callable[[], Undo]

_LOCK = threading.RLock()
_HELD: dict[Hashable, tuple[int, Undo]] = {}  # by key: how many blocks hold the change, and how to undo it

# When a first layer's own backward pass is the faster one, as measured: at most 3 input channels, at least 10 output
# channels for each of them, and 4,096 pixels in the batch.
_FEW, _MANY, SMALL = 3, 10, 2**12

_TRIALS: WeakKeyDictionary[nn.Module, dict[tuple[int, ...], bool]] = WeakKeyDictionary()


@contextmanager
def _held(changes: Iterable[tuple[Hashable, Change]]) -> Iterator[None]:
    """Keep ``changes``, pairs of a key and a function that changes something and returns how to undo it.

    A change that another block, also of another thread, holds under the same key is not made again, and stays until
    the last such block ends.
    """

    def release(key: Hashable) -> None:
        with _LOCK:
            count, undo = _HELD.pop(key)
            if count > 1:
                _HELD[key] = count - 1, undo
            else:
                undo()

    with ExitStack() as releases:
        with _LOCK:
            for key, change in changes:
                count, undo = _HELD[key] if key in _HELD else (0, change())
                _HELD[key] = count + 1, undo
                releases.callback(release, key)
        yield


def _replace(owner: object, name: str, value: Any) -> Undo:
    """Set an attribute; how to set it back."""
    undo = partial(setattr, owner, name, getattr(owner, name))
    setattr(owner, name, value)
    return undo


@contextmanager
def frozen(model: Model | None) -> Iterator[None]:
    """Parameters need no gradient inside the block, so backward passes reach the input alone.

    Restored at the end, after errors too. May be nested, and shared by threads: then the last block to end restores. A
    caller's inference mode is left meanwhile. A callable that is no ``nn.Module`` has nothing to freeze.
    """
    with torch.inference_mode(False):
        if not isinstance(model, nn.Module):
            yield
            return
        with _held(_ordinary_copies(model)):
            freeze = partial(_replace, name="requires_grad", value=False)
            with _held((("frozen", id(one)), partial(freeze, one)) for one in model.parameters()):
                yield


def _ordinary_copies(model: nn.Module) -> Iterator[tuple[Hashable, Change]]:
    """For tensors that were made in inference mode, which no backward pass may use: ordinary ones in their place."""

    def copy(store: dict[str, Any], name: str, tensor: Tensor) -> Undo:
        made = tensor.detach().clone()
        store[name] = nn.Parameter(made, False) if isinstance(tensor, nn.Parameter) else made
        return partial(store.__setitem__, name, tensor)

    for module in model.modules():
        if isinstance(module, torch.jit.ScriptModule):
            continue
        for store in (module._parameters, module._buffers):
            for name, tensor in store.items():
                key = ("copy", id(module), name)
                if tensor is not None and (tensor.is_inference() or key in _HELD):
                    yield key, partial(copy, store, name, tensor)


@contextmanager
def in_eval_mode(model: Model | None) -> Iterator[None]:
    """Every layer is in eval mode inside the block, and in its own mode again at the end; shared as by `frozen`."""
    modules = model.modules() if isinstance(model, nn.Module) else ()
    with _held((("eval", id(one)), partial(_replace, one, "training", False)) for one in modules):
        yield


def layers_in_training(model: object) -> tuple[str, ...]:
    """Return the kinds of layers in training mode that answer otherwise there; () for what is no module."""
    if not isinstance(model, nn.Module):
        return ()
    kinds = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)
    layers = [layer for layer in model.modules() if isinstance(layer, kinds) and layer.training]
    return tuple(sorted({type(layer).__name__ for layer in layers}))


@contextmanager
def fast_layout(model: Model, x: Tensor) -> Iterator[None]:
    """Pass images like ``x`` (n, C, H, W) faster through the plain ``nn.Conv2d`` layers of ``model``.

    Inside the block weights are held channels_last and images follow: on a CPU passes run up to 1.7 times as fast, and
    on a GPU it is the layout of tensor cores, which would copy activations to and fro. On a CPU layers of few input
    channels, as the first is, get a backward pass of their own: PyTorch's takes 1.2 to 6 times as long. The values are
    the same, but another kernel may round differently in the last bit, so the final verification belongs outside the
    block. Models that fail this way are left as they are (see `takes_channels_last`).
    """
    with ExitStack() as stack:
        if takes_channels_last(model, x):
            stack.enter_context(laid_out(model))
        yield


@contextmanager
def laid_out(model: Model) -> Iterator[None]:
    """Within this context the plain convolutions of ``model`` work in channels_last."""

    def turn(weight: Tensor) -> Undo:
        return _replace(weight, "data", weight.data.contiguous(memory_format=torch.channels_last))

    def make_stem(layer: nn.Conv2d) -> Undo:
        layer.forward = _Stem(layer)  # type: ignore[assignment, method-assign]
        return partial(delattr, layer, "forward")

    layers = plain_convolutions(model)
    weights = {id(layer.weight): layer.weight for layer in layers}  # one weight may serve several layers
    with _held((("layout", key), partial(turn, weight)) for key, weight in weights.items()):
        stems = [layer for layer in layers if _is_stem(layer)]
        with _held((("stem", id(layer)), partial(make_stem, layer)) for layer in stems):
            yield


def takes_channels_last(model: Model, x: Tensor) -> bool:
    """Whether ``model`` has plain convolutions that gain by it, and `passes_laid_out` images like ``x`` (n, ...)."""
    layers = plain_convolutions(model)
    if not isinstance(model, nn.Module) or not layers or x.ndim != 4 or not len(x):
        return False
    for weight in (layer.weight for layer in layers):
        half = weight.dtype in (torch.float16, torch.bfloat16)
        tensor_cores = weight.device.type == "cuda" and (half or torch.backends.cudnn.allow_tf32)
        if not (weight.device.type == "cpu" or tensor_cores):
            return False
    return passes_laid_out(model, x)


def passes_laid_out(model: nn.Module, x: Tensor) -> bool:
    """Whether ``model`` passes images like ``x`` (n >= 1, C, H, W) with them and its convolutions channels_last.

    Code such as ``x.view(len(x), -1)`` behind a convolution does not. One image tries it, once for each model and
    shape, in eval mode and without gradient; no attack counts that pass.
    """
    known, shape = _TRIALS.setdefault(model, {}), tuple(x.shape[1:])
    if shape not in known:
        try:
            with in_eval_mode(model), laid_out(model), torch.no_grad(), torch.random.fork_rng(devices=[]):
                model(x[:1].detach().clone(memory_format=torch.channels_last))
            known[shape] = True
        except Exception as error:  # if the model fails in any layout, its use will say so
            if is_machine_error(error):
                raise
            known[shape] = False
    return known[shape]


def plain_convolutions(model: Model) -> list[nn.Conv2d]:
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
