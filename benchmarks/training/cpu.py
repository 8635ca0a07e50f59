"""Images per second of training, every row a ratio to a peer measured in the same run.

``python -m benchmarks.training`` prints a table and writes ``docs/results/training.json`` and ``training.md``.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
import tyro
from rich.console import Console
from rich.progress import track
from rich.table import Table

from agents import A2C, PPO, ExpectedPolicyGradient, Reinforce, Supervised
from agents.common.precision import emulates_bf16
from agents.models.policy import ImagePolicy
from benchmarks.common import Side, describe_machine, machine_line, take_turns, write_results
from benchmarks.training import peers, regime_cost
from envs import ImageDataset, keep_freed_memory, sb3_env

EPOCHS, ROLLOUT_STEPS = 4, 4
BARE, KEPT, PIL, WORKERS = "bare PyTorch", ", memory kept", "DataLoader + PIL", (0, 2)
AUGMENTED = "reinforce fp32, augmented"
EMULATED = "No bf16 rows: this processor emulates bf16, which took 2.8 times as long as fp32 on cnn4."


@dataclass(frozen=True)
class Workload:
    """A network on images of one shape, and how many of them one measurement trains on."""

    name: str
    network: str
    shape: tuple[int, int, int]
    batch: int
    images: int
    precisions: tuple[str, ...] = ("fp32",)
    augmentation: bool = False
    turns: int = 1  # times the usual number of measurements, where they are a tenth of a second


WORKLOADS = {
    "tiny": Workload("tiny", "mlp", (1, 8, 8), 1024, 32_768, augmentation=True, turns=3),
    "small": Workload("small", "small", (1, 8, 8), 256, 4096),
    "cnn4": Workload("cnn4", "cnn4", (3, 32, 32), 256, 1024, ("fp32", "bf16")),
    "cnn6": Workload("cnn6", "cnn6", (3, 32, 32), 256, 65_536, ("bf16",)),
    "cnn6-1024": Workload("cnn6-1024", "cnn6", (3, 32, 32), 1024, 131_072, ("bf16",)),
}
DEFAULT_NAMES = {"cpu": "training", "cuda": "training-gpu"}
# (ours, the peer, cost of ours over the peer's in forward passes by the cost model, ratio to reach)
Row = tuple[str, str, float, float | None]


def main(
    workloads: tuple[str, ...] = (),
    repeats: int = 7,
    regimes: bool = True,
    write: bool = True,
    name: str | None = None,
) -> None:
    """Time training.

    Args:
        workloads: tiny, small, cnn4, cnn6, cnn6-1024; by default those without cnn6, and all on a GPU.
        repeats: measurements of each contestant, taken in turns; three times as many on tiny, whose are short.
        regimes: time adversarial training beside plain training too.
        write: write ``docs/results/training.json`` and ``training.md``.
        name: of these two files; for another kind of processor. Default: training, on a GPU training-gpu.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    emulated = emulates_bf16(device)
    names = workloads or (tuple(WORKLOADS) if device.type == "cuda" else ("tiny", "small", "cnn4"))
    console = Console()
    rows = []
    name = name or DEFAULT_NAMES[device.type]
    for workload in track(names, "timing", console=console, transient=True):
        load = WORKLOADS[workload]
        if emulated:
            load = replace(load, precisions=("fp32",))
        rows += measure(load, device, repeats)
        if write:  # every row as it is measured
            write_page(rows, [], name)
    console.print(table(rows))
    costs = regime_cost.measure(synthetic((1, 28, 28), 4096, device), repeats=repeats) if regimes else []
    if costs:
        console.print(regime_cost.table(costs))
    if write:
        console.print("written: {} and {}".format(*write_page(rows, costs, name)))


def write_page(rows: list[dict[str, Any]], costs: list[dict[str, Any]], name: str) -> tuple[Path, Path]:
    """Write what was measured so far; return the paths of the data and the page."""
    machine = describe_machine()
    payload = {"machine": machine, "rows": rows, "regimes": costs}
    return write_results(name, payload, markdown(rows, costs, machine, name))


