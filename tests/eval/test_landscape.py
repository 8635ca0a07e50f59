"""Loss landscapes of models whose values are known in closed form."""

import math

import pytest
import torch
from torch import nn

from eval.mechanism.gradients import cosines
from eval.mechanism.landscape import landscape, plane
from tests.support.quadratic import Quadratic, quadratic_problem


@pytest.fixture
def problem():
    return quadratic_problem()


@pytest.mark.parametrize("norm", ["L2", "Linf"])
def test_plane_axes_are_orthogonal_and_of_unit_length(norm):
    generator = torch.Generator().manual_seed(3)
    x = torch.rand(4, 3, 5, 5, generator=generator)
    adversarial = x + 0.1 * torch.randn(x.shape, generator=generator)
    adversarial[3] = x[3]
    directions = plane(x, adversarial, norm, seed=0).flatten(2)
    order = 2 if norm == "L2" else math.inf
    torch.testing.assert_close(torch.linalg.vector_norm(directions, order, dim=2), torch.ones(4, 2))
    torch.testing.assert_close(cosines(directions[:, 0], directions[:, 1]), torch.zeros(4), atol=1e-6, rtol=0)
    torch.testing.assert_close(cosines(directions[:3, 0], (adversarial - x)[:3]), torch.ones(3))
    again = plane(x[2:], adversarial[2:], norm, seed=0, sample_ids=torch.tensor([2, 3])).flatten(2)
    torch.testing.assert_close(again, directions[2:])


def test_landscape_of_a_quadratic_is_its_parabola():
    model = Quadratic(torch.eye(4), torch.full((4,), 0.5), scale=2.0)
    x = torch.full((1, 1, 2, 2), 0.5)
    adversarial = x + torch.tensor([0.1, 0, 0, 0]).view(1, 1, 2, 2)
    y = torch.zeros(1, dtype=torch.int64)
    found = landscape(model, x, y, adversarial, eps=0.2, resolution=7, batch_size=10)
    line = torch.linspace(-0.6, 0.6, 7)
    torch.testing.assert_close(found.coordinates, line)
    value = line[:, None] ** 2 + line[None, :] ** 2  # both axes have length 1: q = a^2 + b^2
    torch.testing.assert_close(found.margin, value, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found.cross_entropy, torch.log1p(value.exp()), atol=1e-6, rtol=1e-5)
    assert (found.label, found.images) == (0, 1)
    torch.testing.assert_close(found.correct, (found.predicted == 0).float())


def test_landscape_rows_are_the_random_axis_and_columns_the_adversarial_one():
    class Linear(nn.Module):
        def forward(self, x):
            value = x.flatten(1)[:, 0]
            return torch.stack([torch.zeros_like(value), value], dim=1)

    x = torch.full((1, 1, 2, 2), 0.5)
    adversarial = x + torch.tensor([0.1, 0, 0, 0]).view(1, 1, 2, 2)
    found = landscape(Linear(), x, torch.zeros(1, dtype=torch.int64), adversarial, eps=0.1, resolution=5)
    torch.testing.assert_close(found.margin, (0.5 + found.coordinates).expand(5, 5))


def test_points_without_an_answer_are_masked_and_clipping_keeps_points_in_the_box():
    class Log(nn.Module):
        def forward(self, x):
            value = x.flatten(1)[:, 0].log()  # NaN below 0
            return torch.stack([torch.zeros_like(value), value], dim=1)

    x = torch.full((2, 1, 2, 2), 0.1)
    adversarial = x + torch.tensor([0.1, 0, 0, 0]).view(1, 1, 2, 2)
    x[1, 0, 0, 0] = 0.9
    adversarial[1, 0, 0, 0] = 1.0
    y = torch.zeros(2, dtype=torch.int64)
    one = landscape(Log(), x[:1], y[:1], adversarial[:1], eps=0.1, resolution=7)
    outside = (0.1 + one.coordinates < 0).expand(7, 7)
    assert torch.equal(one.cross_entropy.isnan(), outside)
    assert torch.equal(one.predicted == -1, outside)
    assert not one.correct[outside].any()
    assert one.answered == pytest.approx(float((~outside).float().mean()))
    assert one.reach == pytest.approx(0.1)
    known = (0.1 + one.coordinates[3:]).log()
    assert one.figures()["margin"] == pytest.approx(
        {"min": float(known[0]), "max": float(known[-1])}, rel=1e-5
    )
    both = landscape(Log(), x, y, adversarial, eps=0.1, resolution=7)
    torch.testing.assert_close(
        both.margin[0, 0], (0.9 + both.coordinates[0]).log()
    )  # of the second image alone
    clipped = landscape(Log(), x[:1], y[:1], adversarial[:1], eps=0.1, resolution=7, clip=True)
    torch.testing.assert_close(
        clipped.predicted[0], (0.1 + one.coordinates > 1).long()
    )  # log 0 is an answer, too
    torch.testing.assert_close(clipped.margin[0, 3:], known)


def test_average_landscape_is_the_mean_of_the_single_ones(problem):
    model, _, x, y = problem
    adversarial = x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(5))
    average = landscape(model, x, y, adversarial, eps=0.1, resolution=6)
    ids = torch.arange(5)
    single = [
        landscape(
            model,
            x[i : i + 1],
            y[:1],
            adversarial[i : i + 1],
            eps=0.1,
            resolution=6,
            sample_ids=ids[i : i + 1],
        )
        for i in range(5)
    ]
    for name in ("cross_entropy", "margin", "correct"):
        torch.testing.assert_close(
            getattr(average, name), torch.stack([getattr(s, name) for s in single]).mean(0)
        )
    assert (average.predicted, average.label, average.images) == (None, None, 5)
