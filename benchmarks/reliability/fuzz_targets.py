"""The targets of the fuzzer: everything that reads untrusted files, and the command lines."""

import contextlib
import io
import json
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch

from agents.common.run_dir import RunDir
from agents.config import TrainConfig
from agents.models.classifier import new_classifier
from agents.models.classifier_files import load_classifier, save_classifier
from agents.train import run as train_command
from agents.training import run as training
from agents.training.checkpoint import load_checkpoint
from agents.training.factory import check_names
from envs import sb3_env
from envs.datasets import load_dataset
from envs.errors import InputError
from envs.files import read_json
from eval import audit
from eval.attack import command as attack
from eval.attack.parts import REQUIRED, Part, PartialStore
from eval.attack.results import read_results
from eval.mechanism import command as mechanism
from eval.report import command as report
from eval.robustness import command as robustness
from tests.envs.test_data_fuzz import VALID
from tests.support.agent_runs import short


@dataclass(frozen=True)
class Target:
    """A reader of files.

    Attributes:
        seeds: valid inputs, from which others are made.
        read: reads the file at the path (in a folder of its own); raises InputError for a bad one.
        suffix: of the file's name.
    """

    seeds: Callable[[], list[bytes]]
    read: Callable[[Path], object]
    suffix: str = ""


class CommandFailed(Exception):
    """A command line ended otherwise than with its help or one line of error."""


def _classifier(path: Path) -> None:
    classifier = load_classifier(path)
    with torch.inference_mode():
        logits = classifier(torch.rand(2, *classifier.shape))
    assert logits.shape == (2, classifier.num_classes)


@cache
def _weights() -> tuple[bytes, bytes]:
    """Return a valid weights file and a valid policy.zip."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        save_classifier(new_classifier((1, 4, 4), 3, "mlp"), path / "m.safetensors")
        with contextlib.redirect_stdout(io.StringIO()):
            training.train(short(path / "run", "ppo"))
        return (path / "m.safetensors").read_bytes(), (path / "run" / "policy.zip").read_bytes()


@cache
def _run() -> dict[str, bytes]:
    """Return the files of a finished run."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        run = training.train(short(Path(folder) / "run", "supervised", total_images=300))
        attack.main([str(run.path), "--attack", "fgsm", "--n", "6", "--device", "cpu", "--no-progress"])
        files = (path for path in run.path.rglob("*") if path.is_file())
        return {str(path.relative_to(run.path)): path.read_bytes() for path in files}


def _of_run(name: str) -> Callable[[], list[bytes]]:
    return lambda: [content for key, content in _run().items() if Path(key).match(name)]


def _config(path: Path) -> None:
    path.rename(path.parent / "config.json")
    training.read_stored(RunDir.open(path.parent), None, None)


def _checkpoint(path: Path) -> None:
    path.rename(path.parent / "checkpoint.pt")
    load_checkpoint(RunDir(path.parent))


def _resume(path: Path) -> None:
    """Resume a finished run whose checkpoint is replaced: it is put to use as far as it fits."""
    for name, content in _run().items():
        (path.parent / name).parent.mkdir(exist_ok=True)
        (path.parent / name).write_bytes(content)
    path.rename(path.parent / "checkpoint.pt")
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(KeyboardInterrupt):
        training.resume(path.parent, progress=False)


def _report(path: Path) -> None:
    """Make a report of a run whose summary is replaced."""
    for name, content in _run().items():
        (path.parent / name).parent.mkdir(exist_ok=True)
        (path.parent / name).write_bytes(content)
    path.rename(path.parent / "summary.json")
    _command(report.main)([str(path.parent), "--out", str(path.parent / "report.html")])


@cache
def _part() -> list[bytes]:
    columns = {name: torch.zeros(4, dtype=torch.int64) for name in REQUIRED}
    with tempfile.TemporaryDirectory() as folder:
        PartialStore(Path(folder)).write(Part(0, 4, columns, ("clean", "pgd"), 1.0))
        (path,) = Path(folder).glob("rows-*")
        return [path.read_bytes()]


