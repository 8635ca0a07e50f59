"""Policies, algorithms and the training of image classifiers by reinforcement learning."""

import attacks.starting as _starting  # noqa: F401 - before what takes long
from agents.algorithms.a2c import A2C
from agents.algorithms.adversarial_env import AdversarialObservation
from agents.algorithms.dqn import DQN
from agents.algorithms.ppo import PPO
from agents.algorithms.registry import AlgorithmSpec, register_algorithm
from agents.algorithms.reinforce import ExpectedPolicyGradient, Reinforce
from agents.algorithms.supervised import Supervised
from agents.models import architectures as _architectures  # noqa: F401 - registers the built-in networks
from agents.models.classifier import Classifier
from agents.models.classifier_files import load_classifier, save_classifier
from agents.models.extraction import extract_classifier
from agents.models.image_network import NETWORKS, ImageNetwork, register_network
from agents.models.policy import ImagePolicy

__all__ = [
    "A2C",
    "DQN",
    "NETWORKS",
    "PPO",
    "AdversarialObservation",
    "AlgorithmSpec",
    "Classifier",
    "ExpectedPolicyGradient",
    "ImageNetwork",
    "ImagePolicy",
    "Reinforce",
    "Supervised",
    "extract_classifier",
    "load_classifier",
    "register_algorithm",
    "register_network",
    "save_classifier",
]
