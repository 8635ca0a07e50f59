"""Snapshots of a run: when they are taken, that resuming repeats them, and what is refused."""

import dataclasses

import pytest
import torch

from agents import load_classifier
from agents.common.run_dir import RunDir
from agents.config import TrainConfig
from agents.training.run import resume, train
from agents.training.snapshots import snapshot_moments, snapshot_paths
from envs.errors import InputError
from tests.support.agent_runs import QUICK, error_of, short, stopping


def moments(snapshots, train_size=100, **options):
    return snapshot_moments(TrainConfig(snapshots=snapshots, **options), train_size)


def test_a_number_spaces_them_evenly_in_the_logarithm():
    assert moments("4", passes=8) == [100, 200, 400, 800]
    assert moments("3", schedule="supervised:1,reinforce:99") == [100, 1_000, 10_000]
    assert moments("1", passes=8) == [800]
    assert moments("3", total_images=50) == [50]
    assert moments(None, passes=8) == []


def test_a_list_names_passes():
    assert moments("5, 0.5,1", passes=5) == [50, 100, 500]
    assert moments("2,", passes=5) == [200]


@pytest.mark.parametrize("option", ["", ",", "a", "-1", "0", "101", "1,x", "0,1", "nan,1", "inf,1", "3,9"])
def test_what_cannot_be_kept_is_refused(option):
    with pytest.raises(InputError, match=r"--snapshots .*expected"):
        moments(option, passes=5)


def test_too_large_ones_are_refused_before_training(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("agents.training.snapshots.MAX_BYTES", 1_000)
    message = error_of(capsys, [*QUICK, "--snapshots", "2", "--run-dir", str(tmp_path / "run")])
    assert "--snapshots needs" in message
    assert "ask for fewer" in message
    assert not (tmp_path / "run").exists()


def kept(path):
    return {images: file.read_bytes() for images, file in snapshot_paths(RunDir(path)).items()}


@pytest.mark.slow
@pytest.mark.parametrize("case", ["reinforce", "schedule", "ppo", "dqn"])
def test_stopped_runs_keep_the_same_snapshots(case, tmp_path, monkeypatch):
    config = short(tmp_path / "whole", case, snapshots="0.2,0.35,0.36,0.6")
    train(config)
    whole = kept(tmp_path / "whole")
    assert 3 <= len(whole) <= 4
    path = tmp_path / "run"
    with stopping(monkeypatch, 4), pytest.raises(KeyboardInterrupt):
        train(dataclasses.replace(config, run_dir=path))
    assert len(kept(path)) < len(whole)
    path.joinpath("snapshots").mkdir(exist_ok=True)
    path.joinpath("snapshots/000000999999.safetensors").write_text("of a future that was not saved")
    resume(path, progress=False)
    assert kept(path) == whole


def test_the_last_snapshot_holds_the_last_weights(tmp_path):
    path = train(short(tmp_path / "run", "supervised", snapshots="1", eval_every=1_000)).path
    (file,) = snapshot_paths(RunDir(path)).values()
    last, selected = (
        load_classifier(file),
        load_classifier(path),
    )  # validated once, at the end: the same weights
    for name, value in last.state_dict().items():
        assert torch.equal(value, selected.state_dict()[name]), name


@pytest.mark.slow
def test_snapshots_do_not_change_the_run(tmp_path):
    for name, snapshots in (("with", "3"), ("without", None)):
        train(short(tmp_path / name, "reinforce", snapshots=snapshots))
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("with", "without")]
    assert weights[0] == weights[1]
    assert list(kept(tmp_path / "with")) == [1_000]  # less than one pass: all moments coincide
    assert not (tmp_path / "without" / "snapshots").exists()
