"""The command line ``python -m eval.mechanism``: its options."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import tyro

from agents.common.command_line import run_cli
from agents.common.plain_numbers import PlainNumbers
from eval.core.options import DataOptions, ModelOptions


@dataclass(frozen=True)
class AnalysisOptions(PlainNumbers):
    """What to measure, and how finely."""

    steps: int = 50
    """Steps of PGD, of eps / 10 each."""
    loss: str = "ce"
    """Loss that PGD climbs and whose gradients are measured: ce, margin, dlr or mifpe."""
    protocol: Literal["normalized", "cleverhans"] = "normalized"
    """Steps of PGD: normalized, or cleverhans (averaged loss, floored)."""
    published_path: bool = True
    """Also follow the published path: cleverhans steps, no clipping to [0, 1] (not at L1)."""
    double: bool = True
    """Also take float64 gradients at every point of the paths."""
    resolution: int = 300
    """Points per axis of the single landscape."""
    average_images: int = 16
    """Images of the averaged landscape."""
    average_resolution: int = 60
    """Points per axis of the averaged landscape."""
    plane_resolution: int = 100
    """Points per axis of the landscapes of all models on the same planes."""
    clip_planes: bool = False
    """Clip landscapes to [0, 1], for models without an answer outside; this bends their planes."""
    draws: int = 10
    """Random points per image for stability and linearity."""
    power_iterations: int = 10
    """Iterations for the curvature."""
    image: int = 0
    """Image of the single landscape: its place among the chosen images."""


@dataclass(frozen=True)
class MechanismCommand:
    """Measure loss landscapes, input gradients and entropies of one or several models."""

    FIRST: ClassVar = (
        "norm eps data.dataset data.n device out "
        "analysis.steps analysis.loss analysis.protocol analysis.resolution"
    )

    targets: tyro.conf.Positional[tuple[str, ...]]
    """Run directories, Stable-Baselines3 .zip files, or package.module:factory."""
    norm: str = "L2"
    """Linf, L2 or L1."""
    eps: str | None = None
    """Radius, a number or a fraction such as 8/255. Default: by the kind of image."""
    data: tyro.conf.OmitArgPrefixes[DataOptions] = field(default_factory=lambda: DataOptions(n=256))
    analysis: tyro.conf.OmitArgPrefixes[AnalysisOptions] = field(default_factory=AnalysisOptions)
    seed: int = 0
    """Seed of every random draw."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    model: tyro.conf.OmitArgPrefixes[ModelOptions] = field(default_factory=ModelOptions)
    out: Path | None = None
    """Where figures and pictures go. Default: results/mechanism of the first model."""
    progress: bool = True
    """Say what is being measured."""


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    return run_cli(
        "eval.mechanism.command:mechanism_command", MechanismCommand, "python -m eval.mechanism", argv
    )
