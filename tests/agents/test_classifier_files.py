import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn

from agents.models import image_network as networks
from agents.models.classifier import Classifier, new_classifier
from agents.models.classifier_files import load_classifier, save_classifier
from agents.models.classifier_spec import Spec
from agents.models.image_network import NETWORKS, ImageNetwork, image_space, register_network
from envs.errors import InputError


@pytest.mark.parametrize(
    "text", ["ReLU(3)", "ELU(nan)", "GELU(other)", "ELU(alpha=3,1)", "Softsign", "LeakyReLU(x=1)"]
)
def test_files_with_other_activations_are_refused(text):
    with pytest.raises(InputError, match="hidden is"):
        Spec.parse(
            {"version": 1, "network": "mlp", "shape": [1, 8, 8], "num_classes": 2, "hidden": [text]}, "file"
        )


@pytest.mark.slow
@pytest.mark.parametrize("network", ["small", "cnn6", "resnet18"])
@pytest.mark.parametrize("hidden", [(), (12, "Tanh", 7, "GELU")])
def test_saved_weights_come_back_bit_by_bit(network, hidden, tmp_path):
    classifier = new_classifier((1, 8, 8), 4, network, torch.tensor([0.3]), torch.tensor([0.2]), hidden)
    classifier(torch.rand(6, 1, 8, 8))  # moves BatchNorm statistics
    save_classifier(classifier, tmp_path / "model.safetensors")
    loaded = load_classifier(tmp_path / "model.safetensors")
    assert loaded.spec == classifier.spec
    assert loaded.spec.hidden == hidden
    for name, tensor in classifier.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name


def test_the_file_says_what_it_is(tmp_path):
    save_classifier(new_classifier((3, 9, 8), 5, "mlp"), tmp_path / "m.safetensors")
    with safe_open(tmp_path / "m.safetensors", "pt") as file:
        metadata = file.metadata()
        assert {"head.weight", "head.bias", "body.mean", "body.std", "body.spec"} < set(file.keys())
    assert metadata["format"] == "labelbandit-classifier-1"
    spec = {"version": 1, "network": "mlp", "shape": [3, 9, 8], "num_classes": 5, "hidden": []}
    assert json.loads(metadata["spec"]) == spec


def test_loading_draws_no_random_numbers(tmp_path):
    save_classifier(new_classifier((1, 8, 8), 10), tmp_path / "model.safetensors")
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load_classifier(tmp_path)
    assert torch.equal(torch.rand(3), expected)


class Own(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.layer = nn.Linear(shape[0] * shape[1] * shape[2], 6)
        self.register_buffer("scale", torch.tensor(float(np.sqrt(2))), persistent=False)

    def forward(self, images):
        return self.layer(images.flatten(1)).relu() * self.scale


def test_own_networks_are_named_by_the_user(tmp_path, monkeypatch):
    monkeypatch.setattr(networks, "NETWORKS", dict(NETWORKS))
    classifier = new_classifier((1, 4, 4), 3, Own)
    images = torch.rand(5, 1, 4, 4)
    save_classifier(classifier, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"never imported.*name it yourself: --network "):
        load_classifier(tmp_path)
    for network in (Own, f"{__name__}:Own"):
        assert torch.equal(load_classifier(tmp_path, network=network)(images), classifier(images))
    with pytest.raises(InputError, match=r"of another network|network 'small' expects"):
        load_classifier(tmp_path, network="small")

    register_network("own", Own)
    save_classifier(new_classifier((1, 4, 4), 3, "own"), tmp_path / "named.safetensors")
    assert load_classifier(tmp_path / "named.safetensors").network == "own"
    monkeypatch.setattr(networks, "NETWORKS", dict(NETWORKS))
    with pytest.raises(InputError, match="unknown network 'own'"):
        load_classifier(tmp_path / "named.safetensors")


def test_layers_that_cannot_be_described_are_refused(tmp_path):
    body = ImageNetwork(image_space((1, 8, 8)), "mlp")
    classifier = Classifier(body, nn.Linear(128, 3), nn.Sequential(nn.LayerNorm(128)))
    with pytest.raises(InputError, match="a LayerNorm between features and head"):
        save_classifier(classifier, tmp_path / "model.safetensors")


def test_missing_files(tmp_path):
    for path in (tmp_path, tmp_path / "nothing", tmp_path / "nothing.safetensors"):
        with pytest.raises(InputError, match="no weights at"):
            load_classifier(path)
