"""The way into every attack: options checked, the model in eval mode with frozen parameters, image types handled."""

from __future__ import annotations

import inspect
import math
import operator
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from attacks.core.errors import AttackError
from attacks.core.model_state import IN_TRAINING, frozen, in_eval_mode, layers_in_training
from attacks.core.result import AttackResult

P = ParamSpec("P")
R = TypeVar("R")

_LARGEST = 1e6  # squares of moves this long, summed over any image, stay in float32
_COUNTS = (
    "steps restarts queries samples passes num_targets averaged_over eot_samples kernel batch_size "
    "binary_search_steps candidates initial_gradient_eval_steps max_gradient_eval_steps"
)
_LENGTHS = "step_size learning_rate tolerance stepsize initial_const init_epsilon spherical_step source_step"
# What numbers the options of all attacks may be, by the option's name: a test, and words for it.
RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    name: (test, words)
    for names, test, words in (
        (_COUNTS, lambda value: value >= 1, "a whole number >= 1"),
        (_LENGTHS, lambda value: 0 < value <= _LARGEST, f"positive, at most {_LARGEST:g}"),
        ("momentum confidence overshoot", lambda value: 0 <= value <= _LARGEST, f"within [0, {_LARGEST:g}]"),
        ("alpha_max diversity exploration gamma", lambda value: 0 <= value <= 1, "within [0, 1]"),
        ("smallest delta", lambda value: 0 < value <= 1, "positive and at most 1"),
        # the classes that foolbox's deepfool tries
        ("candidates", lambda value: value >= 2, "a whole number >= 2"),
        ("seed", lambda value: True, "a whole number"),
    )
    for name in names.split()
}
_WHOLE = {*_COUNTS.split(), "seed"}


def attack(function: Callable[P, R]) -> Callable[P, R]:
    """Make ``function`` an attack that leaves the model as it was and refuses numbers that mean nothing.

    Within it the model is in eval mode (a warning says so where layers were in training), its parameters are frozen
    and a caller's inference mode is left, also where several threads attack the same model. Images of a type narrower
    than float32 are attacked in float32, with the model asked about points that their type can hold, and the result is
    of their type.

    Raises:
        AttackError: a numeric option is not finite or out of range.
    """
    signature = inspect.signature(function)
    numbers = {name: parameter for name, parameter in signature.parameters.items() if name in RULES}

    @wraps(function)
    def entered(*args: P.args, **kwargs: P.kwargs) -> R:
        bound = signature.bind(*args, **kwargs)
        given = bound.arguments
        for name in numbers.keys() & given.keys():
            if given[name] is not None or numbers[name].default is not None:
                given[name] = checked_number(name, given[name], "Tensor" in str(numbers[name].annotation))
        model, x = given.get("model"), given.get("x")
        narrow = None  # the images' type, where that is narrower than float32
        if isinstance(x, Tensor) and x.is_floating_point() and x.element_size() < 4:
            narrow = x.dtype
        if kinds := layers_in_training(model):
            warnings.warn(IN_TRAINING.format(", ".join(kinds)), stacklevel=2)
        with frozen(model), in_eval_mode(model):
            if narrow and model is not None:
                given["model"] = _Narrow(model, narrow)
            if narrow and "sources" in given:
                given["sources"] = [_Narrow(source, narrow) for source in given["sources"]]
            result = function(*bound.args, **bound.kwargs)
        if narrow and isinstance(result, AttackResult):
            return replace(result, adversarial=result.adversarial.to(narrow))  # type: ignore[return-value]
        return result

    return entered


def checked_number(name: str, value: Any, per_sample: bool) -> Any:
    """The number for the option ``name`` as Python's own, also of NumPy's and 0-d tensors; (N,) if ``per_sample``.

    Raises:
        AttackError: it is no number, not finite, or out of range.
    """
    test, words = RULES[name]
    try:
        if not getattr(value, "ndim", 1):
            value = value.item()
        if isinstance(value, bool):
            raise TypeError
        if name in _WHOLE:
            value = operator.index(value)
        values = value.flatten().tolist() if per_sample and isinstance(value, Tensor) else [float(value)]
        if all(math.isfinite(one) and test(one) for one in values):
            return value
    except (TypeError, ValueError, OverflowError):
        pass
    raise AttackError(f"{name} must be {words}, got {value!r}")


class _Narrow(nn.Module):
    """A model of images of a narrow type, as one of float32 images that this type can hold."""

    def __init__(self, model: Callable[[Tensor], Tensor], dtype: torch.dtype) -> None:
        super().__init__()
        self.model, self.dtype = model, dtype
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x.to(self.dtype))
