"""The former place of `agents.models.policy`, which the pickles of earlier policies name."""

from agents.models.policy import ImagePolicy

__all__ = ["ImagePolicy"]
