"""Targets by logit and by distance: closed form on linear models, passes that are counted, and who uses which."""

import pytest
import torch
from torch import nn

import attacks
from attacks.core.errors import AttackError
from attacks.core.inputs import validate_inputs
from attacks.core.model import CountedModel
from attacks.core.model_state import frozen
from attacks.gradient.target_order import by_distance, by_logit
from tests.support.attack_models import cnn_problem


class Planes(nn.Module):
    """Logits (n, 4) of images (n, 1, 1, 2): class 1 is next by logit, class 2 by distance; class 3 is never reached."""

    def forward(self, x):
        first, second = x.flatten(1).T
        zero = torch.zeros_like(first)
        return torch.stack([zero, 0.01 * first - 0.1, 4 * second - 2.4, 0.001 * first - 9], 1)


HALF = torch.full((2, 1, 1, 2), 0.5)


def counted_and_logits(model, x, y, norm):
    counted = CountedModel(model, validate_inputs(x, y, norm=norm, eps=0.2))
    return counted, counted.clean_logits()


@pytest.mark.parametrize(("norm", "dual"), [("Linf", 1), ("L2", 2), ("L1", torch.inf)])
def test_distance_is_that_of_a_linear_model(norm, dual):
    _, x, _ = cnn_problem(6, classes=7)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 7, dtype=x.dtype, bias=False))
    nn.init.normal_(model[1].weight, generator=torch.Generator().manual_seed(4))
    y = model(x).argmax(1)
    y[0] = (y[0] + 1) % 7
    with frozen(model):
        counted, clean = counted_and_logits(model, x, y, norm)
        found = by_distance(counted, clean, 3)
    own = torch.arange(len(x))
    slopes = torch.stack(
        [torch.autograd.functional.jacobian(lambda v: model(v)[0], one[None])[:, 0] for one in x]
    )
    gaps = clean[own, y, None] - clean
    distance = gaps / torch.linalg.vector_norm((slopes[own, y, None] - slopes).flatten(2), dual, dim=2)
    distance[own, y] = torch.inf
    assert torch.equal(found[1:], distance.argsort(1)[1:, :3])
    assert torch.equal(found[0], by_logit(counted, clean, 3)[0])  # a clean error


def test_the_nearest_boundary_comes_first_and_breaks_what_the_likeliest_does_not():
    y = torch.zeros(2, dtype=torch.int64)
    with frozen(Planes()):
        counted, clean = counted_and_logits(Planes(), HALF, y, "Linf")
        assert by_logit(counted, clean, 2).tolist() == [[1, 2]] * 2
        assert by_distance(counted, clean, 2).tolist() == [[2, 1]] * 2
    options = {"norm": "Linf", "eps": 0.2, "num_targets": 1, "steps": 10}
    assert attacks.multitargeted(Planes(), HALF, y, **options).success.all()
    assert not attacks.multitargeted(Planes(), HALF, y, target_order="logit", **options).success.any()
    with pytest.raises(AttackError, match="target order"):
        attacks.multitargeted(Planes(), HALF, y, target_order="random", **options)


def test_passes_are_counted_and_none_is_spent_where_all_classes_are_aimed_at():
    y = torch.zeros(2, dtype=torch.int64)
    with frozen(Planes()):
        counted, clean = counted_and_logits(Planes(), HALF, y, "L2")
        by_distance(counted, clean, 3)
        assert torch.stack([counted.queries, counted.backwards]).tolist() == [[1, 1], [0, 0]]
        by_distance(counted, clean, 1, candidates=2)
        assert torch.stack([counted.queries, counted.backwards]).tolist() == [[3, 3], [2, 2]]
