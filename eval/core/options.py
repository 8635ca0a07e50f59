"""The options that command lines of the evaluation share: how models are loaded, and which images they see."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from eval.core.targets import Samples, Target


@dataclass(frozen=True)
class ModelOptions:
    """How models that need more than their file are read."""

    network: str | None = None
    """package.module:Callable that builds your own network, where weights alone are not enough."""
    trust: bool = False
    """Execute the code in a .zip that cannot be read without, such as one with a features extractor of its own."""

    def load(self, spec: str, device: "torch.device") -> "Target":
        """Load the classifier that ``spec`` names; errors as in `eval.core.targets.load_target`."""
        from eval.core.targets import load_target

        return load_target(spec, device, **vars(self))


@dataclass(frozen=True)
class DataOptions:
    """Which images; by default the test images of the run's data set."""

    dataset: str | None = None
    """Data set by name, folder:PATH or npz:PATH. Default: the run's."""
    data_root: Path | None = None
    """Where data sets lie. Default: the run's."""
    image_size: int | None = None
    """Resize images to this many pixels a side. Default: the run's."""
    split: str = "test"
    """train, val or test."""
    n: int = 1000
    """Images, spread over the split; all if it has fewer."""

    def load(self, target: "Target") -> "Samples":
        """Load the images for ``target``; errors as in `eval.core.targets.load_samples`."""
        from eval.core.targets import load_samples

        return load_samples(target, **vars(self))
