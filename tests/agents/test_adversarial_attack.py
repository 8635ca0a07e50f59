"""The attack inside the training step, on linear models, where the best attack is known."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from agents.algorithms.adversarial import GlobalDraws, crafting, make_ascent
from attacks.core.norms import get_norm
from envs.errors import InputError

SHAPE = (2, 3, 4)
WEIGHTS = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
MIDDLE = torch.full((5, *SHAPE), 0.5)


def rising(images):
    """An objective that is linear in the image."""
    return (images * WEIGHTS).sum()


def best(norm, eps):
    """The perturbation of length eps that raises `rising` most, away from the borders of [0, 1]."""
    if norm == "Linf":
        return eps * WEIGHTS.sign()
    if norm == "L2":
        return eps * WEIGHTS / WEIGHTS.norm()
    change = torch.zeros(WEIGHTS.numel())
    place = WEIGHTS.abs().argmax()
    change[place] = eps * WEIGHTS.flatten()[place].sign()
    return change.view(SHAPE)


@pytest.mark.parametrize(("norm", "eps"), [("Linf", 0.1), ("L2", 0.4), ("L1", 0.3)])
def test_one_step_from_the_clean_image_is_the_best_attack_on_a_linear_model(norm, eps):
    ascent = make_ascent(norm, eps, 1, eps, "clean", SHAPE)
    assert torch.allclose(ascent.climb(rising, MIDDLE), MIDDLE + best(norm, eps), atol=1e-6)


@pytest.mark.parametrize(("norm", "eps", "gap"), [("Linf", 0.1, 1e-6), ("L2", 0.4, 1e-3)])
def test_many_steps_from_a_random_start_end_at_the_best_attack(norm, eps, gap):
    ascent = make_ascent(norm, eps, 40, eps / 4, "random", SHAPE)
    assert torch.allclose(ascent.climb(rising, MIDDLE), MIDDLE + best(norm, eps), atol=gap)


def test_each_step_has_the_given_length_and_follows_the_gradient_at_the_present_point():
    ascent = make_ascent("Linf", 0.3, 2, 0.1, "clean", SHAPE)
    turn = 0.55  # pixels rise to it from below: the second gradient points back
    found = ascent.climb(lambda images: -(images - turn).square().sum(), MIDDLE)
    assert torch.allclose(found, MIDDLE, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(
    norm=st.sampled_from(["Linf", "L2", "L1"]),
    share=st.floats(0.01, 1),
    steps=st.integers(1, 4),
    start=st.sampled_from(["clean", "random", "gaussian", "gaussian-unclipped"]),
    seed=st.integers(0, 2**20),
)
def test_attacked_images_stay_in_the_ball_and_in_the_box(norm, share, steps, start, seed):
    torch.manual_seed(seed)
    images = torch.rand(4, *SHAPE).round(decimals=1)  # some pixels on the borders
    eps = share * get_norm(norm).diameter(math.prod(SHAPE))
    ascent = make_ascent(norm, eps, steps, None, start, SHAPE)
    attacked = ascent.climb(lambda batch: (batch * torch.randn(SHAPE)).sum(), images)
    assert attacked.min() >= 0
    assert attacked.max() <= 1
    assert (get_norm(norm).length(attacked - images) <= eps * (1 + 1e-4) + 1e-6).all()
    assert not attacked.requires_grad


def test_trades_begins_inside_the_box_or_where_the_published_loop_does():
    """The published loop for Linf, written out: noise, then signed steps, each followed by the ball and the box."""
    images = torch.rand(6, *SHAPE).round()  # black or white: half of the noise leads out of [0, 1]
    eps, step = 0.1, 0.04

    def bent(batch):  # all of an image's pixels follow the sign of its whole noise
        return (batch - images).sum((1, 2, 3)).square().sum()

    torch.manual_seed(3)
    expected = images + 0.001 * torch.randn_like(images)
    seen = []
    for _ in range(3):
        leaf = expected.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(bent(leaf), leaf)
        expected = (expected + step * gradient.sign()).clamp(images - eps, images + eps).clamp(0, 1)
    torch.manual_seed(3)
    official = make_ascent("Linf", eps, 3, step, "gaussian-unclipped", SHAPE)
    assert torch.equal(
        official.climb(lambda batch: seen.append(batch.detach().clone()) or bent(batch), images), expected
    )
    assert seen[0].min() < 0
    torch.manual_seed(3)
    seen.clear()
    clipped = make_ascent("Linf", eps, 3, step, "gaussian", SHAPE).climb(
        lambda batch: seen.append(batch.detach().clone()) or bent(batch), images
    )
    assert all(batch.min() >= 0 and batch.max() <= 1 for batch in seen)
    assert not torch.equal(clipped, expected)


def test_starts_come_from_the_global_generator_and_lie_where_they_should():
    images = MIDDLE.expand(5, *SHAPE)
    random = make_ascent("Linf", 0.2, 1, 1e-9, "random", SHAPE)
    first, second = (torch.manual_seed(7) and random.climb(rising, images) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, random.climb(rising, images))
    change = (random.climb(rising, torch.full((400, *SHAPE), 0.5)) - 0.5).abs()
    assert change.max() == pytest.approx(0.2, abs=1e-3)
    assert change.mean() == pytest.approx(0.1, abs=5e-3)  # uniform in +-eps
    gaussian = make_ascent("Linf", 0.2, 1, 1e-9, "gaussian", SHAPE)
    change = gaussian.climb(rising, torch.full((400, *SHAPE), 0.5)) - 0.5
    assert change.std() == pytest.approx(0.001, rel=0.1)  # TRADES


def test_draws_have_the_distributions_that_norms_ask_for():
    draws = GlobalDraws(torch.zeros(3, dtype=torch.int64))
    assert draws.fork(1, 2) is draws
    uniform, normal, signs = draws.uniform((5000,)), draws.normal((5000,)), draws.signs((5000,))
    assert uniform.shape == normal.shape == signs.shape == (3, 5000)
    assert uniform.mean() == pytest.approx(0.5, abs=0.02)
    assert normal.std() == pytest.approx(1, abs=0.03)
    assert signs.unique().tolist() == [-1, 1]
    assert signs.mean() == pytest.approx(0, abs=0.04)


def test_the_default_step_reaches_every_point_of_the_ball_and_is_never_much_longer_than_its_radius():
    assert make_ascent("Linf", 8 / 255, 10, None, "random", SHAPE).step_size == pytest.approx(2 / 255)
    assert make_ascent("Linf", 0.1, 1, None, "random", SHAPE).step_size == pytest.approx(0.125)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eps": 0.0}, "eps is 0; expected above 0 and at most 1"),
        ({"eps": 8.0}, "eps is 8; .* on the 0..255 scale, divide by 255"),
        ({"norm": "L2", "eps": 5.0}, "at most 4.89898, the L2 diameter"),
        ({"steps": 0}, "steps is 0; expected at least 1"),
        ({"step_size": -0.1}, "step_size is -0.1; expected a number above 0"),
        ({"start": "odi"}, "start is 'odi'; expected one of clean, random, gaussian"),
    ],
)
def test_a_wrong_argument_is_refused_in_one_line(options, message):
    given = {"norm": "Linf", "eps": 0.1, "steps": 2, "step_size": None, "start": "clean", "shape": SHAPE}
    with pytest.raises(InputError, match=message):
        make_ascent(**given | options)


def test_crafting_holds_the_module_still_and_restores_every_part():
    module = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(), nn.Linear(3, 2))
    module.train()
    module[1].eval()
    module[3].bias.requires_grad_(False)
    statistics = module[1].running_mean.clone()
    with torch.no_grad(), crafting(module):
        assert torch.is_grad_enabled()
        assert not any(part.training for part in module.modules())
        assert not any(parameter.requires_grad for parameter in module.parameters())
        module(torch.rand(4, 3))
    assert [part.training for part in module.modules()] == [True, True, False, True, True]
    assert [p.requires_grad for p in module.parameters()] == [True, True, True, True, True, False]
    assert torch.equal(module[1].running_mean, statistics)
    with pytest.raises(ValueError, match="inside"), crafting(module):
        raise ValueError("inside")
    assert module.training
