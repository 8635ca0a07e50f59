"""Reads policies saved by Stable-Baselines3 without unpickling anything or writing anything to disk.

Such a zip holds ``policy.pth``, a PyTorch archive of tensors, and ``data``, a JSON object whose values are
pickles in base64 beside a readable description of each. The pickles are never decoded; the descriptions are
text and say what weights alone do not: activation functions, image shape, the range of the pixels. Policies that
they do not describe, such as those of a user's own class, are refused.
"""

import io
import json
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from agents.models.classifier_spec import Spec, as_tensors, make_activation, mean_of_quantiles, pixel_range
from agents.models.image_network import SPEC_VERSION
from envs.errors import InputError, cause

_MAX_BYTES = 2**31 - 1  # of the zip and of the weights; larger ones are zip64, which is not read
_MAX_DATA = 2**26
_MAX_ENTRIES = 2**15
_MAX_RATIO = 200
_MAX_SPEC = 4096
_KNOWN_CODE = ("agents", "stable_baselines3", "sb3_contrib")
_VALUE_NETS = ("q_net.q_net.", "quantile_net.quantile_net.")
_EXPECTED = "expected a policy saved by Stable-Baselines3"


def read_sb3_zip(path: Path) -> tuple[Spec, dict[str, Tensor]]:
    """Return the description and the state dict of the classifier inside the policy saved at ``path``.

    Raises:
        InputError: the file is no SB3 zip, is damaged or hostile, or its policy is no image classifier.
    """
    origin = str(path)
    try:
        if (size := path.stat().st_size) > _MAX_BYTES:
            raise InputError(f"{path} has {size} bytes; at most {_MAX_BYTES} are read")
        archive = _open_zip(path.read_bytes(), origin)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; check its permissions") from None
    weights = _tensors(_member(archive, "policy.pth", origin, _MAX_BYTES), f"policy.pth in {origin}")
    descriptions = _json(_member(archive, "data", origin, _MAX_DATA), f"data in {origin}")
    return _classifier_parts(weights, descriptions, origin)


def _open_zip(content: bytes, name: str) -> zipfile.ZipFile:
    # zipfile makes an object of every entry that the table of contents claims; each begins with these bytes.
    if content.count(b"PK\x01\x02") > _MAX_ENTRIES:
        raise InputError(f"{name} has over {_MAX_ENTRIES} entries; {_EXPECTED}")
    try:
        return zipfile.ZipFile(io.BytesIO(content))
    except Exception as error:  # damaged tables raise half a dozen kinds
        raise InputError(f"{name} is no zip file, or is damaged ({cause(error)}); {_EXPECTED}") from None


def _member(archive: zipfile.ZipFile, member: str, name: str, limit: int) -> bytes:
    entries = [entry for entry in archive.infolist() if entry.filename == member]
    if len(entries) != 1:
        raise InputError(f"{name} has {len(entries)} entries called {member!r}, not one; {_EXPECTED}")
    entry = entries[0]
    if entry.file_size > min(limit, _MAX_RATIO * max(entry.compress_size, 1)):
        sizes = f"{entry.compress_size} to {entry.file_size} bytes"
        raise InputError(f"{member} in {name} would grow from {sizes} when unpacked; {_EXPECTED}")
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise InputError(f"{member} in {name} has compression method {entry.compress_type}; {_EXPECTED}")
    try:
        return archive.read(entry)
    except Exception as error:  # damaged and encrypted members raise half a dozen kinds
        raise InputError(f"{member} in {name} is damaged ({cause(error)}); copy or save it again") from None


def _tensors(content: bytes, name: str) -> dict[str, Tensor]:
    """Return the state dict in a PyTorch archive; PyTorch compresses nothing, so nothing may grow here."""
    for entry in _open_zip(content, name).infolist():
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > len(content):
            raise InputError(f"{name} has compressed records, which PyTorch never writes; {_EXPECTED}")
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # hostile and damaged archives raise a dozen kinds
        problem = f"{name} is damaged or holds more than tensors ({cause(error)})"
        raise InputError(f"{problem}; {_EXPECTED}") from None
    named = isinstance(state, dict) and all(isinstance(key, str) for key in state)
    tensors = as_tensors(state, name) if named else {}
    if not named or not all(map(_is_plain, tensors.values())):
        raise InputError(f"{name} is no dictionary from names to plain tensors; {_EXPECTED}")
    return tensors


