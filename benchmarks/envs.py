"""Images per second of the batched environments beside Gymnasium's and SB3's loops over scalar ones.

``python -m benchmarks.envs`` prints a table and writes ``docs/results/envs.json`` and ``envs.md``.
"""

import os
from collections.abc import Callable
from statistics import median
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import tyro
from gymnasium.vector import AutoresetMode
from rich.console import Console
from rich.progress import track
from rich.table import Table
from stable_baselines3.common.env_util import make_vec_env

from benchmarks.common import describe_machine, interleave, machine_line, write_results
from envs import ImageDataset, sb3_env

SHAPES = ((3, 32, 32), (1, 8, 8))
PEER = "SB3 DummyVecEnv + Monitor"
ENV_ID = "envs:ImageBandit-v0"


def main(
    num_envs: int = 1024, steps: int = 10, repeats: int = 11, images: int = 20_000, write: bool = True
) -> None:
    """Time stepping all environments with random actions.

    Args:
        num_envs: environments per batch.
        steps: steps per measurement.
        repeats: measurements of each contestant, taken in turns.
        images: size of the synthetic data set.
        write: write ``docs/results/envs.json`` and ``envs.md``.
    """
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 2)))
    console = Console()
    rows = []
    for shape in track(SHAPES, "timing", console=console, transient=True):
        seconds = interleave(contestants(shape, num_envs, steps, images), repeats)
        peer = median(seconds[PEER])
        rows += [
            {
                "env": name,
                "shape": "x".join(map(str, shape)),
                "images_per_second": num_envs * steps / median(taken),
                "microseconds_per_image": 1e6 * median(taken) / (num_envs * steps),
                "ratio": peer / median(taken),
                "seconds": taken,
            }
            for name, taken in seconds.items()
        ]
    console.print(table(rows, num_envs))
    if write:
        machine = describe_machine()
        payload = {"num_envs": num_envs, "steps": steps, "repeats": repeats, "images": images}
        paths = write_results(
            "envs", {**payload, "machine": machine, "rows": rows}, markdown(rows, num_envs, machine)
        )
        console.print(f"wrote {paths[0]} and {paths[1]}")


def contestants(
    shape: tuple[int, int, int], num_envs: int, steps: int, images: int
) -> dict[str, Callable[[], None]]:
    """Return, by name, functions that step one-image episodes ``steps`` times."""
    data = synthetic(shape, images)
    sb3 = {
        "ImageVecEnv": sb3_env(data, num_envs, seed=0),
        "ImageVecEnv, monitor=True": sb3_env(data, num_envs, seed=0, monitor=True),
        PEER: make_vec_env(ENV_ID, num_envs, seed=0, env_kwargs={"dataset": data}),
    }
    gymnasium = {
        "Gymnasium vector entry point": gym.make_vec(
            ENV_ID, num_envs, vectorization_mode="vector_entry_point", dataset=data
        ),
        "Gymnasium SyncVectorEnv": gym.make_vec(
            ENV_ID,
            num_envs,
            vectorization_mode="sync",
            vector_kwargs={"autoreset_mode": AutoresetMode.SAME_STEP},
            dataset=data,
        ),
    }
    for env in sb3.values():
        env.reset()
    for vector_env in gymnasium.values():
        vector_env.reset(seed=0)
    actions = np.random.default_rng(0).integers(data.num_classes, size=(steps, num_envs))

    def stepper(env: Any) -> Callable[[], None]:
        def run() -> None:
            for row in actions:
                env.step(row)

        return run

    return {name: stepper(env) for name, env in (sb3 | gymnasium).items()}


def synthetic(shape: tuple[int, int, int], images: int, num_classes: int = 10) -> ImageDataset:
    """Return random images with labels in turn."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (images, *shape), dtype=torch.uint8, generator=generator)
    classes = tuple(str(k) for k in range(num_classes))
    return ImageDataset("synthetic", "train", pixels, torch.arange(images) % num_classes, classes)


def table(rows: list[dict[str, Any]], num_envs: int) -> Table:
    """Return the results as a table for the terminal."""
    out = Table("environment", "images", title=f"{num_envs} environments, one-image episodes")
    for heading in ("images/s", "µs/image", f"x {PEER}"):
        out.add_column(heading, justify="right")
    for row in rows:
        out.add_row(*_cells(row), end_section=row["env"] == "Gymnasium SyncVectorEnv")
    return out


def markdown(rows: list[dict[str, Any]], num_envs: int, machine: dict[str, Any]) -> str:
    """Return the results as a Markdown page."""
    lines = [
        "# Environments: images per second",
        "",
        f"{num_envs:,} environments with one-image episodes and random actions, stepped in turns in one process; "
        "medians. The last column is the speed relative to the loop that stock SB3 users run.",
        "",
        f"| environment | images | images/s | µs/image | x {PEER} |",
        "| --- | --- | ---: | ---: | ---: |",
        *("| " + " | ".join(_cells(row)) + " |" for row in rows),
        "",
        machine_line(machine),
        "",
        "Repeat with `python -m benchmarks.envs`.",
    ]
    return "\n".join(lines)


def _cells(row: dict[str, Any]) -> list[str]:
    return [
        row["env"],
        row["shape"],
        f"{row['images_per_second']:,.0f}",
        f"{row['microseconds_per_image']:.2f}",
        f"{row['ratio']:.1f}",
    ]


if __name__ == "__main__":
    tyro.cli(main)
