"""What ``--trust`` opens and what it leaves shut: the pickled parts of SB3's zips."""

import base64
import json
import os
import zipfile

import pytest
import torch
from stable_baselines3 import A2C
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env.base_vec_env import VecEnv
from torch import nn

from agents.models.extraction import load_trusted_zip
from agents.models.image_network import ImageNetwork
from envs import load_dataset, sb3_env
from envs.errors import InputError
from eval.attack import command as attack


class Flat(BaseFeaturesExtractor):
    """A features extractor that only its own code can build."""

    def __init__(self, observation_space):
        super().__init__(observation_space, 64)
        self.flatten = nn.Flatten()

    def forward(self, images):
        return self.flatten(images)


class Contrary(ActorCriticPolicy):
    """Chooses what its logits like least."""

    def _predict(self, observation, deterministic=False):
        return self.get_distribution(observation).distribution.logits.argmin(-1)


class Boom:
    """Unpickled, it makes the file ``canary`` in the working directory."""

    def __reduce__(self):
        return os.system, ("touch canary",)


def digits_env() -> VecEnv:
    return sb3_env("digits", 64)


def saved(path, policy="MlpPolicy", **options):
    model = A2C(policy, digits_env(), n_steps=1, device="cpu", seed=0, policy_kwargs=options)
    model.learn(640)
    model.save(path)
    return model


def plant(path, name="canary"):
    """Add a pickle that executes something to what the zip says of the model."""
    import cloudpickle

    with zipfile.ZipFile(path) as archive:
        members = {member: archive.read(member) for member in archive.namelist()}
    data = json.loads(members["data"])
    bomb = base64.b64encode(cloudpickle.dumps(Boom())).decode()
    members["data"] = json.dumps(data | {name: {":type:": "x", ":serialized:": bomb}}).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in members.items():
            archive.writestr(member, content)


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def call(*argv):
        capsys.readouterr()
        options = ["--dataset", "digits", "--attack", "fgsm", "--n", "20", "--device", "cpu", "--no-progress"]
        status = attack.main([*argv, *options])
        return status, capsys.readouterr().err

    return call


def test_code_in_a_zip_runs_for_trust_alone(run, tmp_path):
    model = saved(tmp_path / "own.zip", features_extractor_class=Flat)
    plant(tmp_path / "own.zip")
    status, error = run("own.zip")
    assert status == 2
    assert "neither ImageNetwork nor NatureCNN" in error
    assert error.endswith("or allow the code in it by --trust\n")
    assert error.count("\n") == 1
    assert not (tmp_path / "canary").exists()
    status, error = run("own.zip", "--trust")
    assert status == 0
    assert error.startswith("warning: own.zip: its features extractor is neither")
    assert "--trust: executing the code in own.zip" in error
    assert (tmp_path / "canary").exists()
    images = load_dataset("digits", "test").images[:50]
    expected = torch.as_tensor(model.predict(images.numpy(), deterministic=True)[0])
    found = load_trusted_zip(tmp_path / "own.zip")(images.float() / 255).argmax(1)
    assert torch.equal(found, expected)


def test_trust_executes_nothing_where_nothing_needs_it(run, tmp_path):
    options = {"features_extractor_class": ImageNetwork, "features_extractor_kwargs": {"network": "mlp"}}
    saved(tmp_path / "ours.zip", **options)
    plant(tmp_path / "ours.zip")
    for trust in ([], ["--trust"]):
        status, error = run("ours.zip", *trust)
        assert (status, error) == (0, "")
    assert not (tmp_path / "canary").exists()


def test_trusted_files_may_still_be_broken(run, tmp_path):
    (tmp_path / "noise.zip").write_bytes(b"PK\x03\x04 noise")
    status, error = run("noise.zip", "--trust")
    assert status == 2
    assert "warning: noise.zip is no zip file" in error
    assert error.count("\n") == 2
    assert "cannot load noise.zip as Stable-Baselines3 does" in error


def test_a_policy_that_decides_otherwise_is_refused(tmp_path):
    saved(tmp_path / "contrary.zip", Contrary, features_extractor_class=Flat)
    with pytest.raises(
        InputError, match=r"contrary\.zip: a Contrary decides otherwise than its network does; name a package"
    ):
        load_trusted_zip(tmp_path / "contrary.zip")
