"""The audit's parts, on models whose answers are known in closed form."""

import pytest
import torch
from torch import nn

from attacks.gradient.pgd import pgd
from eval.audit.attack_checks import binarization_test, growing_radius, incomplete
from eval.audit.attacks import Surrogate
from eval.audit.model_checks import Outputs, check_gradients, check_outputs
from eval.audit.record import AttackRecord, Family
from eval.audit.settings import Budget
from eval.audit.straight_through import StraightThrough
from eval.audit.wrappers import (
    Averaged,
    BackwardThrough,
    Counted,
    Differenced,
    LabelVotes,
    LogProbabilities,
    Smoothed,
    WithCompanions,
)


class Linear(nn.Module):
    """Logits (0, w . x + b) after a function of the image."""

    def __init__(self, stage=lambda x: x):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, -2.0, 3.0, 0.5]))
        self.stage = stage

    def forward(self, x):
        score = self.stage(x).flatten(1) @ self.weight - 1.2
        return torch.stack([torch.zeros_like(score), score], dim=1)


@pytest.fixture
def x():
    return 0.1 + 0.8 * torch.rand(6, 1, 2, 2, generator=torch.Generator().manual_seed(0))


def slope(model, x):
    leaf = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(model(leaf)[:, 1].sum(), leaf)
    return grad.flatten(1)


def no_grad(x):
    with torch.no_grad():
        return x * 1


FLAT = {
    "round": lambda x: (x * 7).round() / 7,
    "torch.floor": lambda x: torch.floor(x * 7) / 7,
    "sign": lambda x: (x - 0.5).sign(),
    "detach": lambda x: x.detach(),
    "no_grad": no_grad,
    "comparison": lambda x: (x > 0.5).float(),
    "comparison, to": lambda x: torch.ge(x, 0.5).to(torch.float32),
}


@pytest.mark.parametrize("stage", FLAT.values(), ids=FLAT)
def test_straight_through_restores_the_slope_and_keeps_the_values(stage, x):
    model = Linear(stage)
    view = StraightThrough(model)
    torch.testing.assert_close(slope(view, x), model.weight.detach().expand(6, 4))
    torch.testing.assert_close(view(x.requires_grad_()), model(x))


def test_straight_through_sees_nothing_in_a_smooth_model(x):
    view = StraightThrough(Linear(torch.sigmoid))
    view(x.requires_grad_())
    assert not view.replaced


@pytest.mark.parametrize("directions", [4, 64])
@pytest.mark.parametrize("size", [4, 1000])
def test_finite_differences_are_exact_for_a_linear_model(x, directions, size, monkeypatch):
    monkeypatch.setattr("eval.audit.wrappers.default_batch_size", lambda x: size)
    model = Linear(lambda x: x.detach())
    view = Differenced(model, 0.01, directions)
    torch.testing.assert_close(slope(view, x), model.weight.detach().expand(6, 4), rtol=1e-3, atol=1e-3)
    assert torch.equal(view(x), model(x))


def test_other_views(x):
    model = Linear()
    surrogate = Linear(lambda x: 2 * x)
    torch.testing.assert_close(slope(BackwardThrough(model, surrogate), x), 2 * slope(model, x))
    torch.testing.assert_close(BackwardThrough(model, surrogate)(x.clone().requires_grad_()), model(x))
    torch.testing.assert_close(slope(Smoothed(model, 0.1, 3), x), slope(model, x))
    torch.testing.assert_close(slope(Averaged(model, 3), x), slope(model, x))
    softmax = nn.Sequential(model, nn.Softmax(1))
    gap = LogProbabilities(softmax)(x).diff(dim=1)
    torch.testing.assert_close(gap, model(x).diff(dim=1), rtol=1e-4, atol=1e-5)
    counted = Counted(model)
    counted(x)
    counted(x.clone().requires_grad_())
    assert (counted.forwards, counted.backwards) == (12, 6)


def test_label_votes_keep_the_decision_and_grade_it(x):
    model = Linear()
    votes = LabelVotes(model, 0.3, 200)(x)
    assert torch.equal(votes.argmax(1), model(x).argmax(1))
    torch.testing.assert_close(votes.sum(1), torch.full((6,), 2.001))
    # The noisy score is normal around the clean one: the votes are its distribution function.
    score = model(x)[:, 1].detach()
    share = torch.special.ndtr(score / (0.3 * model.weight.detach().norm()))
    assert (votes[:, 1] - 1.001 * (score > 0) - share).abs().max() < 0.13


