"""The policy that on-policy algorithms share: an image network with a head for actions and one for values."""

from collections.abc import Callable
from typing import Any, Literal

import gymnasium as gym
import torch
from stable_baselines3.common.distributions import CategoricalDistribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import Schedule
from torch import Tensor, nn

from agents.common.compiling import compiled
from agents.models import action_distribution as distribution
from agents.models.classifier import Classifier
from agents.models.extraction import assemble_classifier
from agents.models.image_network import ImageNetwork, to_fast_layout
from envs.errors import InputError

Precision = Literal["fp32", "bf16"]
ExplorationMode = Literal["batch", "mixture"]
_NOT_OURS = (  # arguments of Stable-Baselines3's policies that `ImagePolicy` sets itself
    *("net_arch", "ortho_init", "features_extractor_class", "activation_fn", "use_expln"),
    *("log_std_init", "squash_output", "full_std", "normalize_images"),
)


class ImagePolicy(ActorCriticPolicy):
    """Stable-Baselines3's actor-critic policy over an :class:`~agents.models.image_network.ImageNetwork`.

    Observations are images ``(N, C, H, W)``, uint8 or floats that the network takes as they are; actions are labels.
    The action head reads the features directly, so both together are a plain classifier (:attr:`classifier`).

    Args:
        observation_space, action_space: Box of images, channels first; Discrete, one action per class.
        lr_schedule: learning rate as a function of the remaining progress (1 to 0).
        network: a registered network, see :data:`agents.models.image_network.NETWORKS`.
        mean, std: of the pixels in [0, 1] per channel, for the normalisation inside the network.
        precision: ``bf16`` runs the network under autocast while training; predictions are always float32.
        channels_last: memory layout of images and convolutions.
        compile: compile the network's training forward with ``torch.compile``.
        exploration: probability of uniform random actions while training, in [0, 1].
        exploration_mode: ``mixture``: the policy is ``(1 - exploration) softmax + exploration / K``, with exact
            log-probabilities. ``batch``: the whole batch acts at random at once, and log-probabilities are those of
            the softmax (arXiv 2606.12251).
        optimizer_class, optimizer_kwargs: AdamW unless given, and what it is given.
    """

    _features: Callable[[Tensor], Tensor]  # the features extractor, compiled if asked for
    action_net: nn.Linear

    def __init__(
        self,
        observation_space: gym.spaces.Space,
        action_space: gym.spaces.Space,
        lr_schedule: Schedule,
        network: str = "small",
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        precision: Precision = "fp32",
        channels_last: bool = True,
        compile: bool = False,
        exploration: float = 0.0,
        exploration_mode: ExplorationMode = "mixture",
        optimizer_class: type[torch.optim.Optimizer] = torch.optim.AdamW,
        optimizer_kwargs: dict[str, Any] | None = None,
        use_sde: bool = False,
    ) -> None:
        if not isinstance(action_space, gym.spaces.Discrete):
            wanted = "an image policy acts by labels; expected a Discrete action space"
            raise InputError(f"{wanted}, got {action_space}")
        self.network, self.num_actions = network, int(action_space.n)
        self.precision, self.channels_last, self.compile_network = precision, channels_last, compile
        self.exploration, self.exploration_mode = exploration, exploration_mode
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            net_arch=[],
            ortho_init=False,
            use_sde=use_sde,
            features_extractor_class=ImageNetwork,
            features_extractor_kwargs={"network": network, "mean": mean, "std": std},
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
        )

    def _build(self, lr_schedule: Schedule) -> None:
        super()._build(lr_schedule)
        if self.channels_last:
            to_fast_layout(self)
        # Small first logits: an undecided policy explores; a large random one commits before it has learnt anything.
        with torch.no_grad():
            self.action_net.weight.mul_(0.1)
        # Outside the module tree, so that state dicts have the same keys with and without compilation.
        features = compiled(self.features_extractor) if self.compile_network else self.features_extractor
        object.__setattr__(self, "_features", features)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        parameters = super()._get_constructor_parameters()
        for name in _NOT_OURS:
            parameters.pop(name, None)
        extractor = parameters.pop("features_extractor_kwargs")
        own = ("precision", "channels_last", "exploration", "exploration_mode")
        parameters |= extractor | {name: getattr(self, name) for name in own}
        return parameters | {"compile": self.compile_network}

    @property
    def classifier(self) -> Classifier:
        """The classifier inside, sharing this policy's weights: float images in [0, 1] to logits."""
        return assemble_classifier(self)

    def pixels(self, observations: Tensor) -> Tensor:
        """Turn uint8 images ``(N, C, H, W)`` into floats in [0, 1] in the network's memory layout; floats stay."""
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        if observations.dtype != torch.uint8:
            return observations.to(torch.float32, memory_format=layout)
        pixels = torch.empty_like(observations, dtype=torch.float32, memory_format=layout)
        return torch.div(observations, 255, out=pixels)

    def features(self, pixels: Tensor) -> Tensor:
        """Return the features ``(N, D)``, float32, of float images in [0, 1], at the training precision."""
        if self.precision == "fp32":
            return self._features(pixels)
        with torch.autocast(pixels.device.type, torch.bfloat16):
            return self._features(pixels).float()

    def logits(self, pixels: Tensor) -> Tensor:
        """Return the action logits ``(N, K)`` of float images in [0, 1], at the training precision."""
        return self.action_net(self.features(pixels))

    def forward(self, obs: Tensor, deterministic: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Return actions ``(N,)``, values ``(N, 1)`` and log-probabilities ``(N,)`` for uint8 observations."""
        logits, values = self.logits_and_values(obs)
        log_probs = distribution.mixture_log_probs(logits, self.mixture)
        if deterministic:
            actions = logits.argmax(-1)
        elif (
            self.exploration and self.exploration_mode == "batch" and distribution.explores(self.exploration)
        ):
            actions = distribution.uniform_actions(log_probs)
        else:
            actions = distribution.sample_actions(log_probs)
        return actions, values, log_probs.gather(1, actions[:, None])[:, 0]

    def evaluate_actions(self, obs: Any, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return values ``(N, 1)``, log-probabilities ``(N,)`` of the actions, and entropies ``(N,)`` in nats."""
        logits, values = self.logits_and_values(obs)
        entropies = distribution.entropies(distribution.mixture_log_probs(logits, self.mixture))
        return values, self.log_probs(logits, actions), entropies

    def logits_and_values(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits ``(N, K)`` and values ``(N, 1)``, float32, of uint8 observations."""
        features = self.features(self.pixels(obs))
        return self.action_net(features), self.value_net(features)

    def log_probs(self, logits: Tensor, actions: Tensor) -> Tensor:
        """Return the log-probabilities ``(N,)`` of ``actions (N,)`` under this policy, given its logits ``(N, K)``."""
        return distribution.action_log_probs(logits, actions, self.mixture)

    @property
    def mixture(self) -> float:
        """The share of uniform random actions that log-probabilities account for."""
        return self.exploration if self.exploration_mode == "mixture" else 0.0

    def predict_values(self, obs: Any) -> Tensor:
        """Return the values ``(N, 1)`` of uint8 observations."""
        return self.value_net(self.features(self.pixels(obs)))

    def get_distribution(self, obs: Any) -> CategoricalDistribution:
        """Return the distribution over labels of uint8 observations, in float32 at any training precision."""
        answer = CategoricalDistribution(self.num_actions)
        # SB3's own constructor validates every batch, which costs more than the sampling and waits for the device.
        logits = self.action_net(self.features_extractor(self.pixels(obs)))
        answer.distribution = torch.distributions.Categorical(logits=logits, validate_args=False)
        return answer

    def set_training_mode(self, mode: bool) -> None:
        """Put the policy in train or eval mode; only on change, since visiting every layer takes time."""
        if mode != self.training:
            super().set_training_mode(mode)

    def _predict(self, observation: Any, deterministic: bool = False) -> Tensor:
        """Return actions ``(N,)``; the likeliest by logits, as SB3's rounded probabilities tie where logits do not."""
        if deterministic:
            return self.action_net(self.features_extractor(self.pixels(observation))).argmax(-1)
        return super()._predict(observation)
