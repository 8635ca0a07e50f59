"""APGD: closed forms, its schedule, independence of the batch, and successive halving over targets."""

import pytest
import torch

import attacks
from attacks.autoattack.successive_halving import Round, run_successive_halving
from attacks.core.errors import AttackError
from attacks.core.inputs import validate_inputs
from attacks.core.model_state import frozen
from attacks.core.norms import get_norm
from attacks.gradient.apgd_steps import radii_schedule, steps_for
from tests.support.attack_models import SHAPE, cnn_problem, linear_problem

NORMS = pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
EPS = {"Linf": 0.05, "L2": 0.2, "L1": 0.5}
DUAL = {"Linf": "L1", "L2": "L2", "L1": "Linf"}


def signed_margin(model, x, y):
    return model.margin(x) * (2 * y - 1)


@NORMS
def test_breaks_a_linear_model_exactly_where_it_can_be_broken(norm):
    model, x, _ = linear_problem()
    model.bias = 0.01 - model.margin(x).median().item()  # so that samples lie near the boundary
    y = model(x).argmax(1)
    smallest = signed_margin(model, x, y).detach() / get_norm(DUAL[norm]).length(model.weight[None]).detach()
    small = smallest < 0.35  # the box is no obstacle to these
    assert small.sum() > 3
    # The published steps of L1 spend a little on other pixels than the steepest.
    slack = 1.1 if norm == "L1" else 1.02
    enough = attacks.apgd(model, x[small], y[small], norm=norm, eps=smallest[small] * slack)
    too_little = attacks.apgd(model, x[small], y[small], norm=norm, eps=smallest[small] * 0.999)
    assert enough.success.all()
    assert not too_little.success.any()


