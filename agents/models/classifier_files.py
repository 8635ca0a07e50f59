"""Classifiers as files: safetensors with a description, read and written without executing anything."""

import json
import os
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from agents.models.classifier import Classifier, new_classifier
from agents.models.classifier_spec import EXTRA_STATE, Spec, as_tensors, like_state
from agents.models.image_network import BUILT_IN, Build, resolve_network
from agents.models.sb3_zip import read_sb3_zip
from envs.errors import InputError
from envs.files import write_atomic

FORMAT = "labelbandit-classifier-1"
MODEL_FILE = "model.safetensors"
_MAX_BYTES = 2**32
_MAX_HEADER = 2**24


def save_classifier(classifier: Classifier, path: str | Path) -> None:
    """Write the weights and their description as safetensors, atomically.

    Raises:
        OSError: the directory is missing or read-only, or the disk is full.
    """
    write_atomic(path, classifier_bytes(classifier))


def classifier_bytes(classifier: Classifier) -> bytes:
    """Return what `save_classifier` writes. Tensors that share memory are written once under each of their names.

    Raises:
        InputError: the extra state of a module is neither a tensor nor plain JSON values.
    """
    state = as_tensors(classifier.state_dict(), f"network {classifier.network!r}")
    tensors = {name: value.detach().to("cpu", copy=True).contiguous() for name, value in state.items()}
    content = safetensors.torch.save(tensors, {"format": FORMAT, "spec": classifier.spec.to_json()})
    # Metadata come in random order; sorted, equal weights make equal files.
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the format aligns tensors to eight bytes
    return len(text).to_bytes(8, "little") + text + content[end:]


def load_classifier(
    path: str | Path, device: str | torch.device = "cpu", network: str | Build | None = None
) -> Classifier:
    """Return the classifier of a run directory, a ``.safetensors`` file or an SB3 zip, in eval mode.

    Nothing in a file is executed, imported or unpacked to disk.

    Args:
        path: run directory, its ``model.safetensors``, or a zip saved by an SB3 algorithm (PPO, A2C, DQN).
        device: where to put it.
        network: name, import path or function (C, H, W) -> ``nn.Module`` in place of the network named in the
            file; needed where that is not registered.

    Raises:
        InputError: the file is missing, damaged or hostile, or does not fit its network.
    """
    path = Path(path)
    if os.path.isdir(path):
        path = path / MODEL_FILE
    elif not os.path.exists(path) and os.path.isfile(f"{path}.zip"):
        path = Path(f"{path}.zip")
    if not os.path.isfile(path):  # unlike Path's, these tests raise for no path whatever
        raise InputError(f"no weights at {path}; expected a run directory with {MODEL_FILE}, or an SB3 zip")
    spec, state = _read_safetensors(path) if path.suffix == ".safetensors" else read_sb3_zip(path)
    return _restore(spec, state, network, str(path)).to(device)


def _read_safetensors(path: Path) -> tuple[Spec, dict[str, Tensor]]:
    if path.stat().st_size > _MAX_BYTES:
        raise InputError(f"{path} has {path.stat().st_size} bytes; at most {_MAX_BYTES} are read")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; check its permissions") from None
    damaged = f"{path} is no safetensors file of labelbandit, or is damaged; copy or save it again"
    length = int.from_bytes(content[:8], "little")
    if not 0 < length <= min(len(content) - 8, _MAX_HEADER):
        raise InputError(damaged)
    try:
        header = json.loads(content[8 : 8 + length], object_pairs_hook=_without_duplicates)
        state = safetensors.torch.load(content)
        metadata = header["__metadata__"]
        if metadata["format"] != FORMAT:
            raise ValueError(f"format {metadata['format'][:40]!r}, expected {FORMAT!r}")
        fields = json.loads(metadata["spec"])
    except (ValueError, KeyError, TypeError, RuntimeError, safetensors.SafetensorError) as error:
        raise InputError(f"{damaged} ({' '.join(str(error).split())[:120]})") from None
    return Spec.parse(fields, str(path)), state


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key occurs twice")
    return found


def _restore(spec: Spec, state: dict[str, Tensor], network: str | Build | None, origin: str) -> Classifier:
    """Build the classifier and fill it; shapes are compared before memory is allocated."""
    if isinstance(network, str):
        network = resolve_network(network, allow_import=True)
    state.pop("body.spec", None)  # read already; with network= the built one names another network
    body = network or spec.network

    def build() -> Classifier:
        return new_classifier(spec.shape, spec.num_classes, body, hidden=spec.hidden)

    if body in BUILT_IN:  # the meta device has shapes without memory; networks of users may not support it
        with torch.device("meta"):
            _check_shapes(build(), state, origin)
    with torch.random.fork_rng(devices=[]):
        classifier = build()
    _check_shapes(classifier, state, origin)
    for name, tensor in state.items():
        if not tensor.isfinite().all():
            remedy = "load an earlier checkpoint or train again"
            raise InputError(f"{origin}: {name} has NaN or infinite values; {remedy}")
    if (state["body.std"] <= 0).any():
        raise InputError(f"{origin}: body.std has values that are not positive; save the weights again")
    own = like_state(state, classifier.state_dict(), origin)
    classifier.load_state_dict(own | {"body.spec": classifier.body.spec})
    return classifier.eval()


def _check_shapes(classifier: Classifier, state: dict[str, Tensor], origin: str) -> None:
    expected = classifier.state_dict()
    del expected["body.spec"]
    missing, extra = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    for problem, names in (("lacks", missing), ("has an unexpected", extra)):
        if names:
            raise InputError(
                f"{origin} {problem} tensor {names[0][:80]!r}; its weights are of another network than "
                f"{classifier.network!r}: pass the right one as network="
            )
    for name, own in expected.items():
        found = state[name]
        extra_state = name.endswith(EXTRA_STATE)  # of any size
        if not extra_state and (found.shape != own.shape or found.dtype != own.dtype):
            raise InputError(
                f"{origin}: {name} is {found.dtype} {tuple(found.shape)}, network {classifier.network!r} expects "
                f"{own.dtype} {tuple(own.shape)}; pass the right one as network="
            )