def _is_plain(value: Tensor) -> bool:
    """Return whether ``value`` is an ordinary tensor on the CPU, with memory of its own behind every element."""
    if (
        type(value) not in (Tensor, nn.Parameter)
        or value.layout != torch.strided
        or value.device.type != "cpu"
    ):
        return False
    return value.numel() * value.element_size() <= value.untyped_storage().nbytes()


def _json(content: bytes, name: str) -> dict[str, Any]:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name} is no JSON ({cause(error)}); save the policy again") from None
    return value if isinstance(value, dict) else {}


def _described(descriptions: dict[str, Any], section: str, name: str, pattern: str) -> list[str]:
    """Return the matches of ``pattern`` in what ``section`` says of ``name``, [] if it says nothing."""
    part = descriptions.get(section)
    return re.findall(pattern, str(part[name])) if isinstance(part, dict) and name in part else []


def _classifier_parts(
    weights: dict[str, Tensor], descriptions: dict[str, Any], origin: str
) -> tuple[Spec, dict[str, Tensor]]:
    """Sort the weights of a policy into body, hidden layers and head, and describe them."""
    values = next((net for net in _VALUE_NETS if _linear_layers(weights, net)), "mlp_extractor.policy_net.")
    linear = _linear_layers(weights, values)
    if "action_net.weight" in weights:
        hidden, head, activation = "mlp_extractor.policy_net.", "action_net.", "Tanh"
        body = "features_extractor."
        if any(name.startswith(f"pi_{body}") for name in weights):
            body = f"pi_{body}"
        layers = max(linear) + 2 if linear else 0  # the last linear layer has its activation behind it
    elif linear:
        layers = max(linear)
        hidden, head, activation = values, f"{values}{layers}.", "ReLU"
        body = f"{values.partition('.')[0]}.features_extractor."
        if values != _VALUE_NETS[0]:
            weights = weights | _mean_head(weights, head, descriptions, origin)
    else:
        expected = "expected an actor-critic, DQN or QR-DQN policy, Discrete actions"
        raise InputError(f"{origin} holds no classifier; {expected}")
    fields, new_body = _body_fields(weights, body, descriptions, origin)
    low, high = _pixel_range(descriptions, origin)
    activation = _activation(descriptions, activation, origin) if layers else activation
    # Where code is in the file, weights do not determine the output.
    modules = _described(descriptions, "policy_class", "__module__", r"^[\w.]+")
    modules += _described(descriptions, "policy_kwargs", "features_extractor_class", r"^<class '([\w.]+)")
    for module in modules:
        if module.partition(".")[0] not in _KNOWN_CODE:
            raise InputError(f"{origin}: its policy is code of its own, {module}; allow it by --trust")
    classes = weights[f"{head}weight"].shape[:1]
    fields["num_classes"] = classes[0] if classes else 0
    fields["hidden"] = [linear.get(index, activation) for index in range(layers)]
    spec = Spec.parse(fields, origin)

    state = {"body.mean": torch.zeros(spec.shape[0]), "body.std": torch.ones(spec.shape[0])}
    for name, tensor in weights.items():
        for old, new in ((body, new_body), (head, "head."), (hidden, "hidden.")):
            if name.startswith(old):
                state[new + name.removeprefix(old)] = tensor
                break
    mean, std, span = state["body.mean"], state["body.std"], high - low
    if (low, high) != (0, 1) and mean.is_floating_point() and std.is_floating_point():
        state |= {"body.mean": (mean - low) / span, "body.std": std / span}
    return spec, state


