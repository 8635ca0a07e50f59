"""The former place of `eval.robustness.suite`, which programs written for earlier versions import."""

from eval.robustness.suite import RobustnessReport, evaluate

__all__ = ["RobustnessReport", "evaluate"]
