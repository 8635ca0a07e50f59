"""Images made on source models: momentum, input diversity, translation invariance, ensembles."""

import pytest
import torch
from torch import nn

from attacks import judge, pgd, transfer, transfer_images
from attacks.core.errors import AttackError
from attacks.core.rng import draws_for
from attacks.gradient.transfer import random_view, smooth
from tests.support.attack_models import cnn_problem, linear_problem, random_cnn


def twin(model, noise, seed=0):
    """A copy of a model with disturbed weights, which agrees with it on most images."""
    other = random_cnn()
    other.load_state_dict(model.state_dict())
    generator = torch.Generator().manual_seed(seed)
    for weight in other.parameters():
        weight.data += (
            noise * weight.data.std() * torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
        )
    return other


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_without_extras_it_is_pgd_from_the_clean_image(norm):
    model, x, y = cnn_problem()
    off = {"momentum": 0.0, "diversity": 0.0, "kernel": 1}
    images = transfer_images([model], x, y, norm=norm, eps=0.3, steps=5, **off)
    same = pgd(model, x, y, norm=norm, eps=0.3, steps=5, step_size=0.06, random_start=False, keep="last")
    torch.testing.assert_close(images, same.adversarial)


def test_momentum_by_hand():
    """Two steps: the second goes along g1 / |g1|_1 + g2 / |g2|_1."""
    model, x, y = cnn_problem(6)

    def gradient(at):
        leaf = at.clone().requires_grad_()
        (grad,) = torch.autograd.grad(nn.functional.cross_entropy(model(leaf), y, reduction="sum"), leaf)
        return grad / grad.abs().sum((1, 2, 3), keepdim=True)

    first = gradient(x)
    middle = (x + 0.01 * first.sign()).clamp(0, 1)
    gathered = 0.7 * first + gradient(middle)
    expected = x + ((middle + 0.01 * gathered.sign()).clamp(0, 1) - x).clamp(-0.02, 0.02)
    images = transfer_images([model], x, y, norm="Linf", eps=0.02, steps=2, momentum=0.7, diversity=0.0)
    torch.testing.assert_close(images, expected.clamp(0, 1))


def test_an_ensemble_climbs_its_mean_logits():
    model, x, y = cnn_problem()
    other = twin(model, 1.0)

    class Mean(nn.Module):
        def forward(self, images):
            return (model(images) + other(images)) / 2

    options = {"norm": "L2", "eps": 0.5, "steps": 4, "seed": 3}
    both = transfer_images([model, other], x, y, **options)
    torch.testing.assert_close(both, transfer_images([Mean()], x, y, **options))
    assert all(weight.requires_grad for source in (model, other) for weight in source.parameters())


def test_transfers_to_a_twin_better_than_noise():
    source, x, y = cnn_problem()
    target = twin(source, 0.05)
    y = target(x).argmax(1)
    options = {"norm": "Linf", "eps": 0.08}
    moved = transfer(target, x, y, sources=[source], **options)
    signs = draws_for(0, torch.arange(len(x))).signs((1, 8, 8))
    noise = judge(target, x, y, (x + 0.08 * signs).clamp(0, 1), **options)
    assert moved.success.sum() > noise.success.sum() + 5
    assert (moved.queries == 1).all()
    assert moved.backwards.sum() == 0
    assert torch.equal(moved.success, target(moved.adversarial).argmax(1) != y)


def test_the_share_of_odd_gradients_is_that_of_the_sources():
    model, x, y = cnn_problem(10)
    x[3:6, :, :2] = 0
    options = {"norm": "L2", "eps": 0.3, "steps": 1, "diversity": 0.0}
    steep = nn.Sequential(Sqrt(), model)
    result = transfer(model, x, y, sources=[steep], **options)
    black = torch.arange(10).ge(3) & torch.arange(10).lt(6)
    assert torch.equal(result.trace["nonfinite_gradient"], black.double())
    assert not result.trace["not_attacked"].any()
    assert (result.adversarial[black] != x[black]).any()

    broken = transfer(model, x, y, sources=[nn.Sequential(Nowhere(), model)], **options)
    assert (broken.trace["nonfinite_gradient"] == 1).all()
    assert torch.equal(broken.trace["not_attacked"], ~broken.success)


