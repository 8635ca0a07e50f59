"""The former place of `eval.core.threats`, which programs written for earlier versions import."""

from eval.core.threats import Threat

__all__ = ["Threat"]
