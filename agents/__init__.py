"""Policies, algorithms and the training of image classifiers by reinforcement learning."""

from typing import TYPE_CHECKING

import attacks.starting as _starting  # noqa: F401 - before what takes long
from envs.lazy_imports import lazy_names

if TYPE_CHECKING:
    from agents.algorithms.a2c import A2C as A2C
    from agents.algorithms.adversarial_env import AdversarialObservation as AdversarialObservation
    from agents.algorithms.dqn import DQN as DQN
    from agents.algorithms.ppo import PPO as PPO
    from agents.algorithms.registry import AlgorithmSpec as AlgorithmSpec
    from agents.algorithms.registry import register_algorithm as register_algorithm
    from agents.algorithms.reinforce import ExpectedPolicyGradient as ExpectedPolicyGradient
    from agents.algorithms.reinforce import Reinforce as Reinforce
    from agents.algorithms.supervised import Supervised as Supervised
    from agents.models.classifier import Classifier as Classifier
    from agents.models.classifier_files import load_classifier as load_classifier
    from agents.models.classifier_files import save_classifier as save_classifier
    from agents.models.extraction import extract_classifier as extract_classifier
    from agents.models.image_network import NETWORKS as NETWORKS
    from agents.models.image_network import ImageNetwork as ImageNetwork
    from agents.models.image_network import register_network as register_network
    from agents.models.policy import ImagePolicy as ImagePolicy

_HOMES = {
    "agents.algorithms.a2c": ("A2C",),
    "agents.algorithms.adversarial_env": ("AdversarialObservation",),
    "agents.algorithms.dqn": ("DQN",),
    "agents.algorithms.ppo": ("PPO",),
    "agents.algorithms.registry": ("AlgorithmSpec", "register_algorithm"),
    "agents.algorithms.reinforce": ("ExpectedPolicyGradient", "Reinforce"),
    "agents.algorithms.supervised": ("Supervised",),
    "agents.models.classifier": ("Classifier",),
    "agents.models.classifier_files": ("load_classifier", "save_classifier"),
    "agents.models.extraction": ("extract_classifier",),
    "agents.models.image_network": ("NETWORKS", "ImageNetwork", "register_network"),
    "agents.models.policy": ("ImagePolicy",),
}
__getattr__ = lazy_names(__name__, _HOMES)
__all__ = sorted(name for names in _HOMES.values() for name in names)


def __dir__() -> list[str]:
    return __all__
