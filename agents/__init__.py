"""Policies, algorithms and the training of image classifiers by reinforcement learning."""

import attacks.starting as _starting  # noqa: F401 - before what takes long
from agents.adversarial_env import AdversarialObservation
from agents.classifier import Classifier, extract_classifier, load_classifier, save_classifier
from agents.direct import ExpectedPolicyGradient, Reinforce, Supervised
from agents.dqn import DQN
from agents.networks import NETWORKS, ImageNetwork, register_network
from agents.on_policy import A2C, PPO
from agents.policies import ImagePolicy

__all__ = [
    "A2C",
    "DQN",
    "NETWORKS",
    "PPO",
    "AdversarialObservation",
    "Classifier",
    "ExpectedPolicyGradient",
    "ImageNetwork",
    "ImagePolicy",
    "Reinforce",
    "Supervised",
    "extract_classifier",
    "load_classifier",
    "register_network",
    "save_classifier",
]
