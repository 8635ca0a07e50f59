"""Straight-through gradients for any model: PyTorch's flat operations get the slope that they were made to lose.

Bengio et al. 2013; as an attack on obfuscated gradients, Athalye et al. 2018 (BPDA with the identity).
"""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from eval.audit.wrappers import Wrapper


class StraightThrough(Wrapper):
    """The model run so that rounding, signs, comparisons and detached values pass gradients on.

    Values stay those of the model up to rounding. Operations in place, and those inside compiled code, are not
    seen.

    Attributes:
        replaced: how often each flat operation was met in the last pass.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.replaced: Counter[str] = Counter()

    def forward(self, x: Tensor) -> Tensor:
        """Return the model's logits (N, K)."""
        if not (torch.is_grad_enabled() and x.requires_grad):
            return self.model(x)
        with _Mode() as mode:
            logits = self.model(x)
        self.replaced = mode.replaced
        return logits


class _Mode(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.replaced: Counter[str] = Counter()

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if function in _SWITCHES:
            return None if args and args[0] is False else function(*args, **kwargs)
        source = args[0] if args and isinstance(args[0], Tensor) else None
        if source is None:
            return function(*args, **kwargs)
        if source.dtype == torch.bool and hasattr(source, _SLOPE):
            return self._cast(function, source, args, kwargs)
        if not source.requires_grad or function not in _FLAT:
            return function(*args, **kwargs)
        name, soft = _FLAT[function]
        self.replaced[name] += 1
        if name == "detach":
            return source
        hard = function(*args, **kwargs)
        if name == "comparison":
            setattr(hard, _SLOPE, soft(*args))
            return hard
        return _straight(hard, soft(*args))

    def _cast(self, function: Callable[..., Any], source: Tensor, args: Any, kwargs: Any) -> Any:
        hard = function(*args, **kwargs)
        if isinstance(hard, Tensor) and hard.is_floating_point() and function in _CASTS:
            return _straight(hard, getattr(source, _SLOPE))
        return hard


_SLOPE = "_straight_through"


def _straight(hard: Tensor, soft: Tensor) -> Tensor:
    return soft + (hard - soft).detach()


def _functions(*names: str) -> Iterable[Callable[..., Any]]:
    for name in names:
        for home in (torch, Tensor):
            if hasattr(home, name):
                yield getattr(home, name)


def _clipped(x: Tensor, *rest: Any) -> Tensor:
    return x.clamp(-1, 1)


def _same(x: Tensor, *rest: Any) -> Tensor:
    return x


def _above(x: Tensor, other: Any, *rest: Any) -> Tensor:
    return x - other


def _below(x: Tensor, other: Any, *rest: Any) -> Tensor:
    return other - x


_SWITCHES = (torch._C._set_grad_enabled,)
_CASTS = frozenset(_functions("float", "double", "half", "bfloat16", "to", "type", "type_as"))
_FLAT: dict[Callable[..., Any], tuple[str, Callable[..., Tensor]]] = {
    **dict.fromkeys(_functions("round", "floor", "ceil", "trunc", "fix"), ("rounding", _same)),
    **dict.fromkeys(_functions("sign", "sgn"), ("sign", _clipped)),
    **dict.fromkeys(_functions("detach"), ("detach", _same)),
    **dict.fromkeys(
        _functions("gt", "ge", "greater", "greater_equal", "__gt__", "__ge__"), ("comparison", _above)
    ),
    **dict.fromkeys(_functions("lt", "le", "less", "less_equal", "__lt__", "__le__"), ("comparison", _below)),
}
