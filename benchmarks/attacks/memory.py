"""Peak memory of AutoAttack over many colour images, measured in a process of its own."""

import importlib
import json
import resource
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from attacks.autoattack.successive_halving import ROUNDS
from attacks.autoattack.versions import Stage, stages_of

EPS = 1 / 255
module: Any = importlib.import_module(
    "attacks.autoattack.autoattack"
)  # the package's attribute of that name is the function
_LIMIT = 3600


def peak_memory(version: str, images: int) -> dict[str, Any]:
    """Return the MiB that a version of AutoAttack takes beyond the libraries and a tiny network, images included.

    Every stage keeps its batches but does few iterations, for memory does not depend on their number.
    """
    command = [
        sys.executable,
        "-c",
        f"from benchmarks.attacks import memory as m; m.measure({version!r}, {images})",
    ]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=_LIMIT)
    return json.loads(done.stdout.splitlines()[-1])


def measure(version: str, images: int) -> None:
    """Print the measurement as JSON; runs in a fresh process."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.AvgPool2d(5), nn.Flatten(), nn.Linear(36, 10)
    ).eval()
    few = torch.rand(64, 3, 32, 32)
    module.autoattack(model, few, model(few).argmax(1), norm="Linf", eps=EPS, version=("apgd-ce",))
    before = _peak()
    x = torch.rand(images, 3, 32, 32)
    with torch.no_grad():
        y = torch.cat([model(part).argmax(1) for part in x.split(250)])
    module.stages_of = lambda *options: tuple(_shortened(stage) for stage in stages_of(*options))
    result = module.autoattack(model, x, y, norm="Linf", eps=EPS, version=version)
    figures = {
        "version": version,
        "images": images,
        "mebibytes": _peak() - before,
        "of_images": x.nbytes / 2**20,
        "survivors": int((~result.success).sum()),
    }
    print(json.dumps(figures))


def _shortened(stage: Stage) -> Stage:
    """The stage with a few iterations, on all samples that are left."""
    options: dict[str, Any] = {"steps": 2}
    if stage.name in ("clean", "one-step"):
        options = {}
    elif stage.name.startswith("square"):
        options = {"queries": 10}
    elif stage.name == "successive-halving":
        options = {"rounds": tuple(one._replace(steps=2) for one in ROUNDS)}
    return Stage(stage.name, partial(stage.attack, **options))


def _peak() -> float:
    """The most MiB that this process has held so far."""
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage counts what the parent held when it started this process
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 2**10
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / 2**20 if sys.platform == "darwin" else most / 2**10
