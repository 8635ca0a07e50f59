"""The command line ``python -m eval.export``: its options."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import tyro

from agents.common.command_line import run_cli
from eval.core.options import DataOptions


@dataclass(frozen=True)
class ExportCommand:
    """Write a classifier as safetensors, torch.export program or ONNX, and check that each is the same model."""

    target: tyro.conf.Positional[str]
    """Run directory, Stable-Baselines3 .zip, .safetensors, or package.module:factory."""
    out: tyro.conf.Positional[Path]
    """New directory for the files."""
    format: Literal["safetensors", "torch-export", "onnx", "all"] = "safetensors"
    """safetensors, torch-export (.pt2), onnx, or all of them."""
    data: tyro.conf.OmitArgPrefixes[DataOptions] = field(default_factory=lambda: DataOptions(n=256))
    network: str | None = None
    """package.module:Callable that builds your own network, where weights alone are not enough."""
    license: str | None = None
    """Licence on the model card, as Hugging Face calls it: mit, apache-2.0, ... Default: the card names none."""
    force: bool = False
    """Replace an export that is there."""


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    return run_cli("eval.export.command:export_command", ExportCommand, "python -m eval.export", argv)
