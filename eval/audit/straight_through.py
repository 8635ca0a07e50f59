"""PyTorch's operations run differently: flat ones pass gradients on, and those that squash outputs are left out.

Bengio et al. 2013; as an attack on obfuscated gradients, Athalye et al. 2018 (BPDA with the identity).
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.overrides import TorchFunctionMode

from eval.audit.wrappers import Wrapper

_RAPID = 100.0  # mean size of the arguments of sine and cosine from which they are a ripple without direction
_SATURATED = 10.0  # inputs of sigmoid and tanh beyond which their slope is under 5e-5


class StraightThrough(Wrapper):
    """The model run so that flat operations and custom backward passes pass gradients on.

    Rounding, signs, comparisons, bounds and detached values get the slope of the identity, rapid sines none; a
    `torch.autograd.Function` is differentiated through its forward pass, whatever its backward pass says, and hooks
    on gradients are not set. Values stay those of the model. Operations in place, and those inside compiled code,
    are not seen. ``replaced``: how often each of them was met in the last pass.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.replaced: Counter[str] = Counter()

    def forward(self, x: Tensor) -> Tensor:
        """Return the model's logits (N, K)."""
        if not (torch.is_grad_enabled() and x.requires_grad):
            return self.model(x)
        self.replaced = Counter()
        with _forward_alone(self.replaced), _Mode(self._run):
            return self.model(x)

    def _run(self, function: Any, args: Any, kwargs: Any) -> Any:
        if function in _SWITCHES:
            return None if args and args[0] is False else function(*args, **kwargs)
        source = args[0] if args and isinstance(args[0], Tensor) else None
        if source is not None and source.dtype == torch.bool and hasattr(source, _SLOPE):
            hard = function(*args, **kwargs)
            cast = function in _CASTS and isinstance(hard, Tensor) and hard.is_floating_point()
            return _straight(hard, getattr(source, _SLOPE)) if cast else hard
        if source is None or not source.requires_grad or function not in _FLAT:
            return function(*args, **kwargs)
        name, soft = _FLAT[function]
        if name in ("hook", "detach"):
            self.replaced[name] += 1
            return source if name == "detach" else SimpleNamespace(remove=lambda: None)  # a hook's handle
        hard, values = function(*args, **kwargs), source.detach()
        unchanged = name == "bounds" and (hard.shape != source.shape or torch.equal(hard, source))
        slow = name == "ripple" and float(values.abs().double().mean()) < _RAPID
        steep = name == "saturation" and float((values.abs() > _SATURATED).double().mean()) < 0.5
        if unchanged or slow or steep:
            return hard
        self.replaced[name] += 1
        if name == "ripple":
            return hard.detach()
        if name == "comparison":
            setattr(hard, _SLOPE, soft(*args))
            return hard
        return _straight(hard, soft(*args))


