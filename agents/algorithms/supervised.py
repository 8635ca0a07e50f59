"""Supervised learning through the environment, policy and logs of the other algorithms."""

from dataclasses import replace

from torch import Tensor

from agents.algorithms import losses
from agents.algorithms.registry import AlgorithmSpec, register_algorithm
from agents.algorithms.single_pass import Batch, SinglePassAlgorithm, build_single_pass
from envs.errors import InputError


class Supervised(SinglePassAlgorithm):
    """Cross-entropy on the labels, through the same environment, policy and logs; actions are the likeliest labels."""

    def choose_actions(self, logits: Tensor) -> Tensor:
        """Return the likeliest labels ``(N,)``."""
        return logits.detach().argmax(-1)

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Return the mean cross-entropy in nats."""
        if batch.labels is None:
            raise InputError("supervised learning needs labels; train it on an environment from envs.sb3_env")
        return losses.cross_entropy(logits, batch.labels)


register_algorithm(
    "supervised",
    AlgorithmSpec(
        Supervised, lambda setup: build_single_pass(replace(setup, ent_coef=0.0)), adversarial="loss"
    ),
)
