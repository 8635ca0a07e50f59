"""Which attacks there are, and which options each takes: read off the functions themselves, so nothing is listed twice.

An attack is any function that the package `attacks` exports with the signature ``(model, x, y, *, norm, eps, ...)``
whose other arguments have defaults; its further keyword arguments are its options, their defaults included.
"""

import contextlib
import functools
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import attacks
from agents.common.command_line import parse_number
from agents.common.protocols import CLEVERHANS_BATCH
from attacks.core.model_state import in_eval_mode
from attacks.core.result import AttackResult
from envs.errors import InputError, unknown_name
from envs.rng import hash_tensor

Attack = Callable[..., AttackResult]

# Set by the evaluation, or of no meaning on a command line (tensors and callbacks).
_RESERVED = {"model", "x", "y", "norm", "eps", "targets", "seed", "sample_ids", "batch_size", "random_source"}
_RESERVED |= {"on_step", "state", "on_progress", "trace"}
# Attacks with the former option "random": its value "sample", now the only one, stays in the records of results, whose
# names follow from them.
_FORMERLY_RANDOM = ("apgd", "apgd_targeted", "autoattack", "fab", "fab_targeted", "square")
_PLAIN = (type(None), bool, int, float, str, list, tuple)  # defaults that a command line and JSON can hold
_KINDS: dict[type, tuple[type, ...]] = {bool: (bool, str), int: (int,), float: (int, float), str: (str, list)}
TARGETED = ("next", "random", "second", "least-likely")
_TARGET_STREAM = 0x746172676574  # "target"


def attack_names() -> tuple[str, ...]:
    """Return the names of all attacks, sorted."""
    return tuple(sorted(name for name in attacks.__all__ if _is_attack(getattr(attacks, name))))


@functools.cache
def _is_attack(candidate: Any) -> bool:
    """Whether it is a function ``(model, x, y, *, norm, eps, ...)`` that needs nothing else, sources excepted."""
    fixed, keywords = ["model", "x", "y", "norm", "eps"], inspect.Parameter.VAR_KEYWORD
    if not inspect.isfunction(candidate):
        return False
    found = inspect.signature(candidate).parameters
    needed = {k for k, item in found.items() if item.kind != keywords and item.default is item.empty}
    return list(found)[:3] == fixed[:3] and {*fixed} <= {*found} and needed <= {*fixed, "sources"}


def _parameters(name: str) -> dict[str, inspect.Parameter]:
    """The arguments of an attack; transfer hands what it does not name on to `attacks.transfer_images`."""
    parameters = dict(inspect.signature(attack_function(name)).parameters)
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        parameters = dict(inspect.signature(attacks.transfer_images).parameters) | parameters
    return parameters


def attack_function(name: str) -> Attack:
    """Return the attack called ``name``, dashes as underscores; an InputError lists all where there is none."""
    name = name.replace("-", "_")
    if name not in attack_names():
        raise unknown_name("attack", name, attack_names())
    return getattr(attacks, name)


def attack_options(name: str) -> dict[str, Any]:
    """Return the options of an attack and their defaults.

    An attack that can be aimed at a class takes ``targeted``: None, ``next`` (the label plus one), ``random``,
    ``second`` (the likeliest wrong class of the clean image) or ``least-likely``.
    """
    defaults = {key: item.default for key, item in _parameters(name).items()}
    options = {k: value for k, value in defaults.items() if k not in _RESERVED and isinstance(value, _PLAIN)}
    return options | ({"targeted": None} if "targets" in defaults else {})


