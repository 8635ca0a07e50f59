"""The options that command lines of the evaluation share: the choice of images."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from eval.core.targets import Samples, Target


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