def centred(x):
    return x - x.mean(0)


@pytest.mark.parametrize("together", [True, False])
def test_companions_make_an_image_independent_of_the_others(x, together):
    model = Linear(centred)
    counter = Counted(model)
    view = WithCompanions(counter, x[:3], counter)
    view.together = together
    torch.testing.assert_close(view(x)[4:], view(x[4:]))
    torch.testing.assert_close(view(x)[:1], model(torch.cat([x[:1], x[:3]]))[:1])
    assert counter.forwards == (6 + 2 + 6) * 4
    torch.testing.assert_close(slope(view, x), 0.75 * slope(Linear(), x))


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (Linear(), Outputs(False, False, False)),
        (Linear(lambda x: x + 0.1 * torch.randn_like(x)), Outputs(True, False, False)),
        (Linear(centred), Outputs(False, True, False)),
        (nn.Sequential(Linear(), nn.Softmax(1)), Outputs(False, False, True)),
        (nn.Sequential(Linear(), nn.Sigmoid()), Outputs(False, False, True, normalised=False)),
    ],
    ids=["logits", "random", "batch", "softmax", "sigmoids"],
)
def test_outputs_are_told_apart(model, expected, x):
    found, findings = check_outputs(model, x)
    assert found == expected
    alarms = [finding.alarm for finding in findings]  # the last: infinite outputs
    assert alarms == [expected.random, expected.batch_dependent, expected.probabilities, False]


@pytest.mark.parametrize(
    ("stage", "zero", "constant", "unexplained"),
    [
        (lambda x: x, 0, 0, 0),
        (lambda x: x.detach(), 1, 0, 1),
        (FLAT["round"], 1, 1, None),
        (lambda x: x.detach() + 0.0 * x, 1, 0, 1),
        (lambda x: x.detach() - x, 0, 1, None),
    ],
    ids=["linear", "detached", "rounded", "multiplied by zero", "cancelled"],
)
def test_slopes_are_told_apart(stage, zero, constant, unexplained, x):
    model, y = Linear(stage), torch.zeros(6, dtype=torch.int64)
    gradients, _ = check_gradients(model, model, x, y, "Linf", 0.1, seed=0)
    assert (gradients.zero, gradients.constant) == (zero, pytest.approx(constant, abs=0.1))
    if unexplained is not None:
        assert gradients.unexplained == pytest.approx(unexplained, abs=1e-2)


def test_saturated_logits_are_seen(x):
    model = nn.Sequential(Linear(), _Times(1e3))
    gradients, findings = check_gradients(model, model, x, model(x).argmax(1), "Linf", 0.01, seed=0)
    assert gradients.zero == 0
    assert gradients.saturated > 0.8
    assert gradients.vanished > 0.8
    assert any(finding.check.startswith("zero gradients of the ce") and finding.alarm for finding in findings)


