"""Whole runs on a pretended GPU: trained, stopped, continued on the other device, loaded, evaluated, exported."""

import json

import pytest
import torch

from agents.models.classifier_files import load_classifier
from agents.training.run import resume, train
from tests.support.agent_runs import CASES, metrics, short, stopping
from tests.support.pretend_cuda import PretendCuda

pytestmark = pytest.mark.slow


def weights(path):
    return torch.cat([value.flatten() for value in load_classifier(path).state_dict().values()])


def check_same_weights(found, expected):
    """A thousand images of training: rounding differs by device, decisions hardly."""
    torch.testing.assert_close(weights(found).float(), weights(expected).float(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("case", "first"),
    [*((case, "cuda") for case in CASES), ("ppo", "cpu"), ("dqn", "cpu"), ("schedule", "cpu")],
)
def test_a_run_stopped_on_one_device_ends_on_the_other(case, first, tmp_path, monkeypatch):
    whole, path = tmp_path / "whole", tmp_path / "run"
    train(short(whole, case, device="cpu"))
    with stopping(monkeypatch, 3), pytest.raises(KeyboardInterrupt):
        on(first, lambda: train(short(path, case, device="auto")))
    on("cpu" if first == "cuda" else "cuda", lambda: resume(path, progress=False))
    check_same_weights(path, whole)
    assert [line["step"] for line in metrics(path)] == [line["step"] for line in metrics(whole)]


def on(device, work):
    if device == "cpu":
        return work()
    with PretendCuda():
        return work()


def test_a_run_records_the_gpu_and_its_precision(gpu, tmp_path, monkeypatch):
    monkeypatch.setattr("agents.training.summary.ATTACKED_IMAGES", 8)
    run = train(short(tmp_path / "run", "supervised", attack=True, probe_images=20, pictures_every=600))
    assert json.loads((run.path / "config.json").read_text())["device"] == "Pretend GPU, TF32 on"  # training
    summary = json.loads((run.path / "summary.json").read_text())
    assert summary["device"] == "Pretend GPU, TF32 off"  # evaluation
    assert summary["attacks"]
