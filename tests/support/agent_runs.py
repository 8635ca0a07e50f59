"""Short training runs for tests, and what must be equal when two of them are."""

import contextlib
import dataclasses
import io
import json
import math
import multiprocessing
import time
import zipfile
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer
from torch import nn

from agents.config import DQNConfig, PPOConfig, TrainConfig
from agents.train import run
from agents.training.callback import StopRequest

SHORT = {
    "network": "mlp",
    "total_images": 1_000,
    "batch_size": 50,
    "eval_every": 300,
    "attack": False,
    "progress": False,
    "threads": 1,
}
CASES = {
    "ppo": {"ppo": PPOConfig(rollout=100, epochs=2)},
    "a2c": {"algo": "a2c"},
    "dqn": {
        "algo": "dqn",
        "dqn": DQNConfig(buffer_size=400, learning_starts=100, target_update_interval=150),
    },
    "reinforce": {"algo": "reinforce", "augmentation": "paper"},
    "epg": {"algo": "epg", "label_noise": 0.2},
    "supervised": {"algo": "supervised", "lr_schedule": "cosine"},
    "episodes": {
        "episode_length": 3,
        "stop_on_error": True,
        "ppo": PPOConfig(rollout=100, epochs=1, gamma=0.9),
    },
    "schedule": {
        "schedule": "supervised:0.3,ppo:0.2,reinforce:0.2",
        "total_images": None,
        "ppo": PPOConfig(rollout=100, epochs=1),
    },
}


QUICK = ["--network", "mlp", "--total-images", "100", "--batch-size", "64", "--threads", "1"]
QUICK += ["--no-attack", "--no-progress"]


def error_of(capsys: pytest.CaptureFixture, argv: list[str]) -> str:
    """Run the command line and return its one line of error."""
    capsys.readouterr()
    status = run(argv)
    output, error = capsys.readouterr()
    assert status == 2, (output, error)
    assert output == ""
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert error.endswith("\n")
    assert "Traceback" not in error
    return error[len("error: ") : -1]


def normed(shape: tuple[int, int, int]) -> nn.Module:
    """Return a network as users bring them, by import path; with BatchNorm."""
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), 16), nn.BatchNorm1d(16), nn.ReLU())


def short(path: Path, case: str, **options) -> TrainConfig:
    """Return the configuration of a run of a second at most."""
    return dataclasses.replace(TrainConfig(run_dir=path), **(SHORT | CASES[case] | options))


@contextlib.contextmanager
def stopping(monkeypatch: pytest.MonkeyPatch, boundary: int):
    """Within, training is asked to stop, as by Ctrl-C, at the rollout of this number."""

    class Stop(StopRequest):
        asked = -1

        @property
        def requested(self):
            self.asked += 1
            return self.asked >= boundary

    with monkeypatch.context() as patch:
        patch.setattr("agents.training.run.stop_on_interrupt", lambda: contextlib.nullcontext(Stop()))
        yield


def new_process(function, *arguments) -> BaseProcess:
    """Start ``function`` in a process with training imported; a fork of this one would lack PyTorch's threads."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["agents.training.run", "tests.support.agent_runs"])
    process = context.Process(target=function, args=arguments)
    process.start()
    return process


def name_event_files_in_order(patch: pytest.MonkeyPatch) -> None:
    """TensorBoard reads files in the order of their names: second, process, number. Tests write many in a second."""
    patch.setattr(event_file_writer.os, "getpid", lambda: 1)
    patch.setattr(event_file_writer, "_global_uid", SimpleNamespace(get=time.time_ns))


def metrics(path: Path) -> list[dict]:
    """Return the lines of ``metrics.jsonl`` without what depends on the clock."""
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if not key.startswith("time/")} for line in lines]


def scalars(path: Path) -> dict[str, list[tuple[int, float]]]:
    """Return TensorBoard's curves, as it shows them, without what depends on the clock."""
    events = EventAccumulator(str(path), size_guidance={"scalars": 0}).Reload()
    tags = [tag for tag in events.Tags()["scalars"] if not tag.startswith("time/")]
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}


def summary(path: Path) -> dict:
    """Return ``summary.json`` without seconds."""
    found = json.loads((path / "summary.json").read_text())
    rows = [{key: value for key, value in row.items() if key != "seconds"} for row in found["attacks"]]
    return {key: value for key, value in found.items() if key != "seconds"} | {"attacks": rows}


def state(path: Path) -> dict:
    """Return the checkpoint without seconds and file sizes."""
    checkpoint = torch.load(path / "checkpoint.pt", weights_only=True)
    for name in ("seconds", "metrics_bytes"):
        del checkpoint["callback"][name]
    return checkpoint


def policy(path: Path) -> dict:
    """Return the weights in SB3's zip; the rest of it holds times."""
    with zipfile.ZipFile(path / "policy.zip") as archive:
        return torch.load(io.BytesIO(archive.read("policy.pth")), weights_only=True)


def same(first, second) -> bool:
    """Compare nested containers of tensors and numbers bit by bit."""
    if isinstance(first, torch.Tensor):
        return isinstance(second, torch.Tensor) and first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(same(*pair) for pair in zip(first, second, strict=True))
    return type(first) is type(second) and first == second


def assert_same_runs(found: Path, expected: Path) -> None:
    """Assert that two finished runs left the same weights, state, metrics, curves and summary."""
    assert (found / "model.safetensors").read_bytes() == (expected / "model.safetensors").read_bytes()
    assert same(policy(found), policy(expected))
    assert metrics(found) == metrics(expected)
    assert summary(found) == summary(expected)
    found_state, expected_state = state(found), state(expected)
    for part in expected_state:
        assert same(found_state[part], expected_state[part]), part
    curves, expected_curves = scalars(found), scalars(expected)
    for tag, points in expected_curves.items():
        assert curves[tag] == points, tag
    assert curves.keys() == expected_curves.keys()
    leftovers = [entry.name for entry in found.iterdir() if entry.name.endswith(".tmp")]
    assert leftovers == []
