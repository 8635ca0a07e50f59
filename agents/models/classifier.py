"""The plain classifier inside a policy: float images in [0, 1] to logits, normalisation included.

What is trained here can be attacked by any tool, and nothing of reinforcement learning is needed to load it.
"""

import copy
import json
import os
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.torch_layers import NatureCNN
from torch import Tensor, nn

from agents.models.classifier_spec import (
    ACTIVATIONS,
    EXTRA_STATE,
    Spec,
    activation_text,
    as_tensors,
    like_state,
    make_activation,
    mean_of_quantiles,
    pixel_range,
)
from agents.models.image_network import (
    BUILT_IN,
    Build,
    ImageNetwork,
    Shape,
    image_space,
    network_name,
    resolve_network,
)
from agents.models.sb3_zip import read_sb3_zip
from envs.errors import InputError
from envs.files import write_atomic

FORMAT = "labelbandit-classifier-1"
MODEL_FILE = "model.safetensors"
_MAX_BYTES = 2**32
_MAX_HEADER = 2**24
_PROBES = 8
_TOLERANCE = 1e-2  # of the spread of the logits: far above what TF32 or another memory layout changes


class Classifier(nn.Module):
    """Float images ``(N, C, H, W)`` in [0, 1] to logits ``(N, K)``.

    Args:
        body: normalises, and extracts features.
        head: the last layer, from features to one logit per class.
        hidden: layers in between, linear ones and activations, as SB3's ``net_arch`` makes them. None: none.
    """

    def __init__(self, body: ImageNetwork, head: nn.Linear, hidden: nn.Sequential | None = None) -> None:
        super().__init__()
        self.body = body
        self.hidden = nn.Sequential() if hidden is None else hidden
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``(N, K)``."""
        return self.head(self.hidden(self.body(images)))

    @property
    def shape(self) -> Shape:
        """Image shape (C, H, W)."""
        return self.body.shape

    @property
    def num_classes(self) -> int:
        """Number of classes K."""
        return self.head.out_features

    @property
    def network(self) -> str:
        """Name of the network."""
        return self.body.network_name

    @property
    def spec(self) -> Spec:
        """What is needed to build this classifier again."""
        hidden: list[int | str] = []
        for layer in self.hidden:
            if isinstance(layer, nn.Linear):
                hidden.append(layer.out_features)
            elif (text := activation_text(layer)) is not None:
                hidden.append(text)
            else:
                raise InputError(
                    f"a {type(layer).__name__} between features and head cannot be saved; expected Linear, "
                    f"{', '.join(ACTIVATIONS)}; put other layers into the network"
                )
        return Spec(self.network, self.shape, self.num_classes, tuple(hidden))


def new_classifier(
    shape: Shape,
    num_classes: int,
    network: str | Build = "small",
    mean: Tensor | None = None,
    std: Tensor | None = None,
    hidden: tuple[int | str, ...] = (),
) -> Classifier:
    """Return an untrained classifier; ``mean`` and ``std`` are per channel ``(C,)``, of pixels in [0, 1].

    Raises:
        InputError: as `ImageNetwork` does.
    """
    body = ImageNetwork(image_space(shape), network, mean, std)
    layers: list[nn.Module] = []
    width = body.features_dim
    for layer in hidden:
        if isinstance(layer, str):
            activation = make_activation(layer)
            if activation is None:
                raise InputError(
                    f"hidden layer {layer!r}; expected a width or one of {', '.join(ACTIVATIONS)}"
                )
            layers.append(activation)
        else:
            layers.append(nn.Linear(width, layer))
            width = layer
    return Classifier(body, nn.Linear(width, num_classes), nn.Sequential(*layers))


def extract_classifier(policy: BasePolicy) -> Classifier:
    """Return the classifier inside an SB3 actor-critic, DQN or QR-DQN policy over images.

    They share their modules; but for the head of QR-DQN, which is the present mean of its quantiles.

    It answers an image in [0, 1] as the policy answers the same image in its own range: uint8, or floats in [0, 1],
    [-1, 1] or [0, 255]. Both are compared on random images first. The modules' modes are those of the policy: call
    ``.eval()`` before using it outside of training.

    Raises:
        InputError: the policy is of another kind, not one from images to labels, or does more than its network.
    """
    classifier = assemble_classifier(policy)
    _check_answers(policy, classifier)
    return classifier


def assemble_classifier(policy: BasePolicy) -> Classifier:
    """Return what `extract_classifier` returns, without the comparison."""
    parts: Any = policy  # SB3's base class does not declare what follows
    if isinstance(getattr(getattr(parts, "q_net", None), "q_net", None), nn.Sequential):
        extractor, layers = parts.q_net.features_extractor, list(parts.q_net.q_net)
    elif isinstance(getattr(getattr(parts, "quantile_net", None), "quantile_net", None), nn.Sequential):
        extractor, layers = parts.quantile_net.features_extractor, list(parts.quantile_net.quantile_net)
        layers.append(_mean_head(layers.pop(), int(parts.action_space.n)))
    elif hasattr(parts, "action_net") and hasattr(parts, "mlp_extractor"):
        extractor, layers = parts.pi_features_extractor, [*parts.mlp_extractor.policy_net, parts.action_net]
    else:
        kind = type(policy).__name__
        raise InputError(
            f"a {kind} has no classifier inside; expected an actor-critic, a DQN or a QR-DQN policy"
        )
    space = policy.observation_space
    discrete = isinstance(policy.action_space, spaces.Discrete)
    if not isinstance(space, spaces.Box) or len(space.shape) != 3 or not discrete:
        raise InputError(
            f"a policy from {space} to {policy.action_space} is no image classifier; "
            "expected a Box of images (C, H, W) and Discrete actions"
        )
    kind = str(space.dtype) if policy.normalize_images else "undivided"
    low, high = pixel_range(kind, float(space.low.min()), float(space.high.max()))
    head = layers.pop()
    body = _as_image_network(extractor, space, policy.device, low, high - low)
    classifier = Classifier(body, head, nn.Sequential(*layers))
    classifier.training = classifier.hidden.training = policy.training
    return classifier


def _mean_head(quantiles: nn.Linear, actions: int) -> nn.Linear:
    """Return the mean over QR-DQN's quantiles (Dabney et al. 2018) as a layer of its own: logits are Q values."""
    head = nn.utils.skip_init(nn.Linear, quantiles.in_features, actions, device=quantiles.weight.device)
    head.load_state_dict(mean_of_quantiles(quantiles.state_dict(), actions))
    return head