def synthetic(shape: tuple[int, int, int], size: int, device: torch.device) -> ImageDataset:
    """Return random images with random labels of ten classes; speed does not depend on what they show."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (size, *shape), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 10, (size,), generator=generator)
    classes = tuple(str(label) for label in range(10))
    return ImageDataset("synthetic", "train", images, labels, classes).to(device)


def ours(
    algorithm: str, dataset: ImageDataset, load: Workload, precision: str, augmentation: str = "none"
) -> Callable[[int], None]:
    """Return a function that trains on at least so many more images."""
    env = sb3_env(
        dataset,
        load.batch,
        tensors=True,
        device=dataset.device,
        seed=0,
        order="epoch",
        augmentation=augmentation,
    )
    kwargs: dict[str, Any] = {
        "learning_rate": peers.LEARNING_RATE,
        "policy_kwargs": peers.image_policy_kwargs(dataset, load.network, precision),
        "device": dataset.device,
        "seed": 0,
    }
    model: Any
    if algorithm == "ppo":
        model = PPO(
            ImagePolicy,
            env,
            n_steps=ROLLOUT_STEPS,
            batch_size=load.batch,
            n_epochs=EPOCHS,
            gamma=0.0,
            **kwargs,
        )
    elif algorithm == "a2c":
        model = A2C(ImagePolicy, env, n_steps=1, use_rms_prop=False, gamma=0.0, **kwargs)
    else:
        kinds = {"reinforce": Reinforce, "epg": ExpectedPolicyGradient, "supervised": Supervised}
        model = kinds[algorithm](ImagePolicy, env, **kwargs)
    return lambda images: model.learn(images, reset_num_timesteps=False, log_interval=None) and None


def our_side(load: Workload, device: torch.device) -> dict[str, Callable[[], object]]:
    """Return what is ours, by name, in a process that keeps its freed memory as our command line does."""
    keep_freed_memory()
    dataset = data_of(load, device)
    work = {}
    for precision in load.precisions:
        for name in ("supervised", "reinforce", "epg", "ppo", "a2c"):
            work[f"{name} {precision}"] = ours(name, dataset, load, precision)
        work[f"{BARE} {precision}{KEPT}"] = peers.bare_loop(dataset, load.network, load.batch, precision)
    if load.augmentation:
        work[AUGMENTED] = ours("reinforce", dataset, load, "fp32", "paper")
    return {name: partial(run, load.images) for name, run in work.items()}


def their_side(load: Workload, device: torch.device) -> dict[str, Callable[[], object]]:
    """Return the peers by name, as people run them."""
    dataset = data_of(load, device)
    net, batch = load.network, load.batch
    work = {
        "stock SB3 PPO": peers.stock_sb3("ppo", dataset, net, batch, ROLLOUT_STEPS, EPOCHS),
        "stock SB3 A2C": peers.stock_sb3("a2c", dataset, net, batch, 1, 1),
        "single-file PPO": peers.single_file_ppo(dataset, net, batch, ROLLOUT_STEPS, EPOCHS),
    }
    for precision in load.precisions:
        work[f"{BARE} {precision}"] = peers.bare_loop(dataset, net, batch, precision)
    if load.augmentation:
        for workers in WORKERS:
            work[f"{PIL}, {workers} workers"] = peers.pil_loop(dataset, net, batch, workers)
    return {name: partial(run, load.images) for name, run in work.items()}


def data_of(load: Workload, device: torch.device) -> ImageDataset:
    """Return the images of a workload; on a CPU few, for their number does not matter there."""
    return synthetic(load.shape, 4096 if device.type == "cpu" else 45_000, device)


def comparisons(load: Workload) -> list[Row]:
    """Return which pairs are compared."""
    cost = (1 + 3 * EPOCHS) / 3
    rows: list[Row] = []
    for precision in load.precisions:
        bare = f"{BARE} {precision}"
        rows += [(f"{name} {precision}", bare, 1.0, 0.95) for name in ("reinforce", "epg")]
        rows += [(f"supervised {precision}", bare, 1.0, None)]
        rows += [(f"ppo {precision}", bare, cost, 0.85)]
        rows += [(f"{bare}{KEPT}", bare, 1.0, None)]
    for precision in load.precisions:
        goal = {"tiny": 2.0, "small": None}.get(load.name, {"fp32": 1.8, "bf16": 3.0}[precision])
        rows += [
            (f"ppo {precision}", "stock SB3 PPO", 1.0, goal),
            (f"a2c {precision}", "stock SB3 A2C", 1.0, goal),
            (f"ppo {precision}", "single-file PPO", 1.0, None),
        ]
    if load.augmentation:
        rows += [(AUGMENTED, f"{PIL}, {workers} workers", 1.0, 3.0) for workers in WORKERS]
    return rows


def measure(load: Workload, device: torch.device, repeats: int) -> list[dict[str, Any]]:
    """Time all contestants of a workload in turns and return one row per comparison."""
    with contextlib.ExitStack() as stack:
        sides = [
            stack.enter_context(contextlib.closing(Side(build, load, device)))
            for build in (our_side, their_side)
        ]
        home = {name: side for side in sides for name in side.names}
        seconds = take_turns(list(home), lambda name: home[name].measure(name), repeats * load.turns)
    rate = {name: load.images / median(taken) for name, taken in seconds.items()}
    return [
        {
            "workload": load.name,
            "ours": mine,
            "images_per_second": rate[mine],
            "peer": peer,
            "peer_images_per_second": rate[peer],
            "ratio": rate[mine] / rate[peer] * cost,
            "cost_factor": cost,
            "goal": goal,
            "seconds": seconds[mine],
            "peer_seconds": seconds[peer],
        }
        for mine, peer, cost, goal in comparisons(load)
    ]


HEADINGS = ("network", "ours", "images/s", "peer", "images/s", "ratio", "goal")


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    """Return a row as text."""
    corrected = "" if row["cost_factor"] == 1 else " (cost-corrected)"
    goal = "-" if row["goal"] is None else f"{row['goal']:g}"
    return (
        row["workload"],
        row["ours"],
        f"{row['images_per_second']:,.0f}",
        row["peer"],
        f"{row['peer_images_per_second']:,.0f}",
        f"{row['ratio']:.2f}{corrected}",
        goal,
    )


def table(rows: list[dict[str, Any]]) -> Table:
    """Return the rows for the terminal."""
    made = Table(title="training, images per second")
    for heading in HEADINGS:
        made.add_column(heading, justify="right" if heading in ("images/s", "ratio", "goal") else "left")
    for row in rows:
        made.add_row(*cells(row))
    return made


def markdown(
    rows: list[dict[str, Any]], costs: list[dict[str, Any]], machine: dict[str, Any], name: str
) -> str:
    """Return the rows as a Markdown page; its ``name`` is an option of the command if it is not the default."""
    other = name not in DEFAULT_NAMES.values()
    options = f" --name {name}" if other else ""
    lines = [
        "# Training speed" + (f": {machine['cpu']}" if other else ""),
        "",
        f"`python -m benchmarks.training{options}`; medians, contestants taken in turns, images per second of whole",
        "updates. Ours keep freed memory, as the command line does (`envs.keep_freed_memory`); peers run as people run",
        "them, and the bare loop with memory kept shows how much of each ratio that is.",
        "",
        machine_line(machine),
        "",
        "| " + " | ".join(HEADINGS) + " |",
        "|" + "---|" * len(HEADINGS),
        *("| " + " | ".join(cells(row)) + " |" for row in rows),
        "",
        f"PPO runs {EPOCHS} epochs over rollouts of {ROLLOUT_STEPS} steps; its ratio to the bare loop is corrected by",
        f"the cost model's (1 + 3 x {EPOCHS}) / 3. Goals are the project's own.",
        *([EMULATED] if machine["gpu"] is None and emulates_bf16(torch.device("cpu")) else []),
    ]
    if costs:
        lines += ["", "## Adversarial training", "", *regime_cost.markdown(costs)]
    return "\n".join(lines)


if __name__ == "__main__":
    tyro.cli(main)
