"""Targets: run directories and weight files by path, with the data set their run names."""

import json

import pytest
import torch
from torch import nn

from agents.common.run_dir import RunDir
from agents.models.classifier import new_classifier
from agents.models.classifier_files import save_classifier
from envs.datasets import load_dataset
from envs.errors import InputError
from eval.core.targets import load_samples, load_target, model_sha256, samples_from


@pytest.fixture
def run_dir(tmp_path):
    run = RunDir.create(tmp_path / "digits-run", "unused")
    classifier = new_classifier((1, 8, 8), 10, "mlp")
    save_classifier(classifier, run.model_path)
    run.write_config({"algo": "ppo", "dataset": {"name": "digits", "data_root": None, "image_size": None}})
    return run


def test_a_run_knows_its_data_and_where_results_go(run_dir):
    target = load_target(str(run_dir.path))
    assert target.name == "digits-run"
    assert target.results_dir == run_dir.results_dir
    assert not target.model.training
    samples = load_samples(target, n=30)
    data = load_dataset("digits", "test")
    assert (samples.name, samples.split, samples.fingerprint) == ("digits", "test", data.fingerprint)
    assert len(samples) == 30
    images, labels = samples.batch(slice(3, 5), torch.device("cpu"))
    torch.testing.assert_close(images, data.images[samples.indices[3:5]].float() / 255)
    torch.testing.assert_close(labels, data.labels[samples.indices[3:5]])


def test_weights_alone_are_the_same_model(run_dir):
    whole, alone = load_target(str(run_dir.path)), load_target(str(run_dir.model_path))
    assert alone.sha256 == whole.sha256
    assert alone.results_dir == whole.results_dir
    assert alone.dataset == whole.dataset
    run_dir.config_path.unlink()
    assert load_target(str(run_dir.model_path)).dataset is None


def test_another_data_set_does_not_inherit_the_runs_image_size(run_dir, tmp_path):
    config = json.loads(run_dir.config_path.read_text())
    config["dataset"]["image_size"] = 16
    run_dir.config_path.write_text(json.dumps(config))
    target = load_target(str(run_dir.path))
    with pytest.raises(InputError, match="does not take 1x16x16"):
        load_samples(target)
    assert load_samples(target, image_size=8).images.shape[-1] == 8


@pytest.mark.parametrize(
    "text", ["", ".", "\0", "a" * 5000, "policy.zip", "run.safetensors", "a:b:c", "1a:b", "../x"]
)
def test_what_is_no_classifier_is_refused(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError):
        load_target(text)


def test_every_weight_and_buffer_counts_in_the_hash():
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    first = model_sha256(model)
    model[1].running_mean[0] += 1e-3
    second = model_sha256(model)
    with torch.no_grad():
        model[0].bias[0] += 1e-6
    assert len({first, second, model_sha256(model), model_sha256(model, "salt")}) == 4
    assert model_sha256(model.bfloat16()) != model_sha256(model.float())


def test_plain_tensors_become_samples():
    images, labels = torch.rand(4, 1, 2, 2), torch.arange(4)
    samples = samples_from(images, labels)
    found, _ = samples.batch(slice(0, 2), torch.device("cpu"))
    torch.testing.assert_close(found, images[:2])
    assert samples.fingerprint != samples_from(images, labels.flip(0)).fingerprint
    whole = samples_from((images * 255).byte(), labels)
    torch.testing.assert_close(
        whole.batch(slice(0, 4), torch.device("cpu"))[0], (images * 255).byte().float() / 255
    )
