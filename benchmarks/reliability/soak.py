"""A long run in miniature: ``python -m benchmarks.reliability.soak``.

1,000 rollouts of training with a logged line and a validation each, then 1,000 batches under attack, in one process.
After a warm-up the resident memory is read after every one; its slope comes from least squares over the means of ten
blocks, which are nearly independent, with a 95 % interval. Open files and threads must stay what they were.
"""

import argparse
import gc
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats

import attacks
from agents.models.classifier_files import load_classifier
from agents.training.callback import TrainingCallback
from agents.training.run import train
from benchmarks.reliability.page import record
from envs import load_dataset
from tests.support.agent_runs import short

BLOCKS = 10


@dataclass
class Trace:
    """What was read after every unit of work: resident KiB, open files, threads."""

    kib: list[int] = field(default_factory=list)
    files: list[int] = field(default_factory=list)
    threads: list[int] = field(default_factory=list)

    def read(self) -> None:
        """Read the three now."""
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        self.kib.append(pages * os.sysconf("SC_PAGE_SIZE") // 1024)
        self.files.append(len(os.listdir("/proc/self/fd")))
        self.threads.append(self._count_threads())

    def _count_threads(self) -> int:
        """Count threads; one that Python has joined may take the kernel a moment more, a leaked one stays."""
        count = len(os.listdir("/proc/self/task"))
        for _ in range(50):
            if not self.threads or count <= self.threads[-1]:
                break
            time.sleep(0.01)
            count = len(os.listdir("/proc/self/task"))
        return count

    def figures(self, warm_up: int) -> dict[str, Any]:
        """Return slope in KiB per unit with its interval, and the range of files and threads, after ``warm_up``."""
        kib = np.asarray(self.kib[warm_up:], float)
        blocks = np.array_split(np.arange(len(kib)), BLOCKS)
        places, means = zip(*((block.mean(), kib[block].mean()) for block in blocks), strict=True)
        fit = stats.linregress(places, means)
        reach = stats.t.ppf(0.975, BLOCKS - 2) * np.nan_to_num(fit.stderr)  # NaN where memory never changed
        return {
            "units": len(kib),
            "kib_per_unit": float(fit.slope),
            "interval": [float(fit.slope - reach), float(fit.slope + reach)],
            "first_kib": float(kib[0]),
            "last_kib": float(kib[-1]),
            "files": sorted(set(self.files[warm_up:])),
            "threads": sorted(set(self.threads[warm_up:])),
        }


@contextmanager
def _after_every_rollout(action: Any) -> Iterator[None]:
    real = TrainingCallback._on_rollout_start

    def start(self: TrainingCallback) -> None:
        real(self)
        action()

    TrainingCallback._on_rollout_start = start  # type: ignore[method-assign]
    try:
        yield
    finally:
        TrainingCallback._on_rollout_start = real  # type: ignore[method-assign]


def soak_training(
    case: str, rollouts: int, folder: Path, validate_every: int = 10
) -> tuple[Trace, dict[str, float]]:
    """Train for so many rollouts, and return the trace and the bytes of logs per logged line."""
    trace, path = Trace(), folder / f"soak-{case}"
    size = 100 if case == "ppo" else 50
    config = short(path, case, total_images=size * rollouts, eval_every=size * validate_every)
    with _after_every_rollout(trace.read):
        train(config)
    lines = (path / "metrics.jsonl").read_text().splitlines()
    events = sum(file.stat().st_size for file in path.glob("events.out.*"))
    return trace, {
        "rollouts": len(trace.kib),
        "lines": len(lines),
        "metrics_bytes_per_line": (path / "metrics.jsonl").stat().st_size / len(lines),
        "event_bytes_per_line": events / len(lines),
    }


def soak_attacks(batches: int, run: Path) -> Trace:
    """Attack the same 32 images again and again, by attacks in turn."""
    model, data, trace = load_classifier(run), load_dataset("digits", "test"), Trace()
    x, y = data.images[:32].float() / 255, data.labels[:32]
    for batch in range(batches):
        if batch % 10 == 9:
            attacks.autoattack(model, x[:8], y[:8], norm="Linf", eps=0.1, version=["apgd-ce"])
        else:
            attacks.pgd(
                model, x, y, norm=("Linf", "L2")[batch % 2], eps=0.1, steps=10, random_start=True, seed=batch
            )
        trace.read()
    return trace


def table(found: dict[str, dict[str, Any]], logs: dict[str, dict[str, float]], seconds: float) -> str:
    """Return the section of the report."""
    lines = [
        "## Soak",
        "",
        f"`python -m benchmarks.reliability.soak`: {seconds:.0f} s. "
        "Resident memory after a warm-up: slope by least squares, 95 % "
        "interval in brackets.",
        "",
        "| work | units | KiB per unit | MiB at the start | MiB at the end | open files | threads |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, f in found.items():
        low, high = f["interval"]
        lines.append(
            f"| {name} | {f['units']} | {f['kib_per_unit']:.2f} [{low:.2f}, {high:.2f}] | "
            f"{f['first_kib'] / 1024:.1f} | {f['last_kib'] / 1024:.1f} | {_span(f['files'])} | {_span(f['threads'])} |"
        )
    lines += ["", "Logs, written at most four times per validation however fast training is:", ""]
    for name, f in logs.items():
        lines.append(
            f"- {name}: {f['lines']:.0f} lines for {f['rollouts']:.0f} rollouts, {f['metrics_bytes_per_line']:.0f} "
            f"bytes a line in metrics.jsonl, {f['event_bytes_per_line']:.0f} in TensorBoard's file."
        )
    return "\n".join(lines)


def _span(values: list[int]) -> str:
    return str(values[0]) if len(values) == 1 else f"{values[0]} to {values[-1]}"


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--units", type=int, default=1000, help="rollouts and batches")
    parser.add_argument("--warm-up", type=int, default=200, help="more of them before memory is compared")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found, logs, start = {}, {}, time.perf_counter()
    count = options.units + options.warm_up
    with tempfile.TemporaryDirectory() as folder:
        for case in ("supervised", "ppo", "dqn"):
            trace, logs[case] = soak_training(case, count, Path(folder))
            found[f"{case}: rollouts"] = trace.figures(options.warm_up)
            print(case, found[f"{case}: rollouts"], logs[case], flush=True)
        gc.collect()
        found["attacks: batches"] = soak_attacks(count, Path(folder) / "soak-supervised").figures(
            options.warm_up
        )
    text = table(found, logs, time.perf_counter() - start)
    print(text)
    record("soak", {"memory": found, "logs": logs, "threads": threading.active_count()}, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
