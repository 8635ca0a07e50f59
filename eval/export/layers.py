"""A network described as a list of PyTorch layers, which JSON and weights alone rebuild."""

import inspect
from collections.abc import Iterator
from typing import Any

from stable_baselines3.common.torch_layers import NatureCNN
from torch import Tensor, nn

from agents.models.classifier import Classifier
from agents.models.layers import ConsistentDropout
from envs.errors import InputError

# Only these kinds are described, and rebuilt.
_KINDS: dict[str, type[nn.Module]] = {
    kind.__name__: kind
    for kind in (
        *(nn.Conv2d, nn.Linear, nn.BatchNorm1d, nn.BatchNorm2d, nn.GroupNorm, nn.MaxPool2d, nn.AvgPool2d),
        *(nn.AdaptiveAvgPool2d, nn.ZeroPad2d, nn.Flatten),
        *(nn.ReLU, nn.Tanh, nn.Sigmoid, nn.SiLU, nn.ELU, nn.GELU, nn.LeakyReLU),
    )
}
# Arguments of those that need not be known to rebuild one for use: the bias is read off the layer.
_LEFT_OUT = {"bias", "device", "dtype", "inplace", "momentum", "affine", "track_running_stats"}
_LEFT_OUT |= {"return_indices", "divisor_override"}
_WITH_BIAS = (nn.Conv2d, nn.Linear)
_SILENT = (nn.Identity, nn.Dropout, nn.Dropout2d, ConsistentDropout)  # the identity outside of training
_CHAINS = (nn.Sequential, NatureCNN)  # their children run in order


def describe_layers(classifier: Classifier) -> list[dict[str, Any]] | None:
    """Return every layer behind the normalisation as type, arguments and names of its tensors, in order.

    None where the network is more than a chain of PyTorch's own layers, such as a ResNet.
    """
    described = []
    parts = (("body.network", classifier.body.network), ("", nn.Flatten()))
    for name, module in (*parts, ("hidden", classifier.hidden), ("head", classifier.head)):
        for place, layer in _chain(name, module):
            if type(layer) not in _KINDS.values():
                return None
            arguments = [key for key in inspect.signature(type(layer)).parameters if key not in _LEFT_OUT]
            options = {key: getattr(layer, key) for key in arguments if hasattr(layer, key)}
            if isinstance(layer, _WITH_BIAS):
                options["bias"] = layer.bias is not None
            tensors = {key: f"{place}.{key}" for key in layer.state_dict()}
            described.append({"type": type(layer).__name__, "options": options, "weights": tensors})
    return described


def _chain(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the layers that run one after another, with their names; a branching module stays whole."""
    if isinstance(module, _SILENT):
        return
    if type(module) in _CHAINS:
        for key, child in module.named_children():
            yield from _chain(f"{name}.{key}", child)
    else:
        yield name, module


class LayerNetwork(nn.Module):
    """Float images (N, C, H, W) in [0, 1] to logits (N, K), built from a description and weights alone.

    Args:
        layers: as `describe_layers` gives them, or decoded from JSON.
        weights: the tensors of the classifier by name.

    Raises:
        InputError: a layer is of no known kind, or a tensor is missing or does not fit.
    """

    def __init__(self, layers: list[dict[str, Any]], weights: dict[str, Tensor]) -> None:
        super().__init__()
        built = []
        try:
            for layer in layers:
                module = _KINDS[layer["type"]](**layer["options"])
                module.load_state_dict({key: weights[name] for key, name in layer["weights"].items()})
                built.append(module)
            self.mean, self.std = (weights[f"body.{name}"][:, None, None] for name in ("mean", "std"))
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"the layers do not fit the weights ({error}); export the model again") from None
        self.layers = nn.Sequential(*built)
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, K)."""
        return self.layers((images - self.mean) / self.std)
