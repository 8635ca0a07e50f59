"""The command line ``python -m eval.transfer``: its options."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import tyro

from agents.common.command_line import run_cli
from eval.core.options import DataOptions, ModelOptions


@dataclass(frozen=True)
class TransferCommand:
    """Make adversarial images on every model and show them to all; keep the outcome per image."""

    FIRST: ClassVar = "crafts norm eps steps data.dataset data.n seed device out force"

    targets: tyro.conf.Positional[tuple[str, ...]]
    """Two or more: run directories, Stable-Baselines3 .zip files, or package.module:factory."""
    crafts: tuple[str, ...] = ("paper", "strong")
    """paper: PGD by the paper's protocol; strong: unit steps on the MIFPE loss."""
    norm: str = "L2"
    """Linf, L2 or L1; the paper's protocol does not exist for L1."""
    eps: str | None = None
    """Radius, a number or a fraction such as 8/255. Default: by the kind of image."""
    steps: int = 100
    """Gradient steps, each of length eps / 10."""
    data: tyro.conf.OmitArgPrefixes[DataOptions] = field(default_factory=DataOptions)
    seed: int = 0
    """Seed of the random starts."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    model: tyro.conf.OmitArgPrefixes[ModelOptions] = field(default_factory=ModelOptions)
    batch_size: int | None = None
    """Most images at once. Default: chosen by image size and device."""
    out: Path | None = None
    """Where JSON and picture go. Default: results/transfer of the first run."""
    force: bool = False
    """Find everything again even where it is stored."""


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    return run_cli("eval.transfer.command:transfer_command", TransferCommand, "python -m eval.transfer", argv)