class WithoutInnerSteps(Wrapper):
    """The model with the gradients that `torch.autograd.grad` takes inside its forward pass counted as zero.

    Defences that move the image along such gradients, away from the boundary or towards clean images, leave it where
    it is, so that it can be attacked as by BPDA with the identity (Athalye et al. 2018). ``taken``: how many such
    gradients the last pass took.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.taken = 0

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (N, K) without inner steps."""
        self.taken, original = 0, torch.autograd.grad

        def zeros(outputs: Any, inputs: Any, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
            self.taken += 1
            return tuple(
                torch.zeros_like(each) for each in ([inputs] if isinstance(inputs, Tensor) else inputs)
            )

        torch.autograd.grad = zeros  # type: ignore[assignment]
        try:
            return self.model(x)
        finally:
            torch.autograd.grad = original


class Unsquashed(Wrapper):
    """The model without the functions that squash its outputs at the end: softmax, sigmoid, bounds, logarithms.

    All of them leave the order of the outputs as it is, so decisions stay, and no saturation is left. Only
    operations on outputs (n, ``classes``) are left out. ``replaced``: how often each was met in the last pass.
    """

    def __init__(self, model: nn.Module, classes: int) -> None:
        super().__init__(model)
        self.classes = classes
        self.replaced: Counter[str] = Counter()

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs (N, K) before they are squashed."""
        self.replaced, shape = Counter(), (len(x), self.classes)

        def run(function: Any, args: Any, kwargs: Any) -> Any:
            source = args[0] if args else kwargs.get("input")
            if function in _SQUASHING and isinstance(source, Tensor) and source.shape == shape:
                self.replaced[_SQUASHING[function]] += 1
                return source
            return function(*args, **kwargs)

        with _Mode(run):
            return self.model(x)


class _Mode(TorchFunctionMode):
    """Hands PyTorch's calls within the block to ``run``: the function, its arguments, and those by keyword."""

    def __init__(self, run: Callable[[Any, Any, Any], Any]) -> None:
        super().__init__()
        self.run = run

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.run(function, args, kwargs or {})


class _Context:
    """What a custom function's forward pass is given in place of its context: takes everything, does nothing."""

    needs_input_grad = (True,) * 64
    saved_tensors: tuple[Tensor, ...] = ()

    def save_for_backward(self, *tensors: Tensor) -> None:
        self.saved_tensors = tensors

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args, **kwargs: None


@contextmanager
def _forward_alone(replaced: Counter[str]) -> Iterator[None]:
    """Custom autograd functions are differentiated through their forward pass within the block."""
    original = Function.__dict__["apply"]

    def apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
        if cls.__module__.startswith("torch."):
            return original.__get__(None, cls)(*args, **kwargs)
        replaced["custom backward pass"] += 1
        own_context = cls.setup_context is not Function.setup_context
        return cls.forward(*args, **kwargs) if own_context else cls.forward(_Context(), *args, **kwargs)

    Function.apply = classmethod(apply)  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        Function.apply = original


_SLOPE = "_straight_through"


def _straight(hard: Tensor, soft: Tensor) -> Tensor:
    return hard.detach() + (soft - soft.detach())  # the sum is ``hard`` to the last bit


def _functions(*names: str) -> Iterable[Callable[..., Any]]:
    for name in names:
        for home in (torch, Tensor, nn.functional):
            if hasattr(home, name):
                yield getattr(home, name)


def _same(x: Tensor, *rest: Any) -> Tensor:
    return x


_SWITCHES = (torch._C._set_grad_enabled,)
_CASTS = frozenset(_functions("float", "double", "half", "bfloat16", "to", "type", "type_as"))
_BOUNDS = ("clamp", "clip", "clamp_min", "clamp_max", "hardtanh", "relu6")
_MORE = _functions("gt", "ge", "greater", "greater_equal", "__gt__", "__ge__")
_LESS = _functions("lt", "le", "less", "less_equal", "__lt__", "__le__")
# What is flat, its kind, and what has the slope in its place.
_FLAT: dict[Callable[..., Any], tuple[str, Callable[..., Tensor]]] = {
    **dict.fromkeys(_functions("round", "floor", "ceil", "trunc", "fix"), ("rounding", _same)),
    **dict.fromkeys(_functions("sign", "sgn"), ("sign", partial(torch.clamp, min=-1, max=1))),
    **dict.fromkeys(_functions("detach"), ("detach", _same)),
    **dict.fromkeys(_functions("register_hook"), ("hook", _same)),
    **dict.fromkeys(_functions(*_BOUNDS), ("bounds", _same)),
    **dict.fromkeys(_functions("sin", "cos"), ("ripple", _same)),
    **dict.fromkeys(_functions("sigmoid", "tanh"), ("saturation", _same)),
    **dict.fromkeys(_MORE, ("comparison", torch.sub)),
    **dict.fromkeys(_LESS, ("comparison", torch.rsub)),
}
_SQUASHING = {
    function: name
    for name in ("softmax", "log_softmax", "sigmoid", "logsigmoid", "tanh", "log", "exp", *_BOUNDS)
    for function in _functions(name)
}