def _parts(path: Path) -> None:
    path.rename(path.parent / "rows-00000000-00000004.safetensors")
    PartialStore(path.parent).read(4)  # damaged parts are done again: nothing is raised


def _state(path: Path) -> None:
    path.rename(path.parent / "state.pt")
    PartialStore(path.parent).read_state()


def _state_seed() -> list[bytes]:
    buffer = io.BytesIO()
    torch.save({"state": {"stage": 1, "pending": torch.arange(3), "names": ["a"]}, "seconds": 2.0}, buffer)
    return [buffer.getvalue()]


def _reward(path: Path) -> None:
    sb3_env("digits", 4, reward=read_json(path))


def _npz(path: Path) -> None:
    load_dataset(f"npz:{path}", data_root=path.parent / "root")


def _data(kind: str) -> Target:
    content, load = VALID[kind]
    return Target(lambda: [content], load, ".gz" if kind.endswith("gz") else "")


def _rewrapped(target: Target, member: str) -> Target:
    """Return the target for one member of a zip, put back with the right check sum, so that inner layers are met."""

    def seeds() -> list[bytes]:
        with zipfile.ZipFile(io.BytesIO(target.seeds()[0])) as archive:
            return [archive.read(member)]

    def read(path: Path) -> None:
        with zipfile.ZipFile(io.BytesIO(target.seeds()[0])) as old:
            members = {name: old.read(name) for name in old.namelist()} | {member: path.read_bytes()}
        with zipfile.ZipFile(path, "w") as new:
            for name, content in members.items():
                new.writestr(name, content)
        target.read(path)

    return Target(seeds, read, target.suffix)


_ZIP = Target(lambda: [_weights()[1]], _classifier, ".zip")
_NPZ = Target(lambda: [VALID["npz"][0]], _npz, ".npz")
FILES = {
    "weights (safetensors)": Target(lambda: [_weights()[0]], _classifier, ".safetensors"),
    "policy zip": _ZIP,
    "policy zip, its tensors": _rewrapped(_ZIP, "policy.pth"),
    "policy zip, its description": _rewrapped(_ZIP, "data"),
    "run configuration": Target(_of_run("config.json"), _config),
    "checkpoint": Target(_of_run("checkpoint.pt"), _checkpoint),
    "checkpoint, resumed": Target(_of_run("checkpoint.pt"), _resume),
    "run summary, reported": Target(_of_run("summary.json"), _report),
    "result file": Target(_of_run("results/*.json"), read_results, ".json"),
    "part of an attack": Target(_part, _parts),
    "state of an attack": Target(_state_seed, _state),
    "reward matrix": Target(lambda: [json.dumps(np.eye(10).tolist()).encode()], _reward, ".json"),
    "npz data set": _NPZ,
    "npz data set, its images": _rewrapped(_NPZ, "images.npy"),
    "npz data set, its labels": _rewrapped(_NPZ, "labels.npy"),
    **{f"data: {kind}": _data(kind) for kind in VALID if kind not in ("npz", "npz packed")},
}


def _command(main: Callable[[list[str]], int]) -> Callable[[list[str]], str]:
    """Return a function that runs a command line and returns its line of error, or raises CommandFailed."""

    def call(argv: list[str]) -> str:
        output, error = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(error):
            status = main(argv)
        lines = error.getvalue()
        one_line = lines.startswith("error: ") and lines.count("\n") == 1 and lines[:-1].isprintable()
        if status not in (0, 2) or (status == 2 and not one_line):
            raise CommandFailed(f"status {status}: {lines[:2000]}")
        if status == 2:
            raise InputError(lines[len("error: ") :].strip())
        return output.getvalue()

    return call


def _train(argv: list[str]) -> int:
    """Run the command line of training up to where data would be read."""

    def check(config: TrainConfig) -> None:
        config.validate()
        check_names(config)

    with patch.object(training, "train", check):
        return train_command(argv)


COMMANDS = {
    "agents.train": _command(_train),
    "attacks": _command(attack.main),
    "eval.robustness": _command(robustness.main),
    "eval.mechanism": _command(mechanism.main),
    "eval.audit": _command(audit.main),
}
