"""The plain classifier inside a policy: float images in [0, 1] to logits, normalisation included.

What is trained here can be attacked by any tool, and nothing of reinforcement learning is needed to use it.
"""

from torch import Tensor, nn

from agents.models.classifier_spec import ACTIVATIONS, Spec, activation_text, make_activation
from agents.models.image_network import Build, ImageNetwork, Shape, image_space
from envs.errors import InputError


class Classifier(nn.Module):
    """Float images ``(N, C, H, W)`` in [0, 1] to logits ``(N, K)``.

    Args:
        body: normalises, and extracts features.
        head: the last layer, from features to one logit per class.
        hidden: layers in between, linear ones and activations, as SB3's ``net_arch`` makes them. None: none.
    """

    def __init__(self, body: ImageNetwork, head: nn.Linear, hidden: nn.Sequential | None = None) -> None:
        super().__init__()
        self.body, self.head = body, head
        self.hidden = nn.Sequential() if hidden is None else hidden

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
    layers, width = nn.Sequential(), body.features_dim
    for layer in hidden:
        made = make_activation(layer) if isinstance(layer, str) else nn.Linear(width, layer)
        if made is None:
            raise InputError(f"hidden layer {layer!r}; expected a width or one of {', '.join(ACTIVATIONS)}")
        layers.append(made)
        width = layer if isinstance(layer, int) else width
    return Classifier(body, nn.Linear(width, num_classes), layers)
