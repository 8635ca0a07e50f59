"""Changes to a model that several attacks may need at once: the first makes them, the last one undoes them."""

import threading
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

IN_TRAINING = (
    "the model was in training mode ({}); it is attacked in eval mode; "
    "what is meant to stay random must be so there, too"
)
Undo = Callable[[], None]
Change = Callable[[], Undo]

_LOCK = threading.RLock()
_HELD: dict[Hashable, tuple[int, Undo]] = {}  # by key: how many blocks hold the change, and how to undo it


@contextmanager
def held(changes: Iterable[tuple[Hashable, Change]]) -> Iterator[None]:
    """Keep ``changes``, pairs of a key and a function that changes something and returns how to undo it.

    A change that another block, also of another thread, holds under the same key is not made again, and stays until
    the last such block ends.
    """
    with ExitStack() as releases:
        with _LOCK:
            for key, change in changes:
                count, undo = _HELD[key] if key in _HELD else (0, change())
                _HELD[key] = count + 1, undo
                releases.callback(_release, key)
        yield


def is_held(key: Hashable) -> bool:
    """Whether some block holds the change of this ``key``."""
    return key in _HELD


def _release(key: Hashable) -> None:
    with _LOCK:
        count, undo = _HELD.pop(key)
        if count > 1:
            _HELD[key] = count - 1, undo
        else:
            undo()


def freeze(parameter: nn.Parameter) -> Undo:
    """Let ``parameter`` need no gradient."""
    undo = partial(setattr, parameter, "requires_grad", parameter.requires_grad)
    parameter.requires_grad_(False)
    return undo


def layers_in_training(model: object) -> tuple[str, ...]:
    """Return the kinds of layers in training mode that answer otherwise there; () for what is no module."""
    if not isinstance(model, nn.Module):
        return ()
    kinds = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)
    layers = [layer for layer in model.modules() if isinstance(layer, kinds) and layer.training]
    return tuple(sorted({type(layer).__name__ for layer in layers}))


def to_eval_mode(module: nn.Module) -> Undo:
    """Put this one ``module`` into eval mode."""
    undo = partial(setattr, module, "training", module.training)
    if module.training:
        module.training = False
    return undo


def ordinary_copies(model: nn.Module) -> Iterator[tuple[Hashable, Change]]:
    """For tensors that were made in inference mode, which no backward pass may use: ordinary ones in their place."""
    for module in model.modules():
        if isinstance(module, torch.jit.ScriptModule):
            continue
        for store in (module._parameters, module._buffers):
            for name, tensor in store.items():
                key = ("copy", id(module), name)
                if tensor is not None and (tensor.is_inference() or is_held(key)):
                    yield key, partial(_copy, store, name, tensor)


def _copy(store: dict[str, Any], name: str, tensor: Tensor) -> Undo:
    undo = partial(store.__setitem__, name, tensor)
    copy = tensor.detach().clone()
    store[name] = nn.Parameter(copy, False) if isinstance(tensor, nn.Parameter) else copy
    return undo
