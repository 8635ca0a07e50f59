"""Square: its schedule, its windows, its budget, and that asking ahead changes nothing."""

import importlib

import pytest
import torch
from torch import nn

import attacks
from attacks.blackbox.square_proposals import moves_for
from attacks.core.inputs import validate_inputs
from attacks.core.norms import get_norm
from tests.support.attack_models import cnn_problem, linear_problem

NORMS = pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
EPS = {"Linf": 0.08, "L2": 0.6, "L1": 3.0}


class Counting(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model, self.images = model, 0

    def forward(self, x):
        self.images += len(x)
        return self.model(x)


def module():
    """The module, whose name in the package is that of its function."""
    return importlib.import_module("attacks.blackbox.square")


def test_windows_shrink_as_published():
    levels = module().levels(5000)
    assert [first for first, _ in levels] == [0, 11, 51, 201, 501, 1001, 2001, 4001]
    assert levels[-1] == (4001, 5000)
    assert module().levels(30) == [(0, 11), (11, 30)]


@NORMS
@pytest.mark.parametrize("side", [3, 8])
def test_proposals_are_inside_ball_and_box(norm, side):
    _, x, y = cnn_problem()
    problem = validate_inputs(x, y, norm=norm, eps=EPS[norm])
    moves = moves_for(problem)
    source = type("Source", (), {"uniform": staticmethod(uniform)})
    best = moves.first(source, torch.arange(len(x)), 0)
    for step in range(4):
        numbers = uniform(torch.arange(len(x)), (moves.draws,), step)
        best = made(moves.propose(best, side, numbers[:, None]))
        assert (get_norm(norm).length(best - x) <= EPS[norm] * (1 + 1e-6)).all()
        assert ((best >= 0) & (best <= 1)).all()


def made(proposals):
    """The first image that each search proposes."""
    rows = torch.arange(len(proposals.changes))
    return proposals.images(rows, torch.zeros_like(rows))


def uniform(rows, shape, *path):
    return torch.rand((len(rows), *shape), generator=torch.Generator().manual_seed(hash(path) % 1000))


def test_a_linf_window_is_one_colour_at_its_bound():
    x = torch.full((5, 1, 8, 8), 0.5)
    moves = moves_for(validate_inputs(x, torch.zeros(5, dtype=torch.int64), norm="Linf", eps=0.1))
    new = made(moves.propose(x, 3, torch.tensor([[[0.0, 0.5, 0.9]]]).expand(5, -1, -1)))
    window = torch.zeros(8, 8, dtype=torch.bool)
    window[0:3, 2:5] = True
    assert torch.equal(new != x, window.expand_as(x))
    torch.testing.assert_close(new[:, :, window], torch.full((5, 1, 9), 0.6))


@pytest.mark.slow
@NORMS
def test_asking_ahead_changes_nothing(norm, monkeypatch):
    model, x, y = cnn_problem(16)
    options = {"norm": norm, "eps": EPS[norm], "queries": 150}
    ahead = attacks.square(model, x, y, **options)
    monkeypatch.setattr(module(), "_AHEAD", 0)
    one_by_one = attacks.square(model, x, y, **options)
    assert torch.equal(ahead.success, one_by_one.success)
    assert torch.equal(ahead.queries, one_by_one.queries)
    assert torch.equal(ahead.trace["loss"], one_by_one.trace["loss"])
    assert 2 < ahead.success.sum() < len(x)


@pytest.mark.slow
@NORMS
def test_a_sample_does_not_depend_on_its_neighbours(norm):
    model, x, y = cnn_problem(12)
    options = {"norm": norm, "eps": EPS[norm], "queries": 60}
    together = attacks.square(model, x, y, **options)
    apart = attacks.square(model, x, y, batch_size=1, **options)
    assert torch.equal(apart.success, together.success)
    assert torch.equal(apart.queries, together.queries)


def test_the_budget_is_respected_and_proposals_that_change_nothing_are_free():
    model, x, y = linear_problem()
    x = x.float().reshape(-1, 1, 4, 4)
    result = attacks.square(model.float(), x, y, norm="Linf", eps=1e-4, queries=50)
    hard = ~result.success
    # The clean image, the first proposal and at most 50 more.
    assert (result.queries[hard] <= 52).all()
    assert (result.queries[hard] < 52).any()
    assert (result.backwards == 0).all()


def test_a_window_is_not_asked_about_twice_unless_the_best_image_changed(monkeypatch):
    model, x, y = cnn_problem(12)
    options = {"norm": "Linf", "eps": 0.06, "queries": 600}
    remembering = attacks.square(model, x, y, **options)
    monkeypatch.setattr(importlib.import_module("attacks.blackbox.square_proposals"), "_MOST_IDS", 0)
    forgetful = attacks.square(model, x, y, **options)
    assert torch.equal(remembering.adversarial, forgetful.adversarial)
    assert torch.equal(remembering.trace["loss"], forgetful.trace["loss"])
    hard = ~remembering.success
    assert hard.any()
    assert (remembering.queries[hard] < 0.8 * forgetful.queries[hard]).all()


def test_queries_are_what_the_model_was_asked_without_room_to_ask_ahead(monkeypatch):
    model, x, y = cnn_problem(10)
    monkeypatch.setattr(module(), "_AHEAD", 0)
    counting = Counting(model)
    result = attacks.square(counting, x, y, norm="Linf", eps=0.08, queries=30)
    assert counting.images == result.queries.sum() + len(x) + 1  # the verification, and the layout's trial


def test_more_queries_only_add():
    model, x, y = cnn_problem()
    few, many = (attacks.square(model, x, y, norm="L2", eps=0.6, queries=n) for n in (20, 120))
    assert (many.success | ~few.success).all()
    assert many.success.sum() > few.success.sum()


@NORMS
@pytest.mark.parametrize("shape", [(3, 14, 14), (1, 5, 9), (2, 3, 3)])
def test_any_image_size(norm, shape):
    """The published code fails where five by five tiles do not fit, such as at 14x14."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], 4)).eval()
    x = torch.rand(3, *shape, generator=torch.Generator().manual_seed(0))
    y = model(x).argmax(1)
    result = attacks.square(model, x, y, norm=norm, eps=0.1, queries=25)
    assert (get_norm(norm).length(result.adversarial - x) <= 0.1 + 1e-5).all()


@pytest.mark.parametrize("norm", ["L2", "L1"])
def test_large_images_are_on_the_border_of_the_ball(norm):
    """A running sum of 150,528 values in float32 would miss it by more than 1e-5."""
    model = nn.Sequential(nn.AvgPool2d(56), nn.Flatten(), nn.Linear(48, 3)).eval()
    x = 0.3 + 0.4 * torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    y = model(x).argmax(1)
    eps = {"L2": 2.0, "L1": 40.0}[norm]
    result = attacks.square(model, x, y, norm=norm, eps=eps, queries=3)
    length = get_norm(norm).length(result.adversarial.double() - x.double())
    torch.testing.assert_close(length, torch.full_like(length, eps), rtol=5e-6, atol=0)