def test_survivors_end_at_their_highest_loss():
    model, x, y = linear_problem()
    result = attacks.apgd(model, x, y, norm="Linf", eps=0.001, loss="margin")
    loss = -signed_margin(model, result.adversarial, y)
    expected = 0.001 * model.weight.abs().sum() - signed_margin(model, x, y)
    left = ~result.success
    torch.testing.assert_close(loss[left], expected[left].detach(), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(result.trace["loss"][left], loss[left].detach())


def test_checkpoints_are_the_published_ones():
    _model, x, y = linear_problem(2)
    steps = steps_for(validate_inputs(x, y, norm="Linf", eps=0.1), torch.arange(2))
    steps.begin(x, torch.zeros(2), 100)
    at, checkpoints = 0, []
    while at + steps.window < 100:
        at += steps.window
        checkpoints.append(at)
        steps.judge(x, torch.zeros(2))
    assert checkpoints == [22, 41, 57, 70, 80, 87, 93, 99]


def test_a_step_is_halved_when_the_loss_rises_too_rarely():
    _model, x, y = linear_problem(3)
    steps = steps_for(validate_inputs(x, y, norm="Linf", eps=0.1), torch.arange(3))
    steps.begin(x, torch.full((3,), -1.0), 100)
    # Rises in all of the 22 steps, in 16 of them (more than .75 of 22 would be 17), and in none.
    for index in range(1, 23):
        steps.observe([torch.tensor([float(index), float(min(index, 16)), -float(index)])])
    assert steps.judge(x, torch.tensor([22.0, 16.0, -1.0])).tolist() == [False, True, True]
    assert steps.step.flatten().tolist() == pytest.approx([0.2, 0.1, 0.1])


def test_l1_goes_through_larger_radii():
    assert radii_schedule("L1", 100) == [(3.0, 30), (2.0, 30), (1.0, 40)]
    assert sum(steps for _, steps in radii_schedule("L1", 7)) == 7
    assert radii_schedule("L2", 7) == [(1.0, 7)]


@NORMS
@pytest.mark.parametrize("attack", [attacks.apgd, attacks.apgd_targeted])
def test_leaving_does_not_change_who_is_broken(norm, attack):
    model, x, y = cnn_problem()
    options = {"norm": norm, "eps": EPS[norm], "steps": 20}
    leave, stay = (attack(model, x, y, early_stop=stop, **options) for stop in (True, False))
    assert torch.equal(leave.success, stay.success)
    assert 0 < leave.success.sum() < len(x)
    assert leave.queries.sum() < stay.queries.sum()
    assert torch.equal(leave.queries[~leave.success], stay.queries[~leave.success])


def test_l1_looks_into_the_ball_while_it_climbs_in_larger_ones():
    model, x, y = cnn_problem()
    result = attacks.apgd(model, x, y, norm="L1", eps=2 * EPS["L1"], steps=100)
    broken = result.success & (result.queries > 1)  # clean errors take one query
    assert (result.queries[broken] < 60).any()  # 60 steps go by in balls of 3 and 2 eps
    assert not result.trace["outside"].any()
    assert ((result.adversarial - x).flatten(1).abs().sum(1) <= 2 * EPS["L1"] * (1 + 1e-5)).all()


@pytest.mark.slow
@NORMS
def test_a_sample_does_not_depend_on_its_neighbours(norm):
    model, x, y = cnn_problem(18)
    options = {"norm": norm, "eps": EPS[norm], "steps": 10, "num_targets": 3}
    together = attacks.apgd_targeted(model, x, y, **options)
    for size in (1, 5):
        apart = attacks.apgd_targeted(model, x, y, batch_size=size, **options)
        assert torch.equal(apart.success, together.success)
        assert torch.equal(apart.queries, together.queries)
        torch.testing.assert_close(apart.adversarial, together.adversarial, rtol=0, atol=1e-6)
    some = torch.tensor([11, 3, 7])
    alone = attacks.apgd_targeted(model, x[some], y[some], sample_ids=some, **options)
    assert torch.equal(alone.success, together.success[some])


def test_restarts_and_targets_only_add():
    model, x, y = cnn_problem()
    one = attacks.apgd(model, x, y, norm="Linf", eps=0.03, steps=5)
    five = attacks.apgd(model, x, y, norm="Linf", eps=0.03, steps=5, restarts=5)
    assert (five.success | ~one.success).all()
    two = attacks.apgd_targeted(model, x, y, norm="Linf", eps=0.03, steps=5, num_targets=2)
    all_targets = attacks.apgd_targeted(model, x, y, norm="Linf", eps=0.03, steps=5)
    assert (all_targets.success | ~two.success).all()


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_scale_of_the_logits_hides_nothing_from_dlr_and_mifpe(scale):
    model, x, y = cnn_problem(scale=scale, dtype=torch.float32)
    plain, *_ = cnn_problem(dtype=torch.float32)
    for loss in ("dlr", "mifpe"):
        expected = attacks.apgd(plain, x, y, norm="Linf", eps=0.05, steps=20, loss=loss).robust_accuracy
        found = attacks.apgd(model, x, y, norm="Linf", eps=0.05, steps=20, loss=loss).robust_accuracy
        assert found == pytest.approx(expected, abs=0.051)


def test_too_few_classes_for_dlr_are_told():
    model, x, y = linear_problem()
    with pytest.raises(AttackError, match="4 classes"):
        attacks.apgd_targeted(model, x, y, norm="Linf", eps=0.1)
    assert attacks.apgd_targeted(model, x, y, norm="Linf", eps=0.3, loss="ce").success.any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps"),
        ({"restarts": 0}, "restarts"),
        ({"loss": "xe"}, "ce"),
    ],
)
def test_wrong_options_are_told(options, message):
    model, x, y = linear_problem(2)
    with pytest.raises(AttackError, match=message):
        attacks.apgd(model, x, y, norm="Linf", eps=0.1, **options)


@pytest.mark.slow
@NORMS
def test_successive_halving_breaks_what_a_long_targeted_attack_breaks(norm):
    model, x, y = cnn_problem()
    problem = validate_inputs(x, y, norm=norm, eps=EPS[norm])
    with frozen(model):
        short = run_successive_halving(model, problem, 0)
    full = attacks.apgd_targeted(model, x, y, norm=norm, eps=EPS[norm])
    assert (short.success != full.success).sum() <= 1
    assert short.queries.sum() < full.queries.sum()


def test_successive_halving_in_one_round_counts_its_steps():
    model, x, y = linear_problem(4)
    problem = validate_inputs(x, y, norm="Linf", eps=1e-4)
    with frozen(model):
        result = run_successive_halving(model, problem, 0, loss="ce", rounds=(Round(9, 7, 1.0),))
    # One target of two classes: the clean image, the start and seven steps.
    assert result.queries[~result.success].unique().tolist() == [9]
    assert x.shape[1:] == SHAPE
