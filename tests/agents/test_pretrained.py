import dataclasses
from urllib.error import URLError

import pytest
import torch
import torchvision
from torch import nn

from agents.config import TrainConfig
from agents.models.architectures import load_pretrained
from agents.models.image_network import (
    NETWORKS,
)
from agents.training.factory import build_algorithm, build_env, check_names
from agents.training.resolve import resolve
from envs import ImageDataset
from envs.errors import InputError

TORCHVISION = ("resnet18", "resnet50", "densenet121")


@pytest.fixture
def published_weights(tmp_path, monkeypatch):
    """Weights of ResNet-18 where torchvision looks for what it has downloaded; every download fails."""
    torch.manual_seed(5)
    whole = torchvision.models.resnet18()
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    url = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.url
    (tmp_path / "checkpoints").mkdir()
    torch.save(whole.state_dict(), tmp_path / "checkpoints" / url.rpartition("/")[2])
    monkeypatch.setattr("torch.hub.urlopen", lambda *_, **__: (_ for _ in ()).throw(URLError("no network")))
    return whole.eval()


@pytest.mark.slow
def test_pretrained_weights_are_those_of_torchvision(published_weights):
    body = NETWORKS["resnet18"]((3, 96, 96)).eval()
    load_pretrained(body, "resnet18", (3, 96, 96))
    images = torch.rand(2, 3, 96, 96)
    published_weights.fc = nn.Identity()
    assert torch.equal(body(images), published_weights(images))


@pytest.mark.parametrize(
    ("network", "shape", "message"),
    [
        ("cnn4", (3, 96, 96), "has no weights of torchvision; use one of resnet18"),
        ("resnet18", (3, 32, 32), "such as by --image-size 224"),
        ("resnet18", (1, 96, 96), "for colour images"),
        (
            "densenet121",
            (3, 96, 96),
            r"cannot get torchvision's weights of densenet121: .*no network.*; put https",
        ),
    ],
)
def test_pretrained_weights_that_cannot_be_had(published_weights, network, shape, message):
    with pytest.raises(InputError, match=message):
        load_pretrained(NETWORKS[network](shape), network, shape)


@pytest.mark.slow
def test_training_begins_with_pretrained_weights(published_weights, monkeypatch):
    images = torch.zeros(20, 3, 96, 96, dtype=torch.uint8)
    data = ImageDataset("few", "train", images, torch.arange(20) % 2, ("a", "b"))
    config = TrainConfig(algo="supervised", network="resnet18", pretrained=True, batch_size=2)
    check_names(config)
    settings = resolve(config, data)
    body = build_algorithm(settings, build_env(settings, data), data).policy.features_extractor.network
    assert torch.equal(body.layer4[1].conv2.weight, published_weights.layer4[1].conv2.weight)
    for wrong in ({"network": "cnn6"}, {"algo": "dqn"}):
        with pytest.raises(InputError, match="--pretrained is not offered for"):
            check_names(dataclasses.replace(config, **wrong))