class Sqrt(nn.Module):
    def forward(self, x):
        return x.sqrt()


class Nowhere(nn.Module):
    """The identity, whose gradient is nowhere finite."""

    def forward(self, x):
        return x + 0 * (x - x.detach()).sqrt()


def test_targeted_images_move_towards_the_class():
    model, x, y = cnn_problem()
    targets = (y + 1) % 5
    images = transfer_images([model], x, y, norm="Linf", eps=0.05, targets=targets)
    rise = (model(images).log_softmax(1) - model(x).log_softmax(1)).gather(1, targets[:, None])
    assert (rise > 0).double().mean() > 0.9


class TestDiversity:
    x = torch.rand(50, 1, 12, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def views(self, diversity, smallest=0.9):
        return random_view(draws_for(0, torch.arange(50)), self.x, diversity, smallest)

    def test_full_size_leaves_the_image_alone(self):
        torch.testing.assert_close(self.views(diversity=1.0, smallest=1.0)(self.x), self.x)
        assert self.views(diversity=0.0)(self.x) is self.x

    def test_the_share_of_changed_images_is_the_chance(self):
        changed = ((self.views(diversity=0.5)(self.x) - self.x).abs() > 1e-6).flatten(1).any(1)
        assert 15 <= changed.sum() <= 35

    def test_shrunk_images_keep_their_mass_by_area(self):
        """A white image shrunk by s covers s^2 of the ground, wherever it is moved."""
        white = torch.ones_like(self.x)
        area = self.views(diversity=1.0, smallest=0.5)(white).mean((1, 2, 3))
        assert (area > 0.2).all()
        assert (area < 1).all()
        assert area.std() > 0.1

    def test_is_differentiable_and_does_not_depend_on_the_batch(self):
        model, x, y = cnn_problem()
        options = {"norm": "Linf", "eps": 0.05, "diversity": 1.0, "smallest": 0.6, "steps": 4}
        whole = transfer_images([model], x, y, **options)
        split = transfer_images([model], x, y, batch_size=7, **options)
        torch.testing.assert_close(whole, split)
        assert not torch.equal(whole, transfer_images([model], x, y, seed=1, **options))


def test_smoothing_is_a_normalised_symmetric_blur():
    spike = torch.zeros(1, 2, 9, 9, dtype=torch.float64)
    spike[0, 1, 4, 4] = 1
    blurred = smooth(spike, 5)
    assert blurred[0, 0].abs().max() == 0
    assert blurred.sum().item() == pytest.approx(1)
    torch.testing.assert_close(blurred, blurred.flip(2))
    torch.testing.assert_close(blurred, blurred.transpose(2, 3))
    assert blurred[0, 1, 4, 4] == blurred.max()
    assert blurred[0, 1, 4, 7] == 0
    assert smooth(spike, 1) is spike


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sources": []}, "no source models"),
        ({"diversity": 1.5}, r"diversity must be within \[0, 1\], got 1.5"),
        ({"kernel": 4}, "kernel must be odd"),
        ({"momentum": -1.0}, "momentum must be within"),
        ({"smallest": 0}, "smallest must be positive"),
        ({"steps": 0}, "steps must be a whole number"),
        ({"sources": [lambda images: images.flatten(1).detach()]}, "no gradient"),
    ],
)
def test_wrong_options(options, message):
    model, x, y = linear_problem()
    with pytest.raises(AttackError, match=message):
        transfer(model, x, y, norm="L2", eps=0.1, **{"sources": [model], **options})


def test_judged_images_must_fit():
    model, x, y = linear_problem()
    with pytest.raises(AttackError, match="images must be like x"):
        judge(model, x, y, x[:3], norm="L2", eps=0.1)
    far = judge(model, x, y, 1 - x, norm="Linf", eps=0.01)
    assert far.trace["outside"].all()
    assert far.distance(x, "Linf").max() <= 0.01 + 1e-9
