import json
import math
import sys

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from agents.models import image_network as networks
from agents.models.architectures import WideResNet
from agents.models.classifier import new_classifier
from agents.models.image_network import (
    BUILT_IN,
    NETWORKS,
    ImageNetwork,
    image_space,
    register_network,
    resolve_network,
    to_fast_layout,
)
from envs.errors import InputError


def parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


def multiply_adds(module, shape):
    with FlopCounterMode(display=False) as counter:
        module.eval()(torch.zeros(1, *shape, device="meta"))
    return counter.get_total_flops() / 2


@pytest.fixture
def registry(monkeypatch):
    monkeypatch.setattr(networks, "NETWORKS", dict(NETWORKS))
    return networks.NETWORKS


@pytest.mark.slow
@pytest.mark.parametrize("network", sorted(BUILT_IN - {"nature"}))
def test_every_network_fits_every_image_size(network):
    for shape in ((1, 8, 8), (4, 11, 17), (3, 32, 32), (3, 224, 224)):
        with torch.device("meta"):
            body = ImageNetwork(image_space(shape), network)
            assert body.eval()(torch.zeros(2, *shape)).shape == (2, body.features_dim)


@pytest.mark.parametrize("network", ["small", "mlp", "cnn4", "cnn6", "resnet18", "wrn16-4", "vit"])
def test_gradients_are_finite_and_reach_every_parameter(network):
    torch.manual_seed(0)
    classifier = new_classifier((1, 8, 8), 10, network)
    F.cross_entropy(classifier(torch.rand(4, 1, 8, 8)), torch.arange(4)).backward()
    for name, parameter in classifier.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize(
    ("channels", "side", "classes"), [(3, 32, 10), (1, 28, 10), (1, 8, 10), (3, 64, 200)]
)
def test_cnn4_parameter_count(channels, side, classes):
    convolutions = sum(9 * a * b + b for a, b in ((channels, 32), (32, 64), (64, 128), (128, 128)))
    flat = 128 * (side // 8) ** 2
    expected = convolutions + (flat + 1) * 1024 + (1024 + 1) * classes
    with torch.device("meta"):
        assert parameters(new_classifier((channels, side, side), classes, "cnn4")) == expected


def test_cnn6_costs_the_published_multiply_adds():
    pairs = ((3, 264, 32), (264, 128, 32), (128, 512, 16), (512, 128, 16), (128, 128, 8), (128, 128, 8))
    expected = sum(16 * a * b * side**2 for a, b, side in pairs) + 128 * 4 * 4 * 256 + 256 * 10
    with torch.device("meta"):
        classifier = new_classifier((3, 32, 32), 10, "cnn6")
    assert multiply_adds(classifier, (3, 32, 32)) == expected
    assert round(expected / 1e9, 2) == 1.14


@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_cnn6_convolution_equals_same_padding():
    torch.manual_seed(0)
    body = NETWORKS["cnn6"]((3, 8, 8)).eval()
    images = torch.rand(2, 3, 8, 8)
    reference = nn.Conv2d(3, 264, 4, padding="same")
    reference.load_state_dict(body[1].state_dict())
    torch.testing.assert_close(body[:2](images), reference(images))


@pytest.mark.slow
def test_torchvision_stems_follow_the_image_size():
    with torch.device("meta"):
        small, large = (NETWORKS["resnet18"]((3, side, side)) for side in (32, 224))
        gray = NETWORKS["densenet121"]((1, 224, 224))
    assert small.conv1.stride == (1, 1)
    assert isinstance(small.maxpool, nn.Identity)
    assert large.conv1.stride == (2, 2)
    assert gray.features.conv0.in_channels == 1
    # The published sizes of the ImageNet models (11.69 and 25.56 million), less their heads of 1,000 classes.
    assert parameters(large) == 11_689_512 - (512 + 1) * 1000
    with torch.device("meta"):
        assert parameters(NETWORKS["resnet50"]((3, 224, 224))) == 25_557_032 - (2048 + 1) * 1000
        assert parameters(NETWORKS["densenet121"]((3, 224, 224))) == 7_978_856 - (1024 + 1) * 1000


def test_wide_resnet_has_the_published_number_of_weights():
    """2.7 million (Zagoruyko and Komodakis 2016, table 4), counted by hand: convolutions, norms, head."""
    widths = ((16, 64), (64, 128), (128, 256))
    blocks = sum(9 * a * b + 27 * b * b + a * b + 2 * (a + 3 * b) for a, b in widths)
    with torch.device("meta"):
        found = parameters(new_classifier((3, 32, 32), 10, "wrn16-4"))
        assert parameters(WideResNet(3, depth=28, widen=10)) == 36_479_194 - 6_410
    assert found == 9 * 3 * 16 + blocks + 2 * 256 + 257 * 10 == 2_748_890
    with pytest.raises(InputError, match="depth is 17; expected 6 n"):
        WideResNet(3, depth=17)


def test_vit_sees_patches_alone_and_knows_their_places():
    torch.manual_seed(0)
    body = NETWORKS["vit"]((3, 32, 32)).eval()
    images = torch.rand(2, 3, 32, 32)
    assert body.positions.shape == (1, 64, 192)
    assert parameters(body) == 192 * (48 + 1) + 64 * 192 + 6 * 444_864 + 384
    swapped = images.clone()
    swapped[..., :4, :4], swapped[..., 8:12, 4:8] = images[..., 8:12, 4:8], images[..., :4, :4]
    with torch.no_grad():
        assert not torch.allclose(body(swapped), body(images), atol=1e-4)
        body.positions.zero_()
        torch.testing.assert_close(body(swapped), body(images), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("network", ["wrn16-4", "vit"])
def test_new_networks_give_the_same_in_the_fast_layout(network):
    torch.manual_seed(0)
    classifier = new_classifier((3, 12, 12), 10, network).eval()
    images = torch.rand(4, 3, 12, 12)
    before = classifier(images)
    laid_out = images.to(memory_format=torch.channels_last)
    torch.testing.assert_close(to_fast_layout(classifier)(laid_out), before, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_small_reads_digits():
    digits = load_digits()
    images = (torch.tensor(digits.images).float() / 16).unsqueeze(1)
    labels = torch.tensor(digits.target)
    torch.manual_seed(0)
    order = torch.randperm(len(labels))
    train, test = order[:1437], order[1437:]
    classifier = to_fast_layout(new_classifier((1, 8, 8), 10))
    optimizer = torch.optim.Adam(classifier.parameters())
    for epoch in range(12):
        optimizer.param_groups[0]["lr"] = 4e-3 * (1 - epoch / 12)
        for batch in train[torch.randperm(len(train))].split(64):
            loss = F.cross_entropy(classifier(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    accuracy = (classifier.eval()(images[test]).argmax(1) == labels[test]).float().mean()
    assert accuracy >= 0.97


def test_normalisation_is_inside():
    mean, std = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.5, 0.25, 2.0])
    body = ImageNetwork(image_space((3, 2, 2)), lambda shape: nn.Flatten(), mean, std.tolist())
    images = torch.rand(5, 3, 2, 2)
    expected = torch.stack([(images[:, c] - mean[c]) / std[c] for c in range(3)], 1)
    torch.testing.assert_close(body(images), expected.flatten(1))
    assert body.features_dim == 12
    plain = ImageNetwork(image_space((3, 2, 2)), lambda shape: nn.Flatten())
    torch.testing.assert_close(plain(images), images.flatten(1))


def test_weights_describe_themselves():
    body = ImageNetwork(image_space((1, 8, 8)), "mlp", [0.3], [0.4])
    state = body.state_dict()
    assert json.loads(bytes(state["spec"].tolist())) == {"version": 1, "network": "mlp", "shape": [1, 8, 8]}
    assert state["spec"].dtype == body.half().spec.dtype == torch.uint8
    assert state["mean"].tolist() == pytest.approx([0.3])


def test_counting_features_changes_nothing():
    body = ImageNetwork(image_space((1, 8, 8)), "cnn6")
    assert all(part.training for part in body.modules())
    assert {int(value) for name, value in body.state_dict().items() if "num_batches" in name} == {0}


def test_own_network_in_a_few_lines(registry):
    @register_network("mine")
    class Mine(nn.Module):
        def __init__(self, shape):
            super().__init__()
            self.layer = nn.Linear(math.prod(shape), 5)

        def forward(self, images):
            return self.layer(images.flatten(1)).relu()

    body = ImageNetwork(image_space((1, 4, 4)), "mine")
    assert body.features_dim == 5
    assert body.network_name == "mine"
    assert ImageNetwork(image_space((1, 4, 4)), Mine).network_name == "mine"
    register_network("again", Mine)
    assert resolve_network("again") is Mine


def test_built_in_names_are_protected():
    with pytest.raises(InputError, match="'small' is built in"):
        register_network("small", lambda shape: nn.Flatten())


def test_import_paths_need_permission(registry, tmp_path, monkeypatch):
    (tmp_path / "their_net.py").write_text(
        "from torch import nn\n\ndef build(shape):\n    return nn.Flatten()\n\nnot_callable = 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match="never imported"):
        resolve_network("their_net:build")
    with pytest.raises(InputError, match="never imported"):
        ImageNetwork(image_space((1, 4, 4)), "their_net:build")
    assert "their_net" not in sys.modules
    build = resolve_network("their_net:build", allow_import=True)
    assert ImageNetwork(image_space((1, 4, 4)), "their_net:build").network_name == "their_net:build"
    assert ImageNetwork(image_space((1, 4, 4)), build).network_name == "their_net:build"
    with pytest.raises(InputError, match="expected a callable"):
        resolve_network("their_net:not_callable", allow_import=True)
    del sys.modules["their_net"]


@pytest.mark.parametrize(
    "path", ["no_such_module:x", "math:no_such_name", ":", "math:", ":sqrt", "os.nope:x", "..:x"]
)
def test_wrong_import_paths(path):
    with pytest.raises(InputError, match=r"expected package\.module:Callable"):
        resolve_network(path, allow_import=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"network": "resnet19"}, r"unknown network 'resnet19'; valid: small, .* Did you mean 'resnet18'\?"),
        ({"network": "nature"}, r"'nature' does not fit images of shape \(3, 8, 8\)"),
        ({"network": lambda shape: 3}, "built a int; expected an nn.Module"),
        ({"network": lambda shape: nn.Linear(7, 2)}, "does not fit images"),
        ({"mean": [0.5]}, r"mean \[0.5\] does not fit; expected 3 finite numbers"),
        ({"mean": [0.5, math.nan, 0.5]}, "expected 3 finite numbers"),
        ({"std": [1.0, 0.0, 1.0]}, "expected 3 positive numbers"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(InputError, match=message) as caught:
        ImageNetwork(image_space((3, 8, 8)), **arguments)
    assert "\n" not in str(caught.value)


def test_wrong_images():
    body = ImageNetwork(image_space((3, 8, 8)), "mlp")
    for images in (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.zeros(2, 3, 9, 8), torch.zeros(3, 8, 8)):
        with pytest.raises(InputError, match=r"expected floats in \[0, 1\] \(N, 3, 8, 8\)"):
            body(images)
    with pytest.raises(InputError, match="is not \\(C, H, W\\)"):
        ImageNetwork(image_space((8, 8)), "mlp")


def test_fast_layout_keeps_the_outputs():
    torch.manual_seed(0)
    classifier = new_classifier((3, 16, 16), 10, "cnn4").eval()
    images = torch.rand(4, 3, 16, 16)
    before = classifier(images)
    assert to_fast_layout(classifier) is classifier
    weights = [layer.weight for layer in classifier.modules() if isinstance(layer, nn.Conv2d)]
    assert len(weights) == 4
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)
    assert all(isinstance(weight, nn.Parameter) for weight in weights)
    torch.testing.assert_close(classifier(images), before)


class Viewing(nn.Module):
    """What many networks do: rows of features by `view`, which fails where channels lie last."""

    def __init__(self, shape):
        super().__init__()
        channels, height, width = shape
        self.features = nn.Sequential(nn.Conv2d(channels, 8, 3, padding=1), nn.Conv2d(8, 4, 3, padding=1))
        self.head = nn.Linear(4 * height * width, 16)

    def forward(self, x):
        return self.head(self.features(x).view(len(x), -1)).relu()


@pytest.mark.parametrize("channels", [1, 3])
def test_networks_that_do_not_take_the_fast_layout_keep_their_own(channels):
    classifier = new_classifier((channels, 8, 8), 10, Viewing)
    images = torch.rand(4, channels, 8, 8)
    before = classifier(images)
    strides = [layer.weight.stride() for layer in classifier.modules() if isinstance(layer, nn.Conv2d)]
    to_fast_layout(classifier)
    assert strides == [
        layer.weight.stride() for layer in classifier.modules() if isinstance(layer, nn.Conv2d)
    ]
    assert torch.equal(classifier(images.to(memory_format=torch.channels_last)), before)
    assert all(module.training for module in classifier.modules())


def test_rows_by_view_need_no_convolution_to_fail_in_the_fast_layout():
    class Rows(nn.Linear):
        def forward(self, x):
            return super().forward(x.view(len(x), -1))

    classifier = new_classifier((3, 8, 8), 10, lambda shape: Rows(math.prod(shape), 16))
    images = torch.rand(4, 3, 8, 8)
    laid_out = images.to(memory_format=torch.channels_last)
    assert torch.equal(to_fast_layout(classifier)(laid_out), classifier(images))
