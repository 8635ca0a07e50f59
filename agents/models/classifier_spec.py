"""The description stored with a classifier's weights, checked before anything is built from it."""

import json
import math
import re
from typing import Annotated, Any

import msgspec
import torch
from msgspec import Meta
from torch import Tensor, nn

from agents.models.image_network import SPEC_VERSION
from envs.errors import InputError

ACTIVATIONS: dict[str, type[nn.Module]] = {
    kind.__name__: kind for kind in (nn.ReLU, nn.Tanh, nn.ELU, nn.GELU, nn.SiLU, nn.LeakyReLU, nn.Sigmoid)
}
EXTRA_STATE = "._extra_state"  # PyTorch's name for what get_extra_state returns
_ARGUMENTS = {"ELU": ("alpha", 1.0), "GELU": ("approximate", "none"), "LeakyReLU": ("negative_slope", 0.01)}
_MAX_PIXELS = 2**22
_Side = Annotated[int, Meta(ge=1, le=_MAX_PIXELS)]
_Width = Annotated[int, Meta(ge=1, le=2**16)]


class Spec(msgspec.Struct, frozen=True):
    """What is needed to build a classifier again."""

    network: Annotated[str, Meta(min_length=1, max_length=200)]  #: name of the body
    shape: tuple[_Side, _Side, _Side]  #: image shape (C, H, W)
    num_classes: Annotated[int, Meta(ge=1, le=2**17)]  #: K
    #: layers between body and head: widths of linear layers, and activations as `activation_text` has
    #: them
    hidden: Annotated[tuple[_Width | str, ...], Meta(max_length=32)] = ()

    def to_json(self) -> str:
        """Return the description as JSON."""
        return json.dumps({"version": SPEC_VERSION} | msgspec.to_builtins(self))

    @classmethod
    def parse(cls, fields: Any, origin: str) -> "Spec":
        """Return the description in ``fields``, decoded JSON from the file ``origin``.

        Raises:
            InputError: a field is missing, of the wrong type, or larger than any image classifier needs.
        """
        if not isinstance(fields, dict):
            raise InputError(f"{origin}: the network's description is no JSON object; save the weights again")
        version = fields.get("version")
        if version != SPEC_VERSION:
            raise InputError(
                f"{origin}: the network's description has version {str(version)[:20]!r}, expected "
                f"{SPEC_VERSION}; use the labelbandit that wrote the file"
            )

        def wrong(name: str, reason: str) -> InputError:
            found = f"{name} is {str(fields.get(name))[:60]!r}"
            found = found if name else "the network's description is wrong"
            return InputError(f"{origin}: {found} ({reason}); save the weights again")

        try:
            spec = msgspec.convert(fields, cls)
        except msgspec.ValidationError as error:
            reason, _, place = str(error).partition(" - at `$.")
            raise wrong(re.split(r"\W", place)[0], reason) from None
        if math.prod(spec.shape) > _MAX_PIXELS:
            raise wrong("shape", f"expected at most {_MAX_PIXELS} values")
        if any(isinstance(layer, str) and make_activation(layer) is None for layer in spec.hidden):
            raise wrong("hidden", f"expected widths, and names among {', '.join(ACTIVATIONS)}")
        return spec


def as_tensors(state: dict[str, Any], origin: str) -> dict[str, Tensor]:
    """Return a state dict as tensors alone: other extra state of modules becomes the bytes of its JSON, uint8.

    Raises:
        InputError: an entry is neither a tensor nor extra state that JSON repeats.
    """
    found = {}
    for name, value in state.items():
        if isinstance(value, Tensor):
            found[name] = value
            continue
        try:
            text = json.dumps(value)
            repeated = name.endswith(EXTRA_STATE) and json.loads(text) == value
        except (TypeError, ValueError, RecursionError):
            repeated = False
        if not repeated:
            raise InputError(
                f"{origin}: {name[:80]} is a {type(value).__name__}, which cannot be saved; expected tensors, and as "
                "extra state also numbers, strings, lists and dictionaries of them"
            )
        found[name] = torch.tensor(list(text.encode()), dtype=torch.uint8)
    return found


def mean_of_quantiles(layer: dict[str, Tensor], actions: int) -> dict[str, Tensor]:
    """Return a linear layer's state (weight, bias) from QR-DQN's, whose outputs are (quantiles, actions), flattened."""
    return {name: value.unflatten(0, (-1, actions)).mean(0) for name, value in layer.items()}


def like_state(state: dict[str, Tensor], present: dict[str, Any], origin: str) -> dict[str, Any]:
    """Return ``state`` with extra state read from its JSON wherever ``present`` holds no tensor, undoing `as_tensors`.

    Raises:
        InputError: it is no JSON.
    """
    found: dict[str, Any] = dict(state)
    for name, value in present.items():
        if not isinstance(value, Tensor):
            try:
                found[name] = json.loads(bytes(state[name].flatten().tolist()))
            except (ValueError, RecursionError, TypeError):
                raise InputError(f"{origin}: {name[:80]} is no JSON text as bytes; save it again") from None
    return found


def pixel_range(dtype: str, low: float, high: float) -> tuple[float, float]:
    """Return what a network sees of black and white, given its observations' type and bounds (uint8: divided by 255).

    Raises:
        InputError: bounds that no usual range of pixels has, such as VecNormalize's.
    """
    if dtype == "uint8" and (low, high) == (0, 255):
        return 0.0, 1.0
    if dtype != "uint8" and (low, high) in ((0, 1), (-1, 1), (0, 255)):
        return low, high
    raise InputError(
        f"the policy's observations are {dtype} in {low:g}..{high:g}; expected uint8 images, or floats in [0, 1], "
        "[-1, 1] or [0, 255]; in place of VecNormalize give ImageNetwork mean and std"
    )


def activation_text(layer: nn.Module) -> str | None:
    """Return how files name an activation, its argument included, e.g. ``LeakyReLU(0.5)``; None: not one they know."""
    name = type(layer).__name__
    if type(layer) is not ACTIVATIONS.get(name):
        return None
    argument, default = _ARGUMENTS.get(name, ("", None))
    value = getattr(layer, argument, None)
    return name if value == default else f"{name}({value})"


def make_activation(text: str) -> nn.Module | None:
    """Return the activation that `activation_text`, or a call such as ``ELU(alpha=3)``, names; None: none."""
    match = re.fullmatch(r"(\w{1,20})(?:\((?:(\w{1,20})=)?([\w.+-]{1,30})\))?", text)
    if match is None or match[1] not in ACTIVATIONS:
        return None
    kind = ACTIVATIONS[match[1]]
    if match[3] is None:
        return kind()
    argument, default = _ARGUMENTS.get(match[1], ("", None))
    if default is None or match[2] not in (None, argument):
        return None
    try:
        value = float(match[3]) if isinstance(default, float) else match[3]
    except ValueError:
        return None
    finite = math.isfinite(value) if isinstance(value, float) else value in ("none", "tanh")
    return kind(**{argument: value}) if finite else None
