"""REINFORCE with cnn6 on one GPU: images per second, host synchronisations per step, and the curve.

``python -m benchmarks.training.gpu --dataset folder:DIR`` writes ``docs/results/gpu.{json,md}``. DIR holds CIFAR-10 as
an ImageFolder tree; ``--dataset cifar10`` downloads it. Rows are kept under ``runs/gpu`` as they are measured; a
call that was cut short is given again. On a machine without a GPU it runs the same code, slowly.
"""

import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile

from agents import Reinforce, extract_classifier
from agents.common.compiling import compiles
from agents.common.precision import use_tf32
from agents.models.policy import ImagePolicy
from agents.training.validation import evaluate
from benchmarks.common import describe_machine, kept, machine_line, write_results
from benchmarks.training.peers import image_policy_kwargs
from envs import Splits, load_splits, sb3_env

WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
GOAL = 58_000  # images per second on an H200, half of what its arithmetic allows


def main(
    dataset: str = "cifar10",
    data_root: Path | None = None,
    network: str = "cnn6",
    batches: tuple[int, ...] = (256, 1024),
    epochs: int = 4,
    precision: str = "bf16",
    compile: bool | None = None,
    cuda_graphs: bool = False,
    runs: Path = Path("runs/gpu"),
    write: bool = True,
) -> None:
    """Measure, and print and write a table.

    Args:
        dataset: data set of 3x32x32 images.
        data_root: where it lies.
        network: the network.
        batches: batch sizes.
        epochs: passes over the training images, each timed; the first warms up and is left out of the rate.
        precision: fp32 or bf16.
        compile: compile the network. Default: on a GPU.
        cuda_graphs: record training steps as CUDA graphs, which is for small networks and batches.
        runs: where rows are kept.
        write: write the results.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    use_tf32(True)  # as training does
    torch.backends.cudnn.benchmark = True
    splits = Splits(*(part.to(device) for part in load_splits(dataset, data_root=data_root)))
    rows = []
    compile = compiles(compile, device)
    ways = [way for way, used in (("compiled", compile), ("graphs", cuda_graphs)) if used]
    for batch in batches:
        name = "-".join([network, splits.train.name, precision, *ways, str(batch), str(epochs), device.type])
        measured = partial(measure, splits, network, batch, epochs, precision, compile, cuda_graphs)
        rows.append(kept(runs / f"{name}.json", measured))
    title = ", ".join([network, precision, *ways, "reinforce"])
    table = Table("batch", "images/s", "waits a step", "test accuracy", title=title)
    for row in rows:
        table.add_row(*cells(row))
    Console().print(table)
    if write:
        machine = describe_machine()
        write_results("gpu", {"machine": machine, "rows": rows}, page(rows, machine, title))


def measure(
    splits: Splits,
    network: str,
    batch: int,
    epochs: int,
    precision: str,
    compile: bool,
    cuda_graphs: bool,
) -> dict[str, Any]:
    """Train for ``epochs`` passes and return rates, the curve, and what the profiler saw of waiting."""
    train = splits.train
    env = sb3_env(
        train, batch, tensors=True, device=train.device, seed=0, order="epoch", augmentation="paper"
    )
    kwargs = image_policy_kwargs(train, network, precision, compile)
    options: dict[str, Any] = {"policy_kwargs": kwargs, "cuda_graphs": cuda_graphs}
    model = Reinforce(ImagePolicy, env, learning_rate=1e-3, device=train.device, seed=0, **options)
    curve = []
    for _ in range(epochs):
        _wait()
        start = time.perf_counter()
        model.learn(len(train), reset_num_timesteps=False, log_interval=None)  # type: ignore[arg-type]
        _wait()
        seconds = time.perf_counter() - start
        accuracy = evaluate(extract_classifier(model.policy), splits.test).accuracy
        curve.append({"images": model.num_timesteps, "seconds": seconds, "accuracy": accuracy})
    timed = curve[1:] or curve
    return {
        "batch": batch,
        "images_per_second": len(train) * len(timed) / sum(point["seconds"] for point in timed),
        "waits_per_step": waits(model, batch),
        "curve": curve,
    }


def waits(model: Reinforce, batch: int, steps: int = 20) -> dict[str, float]:
    """Return how often a step waits for the device, by the profiler's trace of ``steps`` steps."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
    model.learn(batch, reset_num_timesteps=False, log_interval=None)  # type: ignore[arg-type]
    with profile(activities=activities) as trace:
        model.learn(batch * steps, reset_num_timesteps=False, log_interval=None)  # type: ignore[arg-type]
    counts = {event.key: event.count for event in trace.key_averages()}
    # The learn call itself ends with none; the profiler's own closing synchronisation is not inside a step.
    return {name: counts.get(name, 0) / steps for name in WAITS}


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    total = sum(row["waits_per_step"].values())
    accuracy = row["curve"][-1]["accuracy"]
    return str(row["batch"]), f"{row['images_per_second']:,.0f}", f"{total:.2f}", f"{accuracy:.2%}"


def page(rows: list[dict[str, Any]], machine: dict[str, Any], title: str) -> str:
    lines = [
        "# One GPU",
        "",
        f"`python -m benchmarks.training.gpu`: {title}; goal on an H200: {GOAL:,} images/s at batch 256, all included.",
        "",
        machine_line(machine),
        "",
        "| batch | images/s | waits a step | test accuracy |",
        "|---|---|---|---|",
        *("| " + " | ".join(cells(row)) + " |" for row in rows),
    ]
    return "\n".join(lines)


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


if __name__ == "__main__":
    tyro.cli(main)
