"""FAB: projections against closed forms and optimality, the smallest perturbation of a linear model."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import attacks
from attacks.core import projections
from attacks.core.norms import get_norm
from tests.support.attack_models import cnn_problem, linear_problem

NORMS = pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
DUAL = {"Linf": "L1", "L2": "L2", "L1": "Linf"}
EPS = {"Linf": 0.05, "L2": 0.2, "L1": 0.5}


def planes(seed, n=20, pixels=12, reach=1.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    points = torch.rand(n, pixels, generator=generator, dtype=dtype)
    points[:, :3] = points[:, :3].round()
    w = torch.randn(n, pixels, generator=generator, dtype=dtype)
    w[:, ::5] = 0
    b = (w * points).sum(1) + reach * torch.randn(n, generator=generator, dtype=dtype)
    return points, w, b


def reachable(points, w, b):
    low = torch.where(w > 0, 0, w).sum(1)
    high = torch.where(w > 0, w, 0).sum(1)
    return (b > low) & (b < high)


@NORMS
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), reach=st.sampled_from([0.01, 0.5, 3.0]))
def test_moves_reach_the_plane_and_stay_in_the_box(norm, seed, reach):
    points, w, b = planes(seed, reach=reach)
    moved = points + projections.to_hyperplane(norm, points, w, b)
    assert (moved >= -1e-9).all()
    assert (moved <= 1 + 1e-9).all()
    on = reachable(points, w, b)
    torch.testing.assert_close((w * moved).sum(1)[on], b[on], rtol=0, atol=1e-5)
    # Where the plane is out of reach, the corner nearest to it.
    corner = torch.where((w > 0) == ((w * points).sum(1) < b)[:, None], 1.0, 0.0).double()
    off = ~on
    assert torch.equal(moved[off][w[off] != 0], corner[off][w[off] != 0])


@NORMS
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_no_shorter_move_is_found(norm, seed):
    """Any other way to the plane, here a random mixture of feasible ones, is at least as long."""
    points, w, b = planes(seed, n=8, reach=0.4)
    move = projections.to_hyperplane(norm, points, w, b)
    on = reachable(points, w, b)
    generator = torch.Generator().manual_seed(seed)
    others = torch.rand(points.shape, generator=generator, dtype=points.dtype)
    feasible = others + projections.to_hyperplane("L2", others, w, b)
    for share in (0.05, 0.3, 1.0):
        rival = (1 - share) * move + share * (feasible - points)
        assert (get_norm(norm).length(rival)[on] >= get_norm(norm).length(move)[on] - 1e-6).all()


@NORMS
@pytest.mark.parametrize("attack", [attacks.fab, attacks.fab_targeted])
def test_finds_the_smallest_perturbation_of_a_linear_model(norm, attack):
    model, x, _ = linear_problem()
    model.bias = 0.01 - model.margin(x).median().item()  # so that samples lie near the boundary
    y = model(x).argmax(1)
    expected = model.margin(x).abs().detach() / get_norm(DUAL[norm]).length(model.weight[None]).detach()
    small = expected < 0.35  # the box is no obstacle to these
    assert small.sum() > 3
    result = attack(model, x[small], y[small], norm=norm, eps=expected[small] * 1.1, early_stop=False)
    torch.testing.assert_close(result.trace["distance"], expected[small], rtol=0.02, atol=1e-6)
    assert (result.trace["distance"] >= expected[small] - 1e-9).all()
    assert result.success.all()


@NORMS
def test_leaving_does_not_change_who_is_broken(norm):
    model, x, y = cnn_problem()
    options = {"norm": norm, "eps": EPS[norm], "steps": 20, "num_targets": 4}
    leave, stay = (attacks.fab_targeted(model, x, y, early_stop=stop, **options) for stop in (True, False))
    assert torch.equal(leave.success, stay.success)
    assert 4 < leave.success.sum() < len(x)
    assert leave.queries.sum() < stay.queries.sum()
    assert (stay.trace["distance"] <= leave.trace["distance"] + 1e-9).all()


def test_a_sample_does_not_depend_on_its_neighbours():
    model, x, y = cnn_problem(18)
    options = {"norm": "L2", "eps": 0.2, "steps": 8, "num_targets": 4}
    together = attacks.fab_targeted(model, x, y, **options)
    apart = attacks.fab_targeted(model, x, y, batch_size=5, **options)
    assert torch.equal(apart.success, together.success)
    torch.testing.assert_close(apart.trace["distance"], together.trace["distance"], rtol=1e-6, atol=1e-9)


def test_distance_of_clean_errors_is_zero():
    model, x, y = cnn_problem()
    result = attacks.fab_targeted(model, x, y, norm="L2", eps=1e-6, steps=2, num_targets=1)
    wrong = model(x).argmax(1) != y
    assert torch.equal(result.success, wrong)
    assert (result.trace["distance"][wrong] == 0).all()
    assert torch.equal(result.adversarial[wrong], x[wrong])