def _mean_head(
    weights: dict[str, Tensor], head: str, descriptions: dict[str, Any], origin: str
) -> dict[str, Tensor]:
    """Return QR-DQN's last layer as the mean over its quantiles; the description says how many actions there are."""
    actions = int("".join(_described(descriptions, "action_space", "n", r"^\d{1,9}$")) or 0)
    layer = {name: weights.get(f"{head}{name}", torch.zeros(0)) for name in ("weight", "bias")}
    fits = all(value.dim() and value.is_floating_point() and len(value) for value in layer.values())
    if not actions or not fits or any(len(value) % actions for value in layer.values()):
        remedy = "save the policy again"
        raise InputError(f"{origin}: the quantiles of its {actions} actions do not fit; {remedy}")
    return {head + name: value for name, value in mean_of_quantiles(layer, actions).items()}


def _pixel_range(descriptions: dict[str, Any], origin: str) -> tuple[float, float]:
    """Return what the policy sees of black and white images; the bounds are arrays, in text."""
    number = r"-?(?:\d+\.?\d*(?:e[+-]?\d+)?|inf)"
    low, high = (set(_described(descriptions, "observation_space", side, number)) for side in ("low", "high"))
    dtype = "".join(_described(descriptions, "observation_space", "dtype", r"^\w{1,20}$")) or "uint8"
    if dtype != "uint8" and descriptions.get("_last_original_obs"):
        problem = f"{origin} was trained under VecNormalize, whose statistics it does not hold"
        raise InputError(f"{problem}; give ImageNetwork mean and std instead")
    raw = _described(descriptions, "policy_kwargs", "normalize_images", "False")
    bounds = min(map(float, low), default=0.0), max(map(float, high), default=255.0)
    try:
        return pixel_range("undivided" if raw else dtype, *bounds)
    except InputError as error:
        raise InputError(f"{origin}: {error}") from None


def _activation(descriptions: dict[str, Any], default: str, origin: str) -> str:
    """Return the activation between hidden layers as `Spec` names it, with arguments given by functools.partial."""
    found = "".join(_described(descriptions, "policy_kwargs", "activation_fn", r"(?s)^.+$"))
    name = r"<class 'torch\.nn\.modules\.activation\.(\w+)'>"
    if not found:
        return default
    partial = rf"functools\.partial\({name}(?:, ([\w.+='-]+))?\)"
    match = re.fullmatch(name, found) or re.fullmatch(partial, found)
    text = "" if match is None else match[1]
    if match is not None and match.lastindex == 2:
        text += f"({match[2]})".replace("'", "")
    if make_activation(text) is None:
        remedy = "allow its code by --trust"
        raise InputError(f"{origin}: its activation_fn is {found[:80]!r}, which no text describes; {remedy}")
    return text


def _linear_layers(weights: dict[str, Tensor], prefix: str) -> dict[int, int]:
    """Return the output width of every linear layer under ``prefix``, by its number."""
    pattern = re.compile(re.escape(prefix) + r"(\d{1,2})\.weight")
    layers = ((pattern.fullmatch(name), tensor) for name, tensor in weights.items())
    return {int(match[1]): tensor.shape[0] if tensor.dim() else 0 for match, tensor in layers if match}


def _body_fields(
    weights: dict[str, Tensor], prefix: str, descriptions: dict[str, Any], origin: str
) -> tuple[dict[str, Any], str]:
    """Return the description of the features extractor under ``prefix``, and our prefix of its weights."""
    spec = weights.get(f"{prefix}spec")
    if spec is not None:
        if spec.dtype != torch.uint8 or spec.dim() != 1 or len(spec) > _MAX_SPEC:
            raise InputError(f"{origin}: {prefix}spec is no JSON text as bytes; save the policy again")
        return _json(bytes(spec.tolist()), f"{prefix}spec in {origin}"), "body."
    if f"{prefix}cnn.0.weight" in weights:
        shape = [int(side) for side in _described(descriptions, "observation_space", "_shape", r"\d{1,9}")]
        return {"version": SPEC_VERSION, "network": "nature", "shape": shape}, "body.network."
    remedy = "train with features_extractor_class=agents.ImageNetwork, or allow the code in it by --trust"
    raise InputError(f"{origin}: its features extractor is neither ImageNetwork nor NatureCNN; {remedy}")
