"""Attack one model by several processes: ``torchrun --nproc-per-node 4 -m eval.distributed RUN --attacks autoattack``.

Every process attacks its share of the images on its own device; the first one joins the shares, prints the table and
writes the result files. The outcome of an image hangs on its place in the data set alone, so it is the same as that of
one process. The processes need a common file system and exchange no tensors; gloo only lets them wait for each other.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
import torch.distributed as dist
import tyro

from agents.common.command_line import run_cli
from agents.common.run_dir import resolve_device
from eval.attack.runner import attack_rows, check_batch_size, result_path, stored_results
from eval.core.options import DataOptions, ModelOptions
from eval.core.targets import Target
from eval.core.threats import Threat, chosen_threats
from eval.robustness.command import print_reports
from eval.robustness.suite import DEFAULT_BATTERY, RobustnessReport, battery, run_battery, write_reports

_PATIENCE = timedelta(hours=24)  # the slowest share may take long


@dataclass(frozen=True)
class _Images(DataOptions):
    __doc__ = DataOptions.__doc__
    n: Annotated[int, tyro.conf.arg(name="images")] = 1000
    """Images, spread over the split; all if it has fewer. (torchrun takes --n for its own.)"""


@dataclass(frozen=True)
class DistributedCommand:
    """Attack one model by all processes that torchrun started."""

    FIRST: ClassVar = "attacks norm eps data.dataset data.n seed device batch_size model.network out"

    target: tyro.conf.Positional[str]
    """Run directory, Stable-Baselines3 .zip file, or package.module:factory."""
    attacks: tuple[str, ...] = DEFAULT_BATTERY
    """Attacks by name, as for eval.robustness."""
    norm: str | None = None
    """Only this norm: Linf, L2 or L1. Default: Linf and L2."""
    eps: str | None = None
    """Radius for --norm, a number or a fraction such as 8/255. Default: by the kind of image."""
    data: tyro.conf.OmitArgPrefixes[_Images] = field(default_factory=_Images)
    seed: int = 0
    """Seed of the attacks' random draws."""
    device: str = "auto"
    """auto (the process's own GPU where there are GPUs), cpu or cuda."""
    batch_size: int | None = None
    """Most images at once. Default: chosen by image size and device."""
    model: tyro.conf.OmitArgPrefixes[ModelOptions] = field(default_factory=ModelOptions)
    out: Path | None = None
    """Where the result files go. Default: the model's results directory."""

    def threats(self, channels: int) -> tuple[Threat, ...]:
        """Return the threat models for images of this kind; errors as `eval.core.threats.chosen_threat`."""
        return chosen_threats(self.norm, self.eps, channels)


def distributed_command(config: DistributedCommand) -> int:
    """Attack one model by all processes that torchrun started; the outcome is that of one process."""
    check_batch_size(config.batch_size)
    battery(config.attacks, config.threats(1))  # wrong names and radii end here, before anything is loaded
    # What torchrun says: the place of this process among all, and among those of its machine.
    place = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0}
    rank, world, local = (int(os.environ.get(name, default)) for name, default in place.items())
    if world > 1:
        dist.init_process_group("gloo", timeout=_PATIENCE)
    try:
        device = resolve_device(config.device)
        if device.type == "cuda" and device.index is None:
            # The GPUs of a machine are dealt to its processes in turn.
            device = torch.device("cuda", local % torch.cuda.device_count())
        report = _evaluate(config, config.model.load(config.target, device), rank, world)
    finally:
        if world > 1:
            dist.destroy_process_group()
    if report is not None:
        print_reports([report])
    return 0


def _evaluate(config: DistributedCommand, target: Target, rank: int, world: int) -> RobustnessReport | None:
    """Attack this process's share; return the report of all shares in the first process, None in the others."""
    samples, out = config.data.load(target), config.out or target.results_dir
    out.mkdir(parents=True, exist_ok=True)
    place: dict[str, Any] = {"results_dir": out, "batch_size": config.batch_size}
    threats, n = config.threats(samples.channels), len(samples)
    for _, spec in battery(config.attacks, threats, config.seed):
        if stored_results(result_path(target, samples, spec, out)) is None:
            attack_rows(target, samples, spec, slice(n * rank // world, n * (rank + 1) // world), **place)
    if world > 1:
        dist.barrier()
    if rank != 0:
        return None
    report = run_battery(target, samples, config.attacks, threats, seed=config.seed, **place)
    write_reports(out / "robustness.json", [report])
    return report


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    return run_cli(distributed_command, DistributedCommand, "python -m eval.distributed", argv)