def _as_image_network(
    extractor: nn.Module, space: spaces.Box, device: torch.device, low: float, span: float
) -> ImageNetwork:
    """Return the features extractor behind a map from [0, 1] to ``low + span * x``; itself where that is nothing."""
    if type(extractor) is ImageNetwork:
        if (low, span) == (0, 1):
            return extractor
        body = copy.copy(extractor)  # shares the layers, but not mean and std, which take up the map
        body._buffers = dict(extractor._buffers)
        body.mean, body.std = (extractor.mean - low) / span, extractor.std / span
        return body
    name = "nature" if type(extractor) is NatureCNN else network_name(type(extractor))
    mode = extractor.training
    channels = (space.shape or (0,))[0]
    body = ImageNetwork(space, lambda shape: extractor, [-low / span] * channels, [1 / span] * channels, name)
    return body.train(mode).to(device)


@torch.no_grad()
def _check_answers(policy: Any, classifier: Classifier) -> None:
    """Refuse a policy that answers otherwise than its features extractor, hidden layers and head in a row."""
    space = policy.observation_space
    images = torch.randint(0, 256, (_PROBES, *space.shape), generator=torch.Generator().manual_seed(0)) / 255
    low, high = float(space.low.min()), float(space.high.max())
    shown = (images * (high - low) + low).to(policy.device)
    observations = shown.round().to(torch.uint8) if space.dtype == "uint8" else shown
    modes = [(part, part.training) for whole in (policy, classifier) for part in whole.modules()]
    try:
        for part, _ in modes:
            part.training = False
        found = classifier(images.to(policy.device)).log_softmax(1)
        if hasattr(policy, "q_net"):
            own = policy.q_net(observations)
        elif hasattr(policy, "quantile_net"):
            own = policy.quantile_net(observations).mean(1)
        else:
            own = policy.get_distribution(observations).distribution.logits
        actions = policy._predict(observations, deterministic=True).reshape(-1, 1)
    except (RuntimeError, TypeError) as error:  # a policy of other inputs, such as recurrent ones
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"a {type(policy).__name__} is no classifier of single images ({reason})") from error
    finally:
        for part, mode in modes:
            part.training = mode
    allowed = _TOLERANCE * (found.max() - found.min())
    best = found.max(1).values
    if (found - own.log_softmax(1)).abs().max() > allowed or (
        best - found.gather(1, actions)[:, 0] > allowed
    ).any():
        raise InputError(
            f"a {type(policy).__name__} decides otherwise than its network does; name a package.module:factory of "
            "an nn.Module from images in [0, 1] to logits instead"
        )


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
    tensors = {
        name: value.detach().to("cpu", copy=True).contiguous()
        for name, value in as_tensors(classifier.state_dict(), f"network {classifier.network!r}").items()
    }
    metadata = {"format": FORMAT, "spec": classifier.spec.to_json()}
    return _in_order(safetensors.torch.save(tensors, metadata))


def _in_order(content: bytes) -> bytes:
    """Return the safetensors file with its metadata sorted, which come in random order: equal weights, equal files."""
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
    _check_values(state, origin)
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
        if name.endswith(EXTRA_STATE):  # of any size
            continue
        if found.shape != own.shape or found.dtype != own.dtype:
            raise InputError(
                f"{origin}: {name} is {found.dtype} {tuple(found.shape)}, network {classifier.network!r} expects "
                f"{own.dtype} {tuple(own.shape)}; pass the right one as network="
            )


def _check_values(state: dict[str, Tensor], origin: str) -> None:
    for name, tensor in state.items():
        if not tensor.isfinite().all():
            raise InputError(
                f"{origin}: {name} has NaN or infinite values; load an earlier checkpoint or train again"
            )
    if (state["body.std"] <= 0).any():
        raise InputError(f"{origin}: body.std has values that are not positive; save the weights again")
