"""What is damaged or hostile, and training that diverges, ends with one line and leaves the files as they were."""

import io
import json
import os
import pickle
import re
import shutil
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from agents.algorithms import losses
from agents.common.run_dir import RunDir
from agents.training.run import resume, train
from tests.support.agent_runs import QUICK, assert_same_runs, error_of, short, state, stopping


@pytest.fixture(scope="module")
def stopped_run(tmp_path_factory):
    """A run that has been stopped half-way, on data of its own."""
    folder = tmp_path_factory.mktemp("stopped")
    images = np.random.default_rng(0).integers(0, 256, (120, 8, 8), dtype=np.uint8)
    np.savez(folder / "toy.npz", images=images, labels=np.arange(120) % 3)
    with pytest.MonkeyPatch.context() as patch, stopping(patch, 8), pytest.raises(KeyboardInterrupt):
        train(short(folder / "run", "supervised", dataset=f"npz:{folder / 'toy.npz'}"))
    return folder


@dataclass
class Damage:
    """Something done to a run directory, and what is said when it is resumed."""

    do: Callable[[Path], object]
    message: str


def edit_config(*keys, value):
    def do(run):
        config = json.loads((run / "config.json").read_text())
        place = config
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value
        (run / "config.json").write_text(json.dumps(config))

    return do


def drop_config(key):
    def do(run):
        config = json.loads((run / "config.json").read_text())
        del config[key]
        (run / "config.json").write_text(json.dumps(config))

    return do


def edit_checkpoint(*keys, value):
    def do(run):
        checkpoint = torch.load(run / "checkpoint.pt", weights_only=True)
        place = checkpoint
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value
        torch.save(checkpoint, run / "checkpoint.pt")

    return do


def write(name, content):
    return lambda run: (run / name).write_bytes(content)


def cut(name, share):
    def do(run):
        content = (run / name).read_bytes()
        (run / name).write_bytes(content[: int(len(content) * share)])

    return do


