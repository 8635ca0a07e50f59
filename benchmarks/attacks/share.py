"""Where the time of AutoAttack goes: ``python -m benchmarks.attacks.share`` prints, stage by stage, the share that the
arithmetic of the model's forward and backward passes takes of the stage's time. It is the limit of what can be saved.
"""

from pathlib import Path
from typing import Any

import torch
import tyro
from rich.console import Console
from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

import attacks
from benchmarks.attacks.models import Setting, classifier_of, test_images
from benchmarks.common import describe_machine, machine_line, timed

# Kernels that only the passes call: products and convolutions, and those of activations and normalisation.
STAGES = ("apgd-ce", "apgd-t", "fab-t", "square")
_MODEL = ("conv", "addmm", "matmul", "linear", "::mm", "relu", "threshold", "norm", "pool", "gelu")


def main(
    images: int = 100, runs: Path = Path("runs/attacks"), norms: tuple[str, ...] = ("Linf", "L2", "L1")
) -> None:
    """Profile AutoAttack standard on digits and an adversarially trained classifier.

    Args:
        images: test images; each stage attacks those that the ones before left.
        runs: where the training is kept.
        norms: which balls.
    """
    torch.set_num_threads(1)
    setting = Setting("digits", True)
    model = classifier_of(setting, runs, None, Console(stderr=True))
    print("| norm | stage | images | seconds | in the passes | other kernels | Python and calls |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    for norm in norms:
        x, y = test_images("digits", images, None)
        for stage in STAGES:
            row, left = measure(model, x, y, norm, setting.eps[norm], stage)
            cells = " | ".join(f"{100 * row[key]:.0f} %" for key in ("passes", "kernels", "python"))
            print(f"| {norm} | {stage} | {len(x)} | {row['seconds']:.2f} | {cells} |", flush=True)
            x, y = x[left], y[left]
    print(f"\n{machine_line(describe_machine())}")


def measure(
    model: nn.Module, x: Tensor, y: Tensor, norm: str, eps: float, stage: str
) -> tuple[dict[str, Any], Tensor]:
    """Return the shares of one stage, and which images (n,) bool it left."""
    found: list[Tensor] = []

    def run() -> None:
        found.append(~attacks.autoattack(model, x, y, norm=norm, eps=eps, version=[stage]).success)

    run()  # what is measured is warm
    seconds = timed(run)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        run()
    own = {item.key: item.self_cpu_time_total for item in profiler.key_averages() if is_kernel(item)}
    passes = sum(time for name, time in own.items() if any(part in name for part in _MODEL)) / 1e6
    kernels = sum(own.values()) / 1e6 - passes
    shares = {"passes": passes / seconds, "kernels": kernels / seconds}
    return {"seconds": seconds, **shares, "python": max(0.0, 1 - sum(shares.values()))}, found[0]


def is_kernel(item: Any) -> bool:
    """Return whether a row of the profile is an operation on the processor."""
    return item.device_type == DeviceType.CPU and item.key.startswith(("aten::", "mkldnn::"))


if __name__ == "__main__":
    tyro.cli(main)