class _Times(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return x * self.factor


def test_arena_takes_the_worst_case_per_image(x):
    model = Linear()
    y = model(x).argmax(1)
    y[0] = 1 - y[0]
    record = AttackRecord(model, x, y, "Linf", 0.3)
    assert record.broken_by == ["clean"] + [None] * 5
    rows = torch.arange(6)
    first = record.run("first", Family.GRADIENT, pgd, model, rows, steps=5)
    distance = (model(x)[:, 1].abs() / model.weight.abs().sum()).detach()
    reachable = (distance < 0.29) | (rows == 0)
    assert (first.broken >= reachable).all()
    record.add("second", Family.FREE, rows[1:3], x[1:3], torch.ones(2, dtype=torch.bool), 0.0)
    assert record.outcome("second").broken.tolist() == [True] + [False] * 5  # claims are judged, not believed
    assert record.accuracy == 1 - float(first.broken.double().mean())
    failed = record.run("third", Family.STANDARD, pgd, Linear(lambda x: x.detach()), rows)
    assert "gradient" in failed.error
    assert failed.broken.sum() == 1


def test_votes_decide_for_random_models(x):
    class Coin(nn.Module):
        def forward(self, x):
            score = (torch.rand(len(x)) < 0.8).float() - 0.5
            return torch.stack([torch.zeros_like(score), score], 1)

    torch.manual_seed(0)
    record = AttackRecord(Coin(), x, torch.ones(6, dtype=torch.int64), "Linf", 0.1, votes=101)
    assert not record.clean_wrong.any()


@pytest.mark.parametrize("votes", [1, 2, 5, 8])
def test_votes_end_when_the_majority_is_certain(votes, x):
    answers = torch.rand(votes, 6, generator=torch.Generator().manual_seed(0)) < 0.5
    asked = []

    class Script(nn.Module):
        """Answers image i at its t-th pass as written; images say by their first pixel which they are."""

        def __init__(self):
            super().__init__()
            self.turn = [0] * 6

        def forward(self, images):
            asked.append(len(images))
            rows = images.flatten(1)[:, 0].long().tolist()
            wrong = torch.stack([answers[self.turn[row] % votes, row] for row in rows])
            for row in rows:
                self.turn[row] += 1
            return torch.stack([wrong.float(), 1 - wrong.float()], 1)

    numbered = torch.arange(6.0)[:, None, None, None].expand_as(x)
    record = AttackRecord(Linear(), x, torch.ones(6, dtype=torch.int64), "Linf", 0.1, votes=votes)
    record.judge = Script()
    assert torch.equal(record.wrong(numbered, record.y), answers.sum(0) * 2 > votes)
    assert sum(asked) < 6 * votes or votes <= 2


def test_first_errors_of_random_models_are_confirmed_by_fresh_votes(x):
    class Calm(nn.Module):
        """Right on clean images; on all others wrong in two of five passes, which three votes often mistake."""

        def forward(self, images):
            wrong = (torch.rand(len(images)) < 0.4) & ~(images == x[0]).flatten(1).all(1)
            return torch.stack([wrong.float(), 1 - wrong.float()], 1)

    torch.manual_seed(0)
    clean, y = x[:1].expand(200, *x.shape[1:]), torch.ones(200, dtype=torch.int64)
    record = AttackRecord(Calm(), clean, y, "Linf", 0.1, votes=3)
    rows = torch.arange(200)
    record.add("noise", Family.FREE, rows, clean + 0.05, torch.zeros(200, dtype=torch.bool), 0.0)
    assert record.broken.sum() < 20  # 70 without them
    record.settle()
    assert not record.broken.any()
    assert torch.equal(record.points, record.x)


def test_one_radius_alone_has_no_drop(x):
    model = Linear()
    view = Differenced(model, 0.01, 4)
    record = AttackRecord(model, x, model(x).argmax(1), "Linf", 1.0)  # as large as the box is wide
    drop, unbounded = growing_radius(record, view, Budget(difference_steps=5))
    assert (drop.value, drop.alarm) == (0.0, False)
    assert "at 1" in drop.note
    assert unbounded.value == 1.0


def test_incomplete_optimisation():
    rising = torch.linspace(0, 1, 41)
    early = torch.cat([torch.linspace(0, 1, 21), torch.ones(20)])
    late = torch.cat([torch.zeros(35), torch.ones(6)])
    flat = torch.zeros(41)
    assert incomplete(torch.stack([rising, early, late, flat], 1)).tolist() == [True, False, True, False]


@pytest.fixture
def convolutional():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.SiLU(), nn.Flatten(), nn.Linear(288, 32), nn.SiLU(), nn.Linear(32, 4)
    )


@pytest.mark.slow
@pytest.mark.parametrize(("detached", "least", "most"), [(False, 1.0, 1.0), (True, 0.0, 0.0)])
def test_binarization_tells_a_fit_attack_from_an_unfit_one(convolutional, detached, least, most):
    x = torch.rand(4, 1, 8, 8)
    model = nn.Sequential(_Dead(), *convolutional) if detached else convolutional
    record = AttackRecord(model, x, model(x).argmax(1), "L2", 0.5)
    budget = Budget(binarization_images=4, inner_points=99, steps=30)
    test, finding = binarization_test(record, model, budget)
    assert test.valid == 4
    assert least <= (test.success - test.chance) / test.valid <= most or test.success / test.valid <= most
    assert finding.alarm is detached


class _Dead(nn.Module):
    def forward(self, x):
        return x.detach() + 0 * x


@pytest.mark.slow
def test_stand_in_learns_the_decisions(convolutional):
    x = torch.rand(32, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits = convolutional(x)
        surrogate = Surrogate(convolutional, AttackRecord(convolutional, x, logits.argmax(1), "L2", 0.5))
        surrogate.learn(150)
        same = (surrogate.network(x).argmax(1) == logits.argmax(1)).float().mean()
    assert same > 0.8