def flip(run):
    """Damage a weight, as a failing disk would."""
    content = bytearray((run / "checkpoint.pt").read_bytes())
    with zipfile.ZipFile(run / "checkpoint.pt") as archive:
        largest = max(archive.infolist(), key=lambda entry: entry.file_size)
    content[largest.header_offset + largest.file_size // 2] ^= 1
    (run / "checkpoint.pt").write_bytes(content)


class Boom:
    """Unpickled, it would make a file."""

    def __reduce__(self):
        return os.mkdir, ("/tmp/labelbandit-was-executed",)


def hostile_pickle(run):
    torch.save({"format": 1, "done": Boom()}, run / "checkpoint.pt")


def hostile_zip(run):
    """A PyTorch archive whose pickle calls a function."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(run / "checkpoint.pt") as old, zipfile.ZipFile(buffer, "w") as new:
        for entry in old.infolist():
            content = (
                pickle.dumps(Boom(), protocol=2) if entry.filename.endswith("data.pkl") else old.read(entry)
            )
            new.writestr(entry.filename, content)
    (run / "checkpoint.pt").write_bytes(buffer.getvalue())


def other_data(run):
    images = np.random.default_rng(1).integers(0, 256, (120, 8, 8), dtype=np.uint8)
    np.savez(run.parent / "toy.npz", images=images, labels=np.arange(120) % 3)


ANEW = "; train the run again"
DAMAGES = {
    "config truncated": Damage(cut("config.json", 0.5), r"config\.json is not valid JSON .*; restore it"),
    "config empty": Damage(write("config.json", b""), r"config\.json is not valid JSON .*; restore it"),
    "config binary": Damage(write("config.json", b"\xff\xfe\x00"), r"config\.json is not valid JSON"),
    "config a list": Damage(
        write("config.json", b"[1]"), r"config\.json is not of format 1; .*another version"
    ),
    "config deep": Damage(write("config.json", b"[" * 100_000), r"config\.json is not valid JSON"),
    "config of the future": Damage(
        edit_config("format", value=2), r"config\.json is not of format 1; .*version"
    ),
    "config without config": Damage(drop_config("config"), r"config\.json lacks dataset or config" + ANEW),
    "config without dataset": Damage(drop_config("dataset"), r"config\.json lacks dataset or config" + ANEW),
    "config with a dataset's name": Damage(
        edit_config("dataset", value="digits"), r"config\.json lacks dataset or config" + ANEW
    ),
    "unknown field": Damage(
        edit_config("config", "sed", value=1), r"unknown field of the stored configuration 'sed'.*'seed'\?"
    ),
    "wrong type": Damage(
        edit_config("config", "batch_size", value="many"), r"has batch_size='many'; expected int \| None"
    ),
    "wrong bool": Damage(edit_config("config", "attack", value=1), r"has attack=1; expected bool"),
    "wrong choice": Damage(
        edit_config("config", "precision", value="fp8"),
        r"has precision='fp8'; expected Literal\['fp32', 'bf16'\]",
    ),
    "wrong group": Damage(edit_config("config", "ppo", value=3), r"has 3 for PPOConfig; expected an object"),
    "out of range": Damage(
        edit_config("config", "learning_rate", value=-1.0), r"--learning-rate is -1\.0; expected"
    ),
    "network by import": Damage(
        edit_config("config", "network", value="antigravity:geohash"),
        r"names the network 'antigravity:geohash', and code named by a file is not imported; .*add --network",
    ),
    "another network": Damage(
        edit_config("config", "network", value="small"), r"checkpoint\.pt does not fit config\.json .*" + ANEW
    ),
    "another algorithm": Damage(
        edit_config("config", "algo", value="dqn"), r"checkpoint\.pt does not fit config\.json .*" + ANEW
    ),
    "checkpoint truncated": Damage(cut("checkpoint.pt", 0.7), r"checkpoint\.pt is damaged .*" + ANEW),
    "checkpoint nearly whole": Damage(cut("checkpoint.pt", 0.999), r"checkpoint\.pt is damaged .*" + ANEW),
    "one byte": Damage(flip, r"checkpoint\.pt is damaged \(the check sum of .* is wrong\)" + ANEW),
    "metrics gone": Damage(lambda run: (run / "metrics.jsonl").unlink(), r"No such file.*metrics\.jsonl"),
    "checkpoint empty": Damage(write("checkpoint.pt", b""), r"checkpoint\.pt is damaged .*" + ANEW),
    "checkpoint of text": Damage(write("checkpoint.pt", b"hello"), r"checkpoint\.pt is damaged .*" + ANEW),
    "checkpoint a directory": Damage(
        lambda run: ((run / "checkpoint.pt").unlink(), (run / "checkpoint.pt").mkdir()),
        r"directory.*checkpoint\.pt.*; check the path",
    ),
    "hostile pickle": Damage(
        hostile_pickle, r"checkpoint\.pt is damaged or holds more than tensors.*" + ANEW
    ),
    "hostile archive": Damage(hostile_zip, r"checkpoint\.pt is damaged or holds more than tensors.*" + ANEW),
    "checkpoint of the future": Damage(edit_checkpoint("format", value=9), r"is not of format 1" + ANEW),
    "checkpoint without parts": Damage(
        lambda run: torch.save({"format": 1, "done": False}, run / "checkpoint.pt"),
        r"checkpoint\.pt does not fit config\.json .*" + ANEW,
    ),
    "checkpoint of a number": Damage(
        lambda run: torch.save(torch.zeros(3), run / "checkpoint.pt"), r"is not of format 1" + ANEW
    ),
    "wrong weights": Damage(
        edit_checkpoint("algorithm", "policy", value={}), r"checkpoint\.pt does not fit config\.json.*" + ANEW
    ),
    "wrong counters": Damage(
        edit_checkpoint("algorithm", "counters", value={"num_timesteps": "many"}), r"does not fit.*" + ANEW
    ),
    "wrong phase": Damage(edit_checkpoint("callback", "phase", value=7), r"of another schedule" + ANEW),
    "wrong random state": Damage(
        edit_checkpoint("random", "torch", value=torch.zeros(3)), r"does not fit.*" + ANEW
    ),
    "metrics cut": Damage(cut("metrics.jsonl", 0.3), r"metrics\.jsonl has lost lines: expected \d+ bytes"),
    "data changed": Damage(
        other_data, r"the training data of .* has changed since the run began; train a new run"
    ),
    "data gone": Damage(lambda run: (run.parent / "toy.npz").unlink(), r"toy\.npz"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_runs(name, stopped_run, tmp_path, capsys):
    folder = tmp_path / "copy"
    shutil.copytree(stopped_run, folder)
    config = (folder / "run" / "config.json").read_text().replace(str(stopped_run), str(folder))
    (folder / "run" / "config.json").write_text(config)
    DAMAGES[name].do(folder / "run")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    message = error_of(capsys, ["--resume", str(folder / "run"), "--no-progress"])
    assert re.search(DAMAGES[name].message, message), message
    assert not Path("/tmp/labelbandit-was-executed").exists()
    assert "antigravity" not in sys.modules
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_undamaged_it_resumes(stopped_run, tmp_path):
    """What the damages are measured against."""
    shutil.copytree(stopped_run / "run", tmp_path / "run")
    resume(tmp_path / "run", progress=False)
    assert (tmp_path / "run" / "summary.json").exists()


@pytest.mark.slow
def test_damaged_summaries(digits_run, tmp_path, capsys):
    run = shutil.copytree(digits_run, tmp_path / "run")
    for content in ("{", "{}", "[]", '{"dataset": 1}'):
        (run / "summary.json").write_text(content)
        assert re.search(r"summary\.json is not .*; restore it", error_of(capsys, ["--resume", str(run)]))


def test_a_locked_run_is_refused(digits_run, capsys):
    with RunDir(digits_run).lock():
        message = error_of(capsys, ["--resume", str(digits_run)])
    assert message == f"another process is writing {digits_run}; wait for it or choose another run"


@pytest.mark.parametrize("algo", ["supervised", "ppo", "reinforce", "dqn"])
def test_divergence_stops_with_the_step_and_the_cause(algo, tmp_path, capsys):
    path = tmp_path / "run"
    argv = [
        *QUICK,
        "--run-dir",
        str(path),
        "--algo",
        algo,
        "--learning-rate",
        "1e30",
        "--total-images",
        "2000",
    ]
    message = error_of(capsys, [*argv, "--ppo.rollout", "64", "--dqn.learning-starts", "64"])
    assert re.search(r"training diverged: NaN or infinity in .*(at image|after) [\d,]+", message)
    assert re.search(rf"{path}\. Lower --learning-rate, or use --precision fp32", message)
    if (path / "checkpoint.pt").exists():
        assert all(value.isfinite().all() for value in state(path)["algorithm"]["policy"].values())


@pytest.mark.slow
@pytest.mark.usefixtures("event_files_in_order")
def test_after_divergence_the_last_good_checkpoint_goes_on(tmp_path, capsys, monkeypatch):
    """The loss becomes NaN at image 550; the checkpoint of image 300 stays and trains on without the fault."""
    path, calls, cross_entropy = tmp_path / "run", [], losses.cross_entropy

    def faulty(logits, labels):
        calls.append(1)
        return cross_entropy(logits, labels) * (float("nan") if len(calls) == 11 else 1)

    config = short(path, "supervised")
    with monkeypatch.context() as patch:
        patch.setattr(losses, "cross_entropy", faulty)
        patch.setattr("agents.training.run.train", lambda _: train(config))
        message = error_of(capsys, [])
    assert re.search(r"at image 550; the checkpoint before it is kept in ", message)
    assert state(path)["algorithm"]["counters"]["num_timesteps"] == 300
    resume(path, progress=False)
    train(short(tmp_path / "whole", "supervised"))
    assert_same_runs(path, tmp_path / "whole")


def test_divergence_is_seen_when_somebody_stops_the_run(tmp_path, monkeypatch, capsys):
    """A stop writes a checkpoint at once: it must not replace a good one by NaN."""
    path = tmp_path / "run"
    nan = lambda logits, labels: logits.sum() * float("nan")  # noqa: E731
    with monkeypatch.context() as patch, stopping(monkeypatch, 1):
        patch.setattr(losses, "cross_entropy", nan)
        patch.setattr("agents.training.run.train", lambda _: train(short(path, "supervised")))
        message = error_of(capsys, [])
    assert (
        "diverged: NaN or infinity in loss, gradients or weights at image 50; nothing was saved yet"
        in message
    )
    assert not (path / "checkpoint.pt").exists()
