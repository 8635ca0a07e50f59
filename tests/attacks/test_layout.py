"""How attacks pass images through a model: laid out again, in parts, and padded. Nothing of it may change a value."""

import pytest
import torch
from torch import nn

import attacks
from attacks.core import model_state as layout
from attacks.core.inputs import validate_inputs
from attacks.core.losses import get_loss
from attacks.core.model import CountedModel
from attacks.core.model_state import fast_layout, frozen


def network(channels: int = 1, **options) -> nn.Sequential:
    torch.manual_seed(0)
    stem = nn.Conv2d(channels, 10 * channels, 3, **({"padding": 1} | options))
    return nn.Sequential(
        stem,
        nn.ReLU(),
        nn.Conv2d(10 * channels, 6, 3, padding=1),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(24, 5),
    ).eval()


def problem(n: int = 7, channels: int = 1, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(n, channels, 9, 9, generator=generator, dtype=dtype)
    return x, torch.arange(n) % 5


@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize(
    "options",
    [{}, {"stride": 2}, {"dilation": 2, "padding": 2}, {"padding": 0, "bias": False}, {"padding": (1, 2)}],
)
def test_the_first_layers_own_backward_pass_is_that_of_autograd(monkeypatch, channels, options):
    monkeypatch.setattr(layout, "SMALL", 0)
    model, (x, y) = network(channels, **options).double(), problem(channels=channels, dtype=torch.float64)
    loss = get_loss("ce")
    x.requires_grad_()
    (expected,) = torch.autograd.grad(loss(model(x), y).sum(), x)
    counted = CountedModel(model, validate_inputs(x, y, norm="L2", eps=0.1))
    with frozen(model), fast_layout(model, x):
        assert "forward" in vars(model[0])
        assert "forward" not in vars(model[2])
        found = counted.gradient(x.detach(), loss, along=(y, None)).grad
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_layers_that_do_more_keep_their_own_pass():
    class Loud(nn.Conv2d):
        pass

    grouped, mirrored = nn.Conv2d(2, 40, 3, groups=2), nn.Conv2d(1, 20, 3, padding=1, padding_mode="reflect")
    same, kept = nn.Conv2d(1, 20, 3, padding="same"), nn.Conv2d(1, 20, 3)
    kept.forward = kept.forward
    layers = nn.ModuleList([grouped, mirrored, same, kept, Loud(1, 20, 3)]).requires_grad_(False)
    own = kept.forward
    with layout.laid_out(layers):
        assert [type(layer.forward).__name__ for layer in layers] == ["method"] * 5
    assert kept.forward is own


def test_all_is_undone_after_an_error():
    model = network()
    strides = [parameter.stride() for parameter in model.parameters()]
    with pytest.raises(ZeroDivisionError), frozen(model), fast_layout(model, problem()[0]):
        raise ZeroDivisionError
    assert all("forward" not in vars(layer) for layer in model)
    assert [parameter.stride() for parameter in model.parameters()] == strides


def test_weights_that_learn_keep_their_gradient():
    model, (x, y) = network(), problem()
    with fast_layout(model, x):
        nn.functional.cross_entropy(model(x), y).backward()
    assert model[0].weight.grad is not None


@pytest.mark.parametrize("most", [1, 3, 4, 7, 100])
def test_parts_and_padding_change_no_value_and_no_count(most):
    model, (x, y) = network(), problem()
    seen = []
    model.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    task = validate_inputs(x, y, norm="L2", eps=0.1)
    whole, split = CountedModel(model, task), CountedModel(model, task, max_batch=most)
    rows = torch.tensor([0, 1, 2, 3, 4, 6, 6])
    with frozen(model), fast_layout(model, x):
        expected = whole.gradient(x[rows], get_loss("margin"), rows, (y[rows], None))
        seen.clear()
        found = split.gradient(x[rows], get_loss("margin"), rows, (y[rows], None))
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-7)
    assert torch.equal(split.queries, whole.queries)
    assert torch.equal(split.backwards, torch.tensor([1, 1, 1, 1, 1, 0, 2]))
    assert seen == {1: [1] * 7, 3: [3, 3, 1], 4: [4, 4], 7: [7], 100: [8]}[most]


def test_only_attacks_that_say_how_many_pass_at_once_are_padded():
    model, (x, y) = network(), problem()
    seen = []
    model.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    assert layout.takes_channels_last(model, x)
    seen.clear()
    counted = CountedModel(model, validate_inputs(x, y, norm="L2", eps=0.1))
    with frozen(model), fast_layout(model, x):
        counted.gradient(x, get_loss("ce"), along=(y, None))
        counted.logits(x)
    assert seen == [7, 7]


class Viewing(nn.Module):
    """What many networks do: rows of features by `view`, which fails where channels lie last."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(channels, 8, 3), nn.Dropout(), nn.ReLU(), nn.Conv2d(8, 4, 3))
        self.head = nn.Linear(100, 5)

    def forward(self, x):
        return self.head(self.features(x).view(len(x), -1))


@pytest.mark.slow
@pytest.mark.parametrize(
    "attack",
    [
        lambda *args, **options: attacks.pgd(*args, steps=3, step_size=0.1, **options),
        lambda *args, **options: attacks.apgd(*args, steps=5, **options),
        lambda *args, **options: attacks.fab(*args, steps=3, **options),
        lambda *args, **options: attacks.square(*args, queries=20, **options),
        lambda *args, **options: attacks.autoattack(*args, version="fast", **options),
    ],
)
def test_networks_that_take_no_new_layout_are_attacked_in_their_own(attack):
    torch.manual_seed(0)
    model, (x, y) = Viewing().eval(), problem(12, channels=3)
    with pytest.raises(RuntimeError, match="view"), layout.laid_out(model):
        model(x)
    strides = [parameter.stride() for parameter in model.parameters()]
    assert attack(model, x, y, norm="L2", eps=0.5).success.sum() > 0
    assert not layout.takes_channels_last(model, x)
    assert [parameter.stride() for parameter in model.parameters()] == strides


def test_the_trial_leaves_modes_and_random_numbers_alone():
    model, (x, _) = network(), problem()
    model.insert(1, nn.BatchNorm2d(10))
    model.insert(2, nn.Dropout())
    model.train()
    model[0].eval()
    before = [module.training for module in model.modules()], model[1].running_mean.clone()
    torch.manual_seed(3)
    assert layout.takes_channels_last(model, x)
    drawn = torch.rand(3)
    torch.manual_seed(3)
    assert torch.equal(torch.rand(3), drawn)
    assert [module.training for module in model.modules()] == before[0]
    assert torch.equal(model[1].running_mean, before[1])


def test_the_final_verdict_uses_the_weights_as_they_are():
    model, (x, y) = network(), problem()
    seen = []
    model[2].register_forward_pre_hook(lambda layer, _: seen.append(layer.weight.is_contiguous()))
    counted = CountedModel(model, validate_inputs(x, y, norm="L2", eps=0.1), max_batch=4)
    expected = model(x)
    assert layout.takes_channels_last(model, x)
    seen.clear()
    torch.testing.assert_close(counted.verdict(x), expected)
    assert seen == [True]
