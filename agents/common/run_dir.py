"""The run directory: everything that a training run leaves behind, written atomically."""

import contextlib
import fcntl
import importlib.metadata
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from agents.common.precision import uses_tf32
from envs.errors import InputError
from envs.files import read_json, write_json

FORMAT = 1


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that results depend on, and the platform."""
    names = ("labelbandit", "torch", "torchvision", "numpy", "gymnasium", "stable-baselines3", "scikit-learn")
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def device_name(device: torch.device | str, tf32: bool | None = None) -> str:
    """Return what a reader should know of the device: the GPU and whether TF32 is used, or the number of CPU threads.

    ``tf32`` None stands for the setting at present.
    """
    device = torch.device(device)
    if device.type == "cuda":
        used = uses_tf32() if tf32 is None else tf32
        return f"{torch.cuda.get_device_name(device)}, TF32 {'on' if used else 'off'}"
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


def resolve_device(name: str) -> torch.device:
    """Return the device called ``name``; ``auto`` is the GPU where there is one, else the CPU.

    Raises:
        InputError: the name is unknown or the device is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"unknown device {name!r}; expected auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"device {name!r} is not supported; expected auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        remedy = "use --device cpu"
        raise InputError(f"no device {name!r}: {torch.cuda.device_count()} GPUs are visible; {remedy}")
    return device


class RunDir:
    """A directory with the record of one training run."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        #: algorithm, data set, network, seed, full configuration, versions
        self.config_path = self.path / "config.json"
        self.model_path = self.path / "model.safetensors"  #: the selected classifier
        self.policy_path = self.path / "policy.zip"  #: the same policy in Stable-Baselines3's format
        self.checkpoint_path = self.path / "checkpoint.pt"  #: all that an exact continuation needs
        self.metrics_path = self.path / "metrics.jsonl"  #: one line per logged step
        self.summary_path = self.path / "summary.json"  #: of the finished run, first attacks included
        self.results_dir = self.path / "results"  #: outcomes of attacks, per sample
        self.snapshots_dir = self.path / "snapshots"  #: weights kept while training, by images seen

    @classmethod
    def open(cls, path: str | Path) -> "RunDir":
        """Return the existing run at ``path``. Raises InputError: there is no run there."""
        run = cls(path)
        if not run.path.exists():
            remedy = f"train one with: python -m agents.train --run-dir {run.path}"
            raise InputError(f"no run at {run.path}; {remedy}")
        if not run.config_path.is_file():
            remedy = "give the path of a run"
            raise InputError(f"{run.path} is not a run directory: it has no config.json; {remedy}")
        return run

    @classmethod
    def create(cls, path: str | Path | None, default_name: str, root: str | Path = "runs") -> "RunDir":
        """Make a new directory: ``path`` if given, else ``root/default_name`` with ``-2``, ``-3``... when it is taken.

        Raises:
            InputError: ``path`` exists and is not an empty directory, or cannot be made.
        """
        if path is not None:
            run = cls(path)
            try:
                run.path.mkdir(parents=True, exist_ok=True)
                taken = any(not entry.name.startswith(".") for entry in run.path.iterdir())
            except OSError as error:
                problem = f"cannot make the run directory {run.path}: {error.strerror}"
                raise InputError(f"{problem}; choose another") from None
            if taken:
                raise InputError(
                    f"{run.path} is not empty; continue it with --resume {run.path} or choose another --run-dir"
                )
            return run
        attempt = 1
        while True:
            run = cls(Path(root) / (default_name if attempt == 1 else f"{default_name}-{attempt}"))
            try:
                run.path.mkdir(parents=True, exist_ok=False)
                return run
            except FileExistsError:
                attempt += 1
            except OSError as error:
                remedy = "choose a --run-dir that is writable"
                raise InputError(f"cannot make {run.path}: {error.strerror}; {remedy}") from None

    @property
    def config(self) -> dict[str, Any]:
        """What ``config.json`` holds. Raises InputError: the file is missing, damaged or of another format."""
        config = read_json(self.config_path)
        if not isinstance(config, dict) or config.get("format") != FORMAT:
            remedy = "it was written by another version"
            raise InputError(f"{self.config_path} is not of format {FORMAT}; {remedy}")
        return config

    def write_config(self, config: dict[str, Any]) -> None:
        """Write ``config.json`` with the format's number."""
        write_json(self.config_path, {"format": FORMAT, **config})

    def remove_leftovers(self) -> None:
        """Delete what writes cut short by a crash have left; only for the holder of the lock."""
        for folder in (self.path, self.snapshots_dir):
            for path in folder.glob(".*.tmp"):
                path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the directory for this process alone. Raises InputError: another process holds it."""
        try:
            handle = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            remedy = "check its permissions"
            raise InputError(f"cannot write in {self.path}: {error.strerror}; {remedy}") from None
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                remedy = "wait for it or choose another run"
                raise InputError(f"another process is writing {self.path}; {remedy}") from None
            yield
        finally:
            os.close(handle)