def resolve_options(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return every option of the attack with its value: the given ones, else the defaults.

    Raises InputError where the attack does not take one of the options, or not such a value.
    """
    options, given = attack_options(name), dict(given)
    if name.replace("-", "_") in _FORMERLY_RANDOM and given.pop("random", "sample") != "sample":
        problem = f"{name} no longer takes random='original', which repeated published draws for tests"
        raise InputError(f"{problem}; leave random out")
    for key, value in given.items():
        if key not in options:
            takes = ", ".join(options) or "none"
            raise InputError(f"{name} takes no option {key!r} (given {value!r}); its options: {takes}")
        # A bool may become a word (random_start=odi) but not a number.
        default, kinds = options[key], _KINDS.get(type(options[key]), (object,))
        wrong_bool = isinstance(value, bool) and not isinstance(default, bool) and default is not None
        if value is not None and (not isinstance(value, kinds) or wrong_bool):
            kind = "true or false" if isinstance(default, bool) else f"a value like {default!r}"
            raise InputError(f"option {key} of {name} is {value!r}; expected {kind}")
    if given.get("targeted") not in (None, *TARGETED):
        raise unknown_name("way to choose targets", str(given["targeted"]), TARGETED)
    resolved = options | given
    if resolved.get("averaged_over", 0) is None:
        resolved["averaged_over"] = CLEVERHANS_BATCH
    return resolved


def recorded_options(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `resolve_options` does, as results record it and their files are named after."""
    formerly = {"random": "sample"} if name.replace("-", "_") in _FORMERLY_RANDOM else {}
    return resolve_options(name, given) | formerly


def parse_option(text: str) -> tuple[str, Any]:
    """Read ``key=value``: a number, a fraction, true, false, null, a JSON list, or a word. InputError: no "="."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise InputError(f"cannot read the option {text!r}; expected key=value, such as queries=1000")
    return key.replace("-", "_"), parse_value(value)


def parse_value(text: str) -> Any:
    """Read one option's value, as `parse_option` does."""
    for read in (json.loads, parse_number):
        with contextlib.suppress(ValueError):
            return read(text)
    return text


def run_function(
    name: str,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    options: Mapping[str, Any],
    sample_ids: Tensor,
    sources: Sequence[nn.Module] = (),
    **common: Any,
) -> AttackResult:
    """Call an attack with its resolved ``options`` and with those of the other arguments that it takes.

    Args:
        name: of the attack.
        model, x, y: the classifier, images in [0, 1], (N, C, H, W), and labels, (N,).
        options: as `resolve_options` returns them.
        sample_ids: (N,), what each image's random draws depend on, beside the ``seed``.
        sources: models on which a transfer attack makes its images.
        common: ``norm``, ``eps``, ``seed``, ``batch_size`` (most images at once, or None), ``state``, from which an
            attack that keeps one goes on, and ``on_progress``, which such an attack calls with its state.
    """
    common |= {"sample_ids": sample_ids, "sources": [source.to(x.device) for source in sources]}
    taken = {key: common[key] for key in _parameters(name) if key in common}
    further = dict(options)
    if (targeted := further.pop("targeted", None)) is not None:
        taken["targets"] = choose_targets(targeted, model, x, y, sample_ids)
    return attack_function(name)(model, x, y, **taken, **further)


def takes(name: str, *arguments: str) -> bool:
    """Return whether an attack takes all of these arguments.

    One that takes ``sources`` makes its images on other models; one that takes ``state`` and ``on_progress`` can go on
    from its own state.
    """
    return set(arguments) <= set(inspect.signature(attack_function(name)).parameters)


def choose_targets(how: str, model: nn.Module, x: Tensor, y: Tensor, sample_ids: Tensor) -> Tensor:
    """Return a class other than the label for every image, (N,), chosen in one of the ways of `TARGETED`."""
    with torch.inference_mode(), in_eval_mode(model):
        logits = model(x).float()
    classes = logits.shape[1]
    if how == "next":
        return (y + 1) % classes
    if how == "random":
        return (y + 1 + hash_tensor(_TARGET_STREAM, sample_ids) % (classes - 1)) % classes
    others = logits.scatter(1, y[:, None], -torch.inf if how == "second" else torch.inf)
    return others.argmax(1) if how == "second" else others.argmin(1)
