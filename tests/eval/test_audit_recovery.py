"""Masks in small: the verdict names the mechanism, and the corrected accuracy is that of the bare model."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from eval.audit import Cause, Verdict, audit
from eval.audit.settings import Budget
from eval.audit.straight_through import StraightThrough, Unsquashed, WithoutInnerSteps
from tests.support import masked_models as bed

COUNT = 20
BUDGET = Budget(
    steps=10,
    restarts=1,
    targets=2,
    square_queries=10,
    spsa_queries=34,
    label_queries=20,
    difference_steps=4,
    directions=32,
    random_points=3,
    distillation_steps=30,
    distillation_rounds=1,
    rounds=1,
    binarization_images=2,
    inner_points=29,
)


class Function(nn.Module):
    def __init__(self, model, function):
        super().__init__()
        self.model, self.function = model, function

    def forward(self, x):
        return self.function(self.model, x)


class TurnedRound(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return -grad


class NaN(TurnedRound):
    @staticmethod
    def backward(ctx, grad):
        return grad * torch.nan


class Decoy(torch.autograd.Function):
    """The backward pass of a linear function of the image."""

    @staticmethod
    def forward(ctx, x, model):
        ctx.shape = x.shape
        return model(x)

    @staticmethod
    def backward(ctx, grad):
        wrong = grad @ torch.linspace(-1, 1, 640).view(10, 64).sin()
        return wrong.view(ctx.shape), None


def clamped(model, x):
    logits = model(x)
    return (logits - logits.amax(1, keepdim=True)).clamp(min=-1) * 50


def sine(model, x):
    logits = model(x)
    return logits + 1e-3 * torch.sin(1e5 * logits)


def hooked(model, x):
    leaf = x * 1
    if leaf.requires_grad:
        leaf.register_hook(lambda grad: -grad)
    return model(leaf)


MASKS = {
    "sigmoids": (lambda model, x: (model(x) - 3).sigmoid(), Cause.PROBABILITIES),
    "softmax x30": (lambda model, x: (30 * model(x)).softmax(1), Cause.PROBABILITIES),
    "clamped": (clamped, Cause.SATURATED),
    "sine": (sine, Cause.SHATTERED),
    "turned round": (lambda model, x: model(TurnedRound.apply(x)), Cause.WRONG),
    "turned round by a hook": (hooked, Cause.WRONG),
    "decoy": (lambda model, x: Decoy.apply(x, model), Cause.WRONG),
    "NaN": (lambda model, x: model(NaN.apply(x)), Cause.NONFINITE),
    "infinite at black": (lambda model, x: model(x.sqrt() ** 2), Cause.NONFINITE),
}


@pytest.fixture(scope="module")
def base():
    return bed.base(0)


@pytest.fixture(scope="module")
def honest(base):
    x, y = bed.images(COUNT)
    return audit(base, x, y, norm=bed.NORM, eps=bed.EPS, budget=BUDGET)


@pytest.mark.slow
@pytest.mark.parametrize("name", MASKS)
def test_mechanism_is_named_and_accuracy_is_that_of_the_bare_model(name, base, honest):
    function, cause = MASKS[name]
    x, y = bed.images(COUNT)
    report = audit(Function(base, function), x, y, norm=bed.NORM, eps=bed.EPS, budget=BUDGET)
    assert (report.verdict, report.cause) == (Verdict.MASKED, cause)
    assert report.robust_accuracy == pytest.approx(honest.robust_accuracy, abs=1 / COUNT + 1e-9)
    wrong = Function(base, function)(report.adversarial).argmax(1) != y
    assert torch.equal(wrong, ~report.robust)  # the images given are those that were counted


def slope(view, x):
    leaf = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(view(leaf)[:, 1].sum(), leaf)
    return grad


def moved_away(model, x):
    """Moves the image along the gradient of what it takes it for, without a word to autograd."""
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        (grad,) = torch.autograd.grad(model(leaf).amax(1).sum(), leaf)
    return model(x + 0.3 * nn.functional.normalize(grad, dim=(1, 2, 3)))


def test_gradients_taken_inside_are_left_out_and_those_of_others_are_not(base):
    x, _ = bed.images(4)
    view = WithoutInnerSteps(Function(base, moved_away))
    torch.testing.assert_close(slope(view, x), slope(base, x))
    assert torch.equal(view(x), base(x))
    assert view.taken == 1
    assert not torch.equal(Function(base, moved_away)(x), base(x))  # the model itself is as it was


@pytest.mark.parametrize("name", ["turned round", "turned round by a hook", "NaN", "decoy"])
def test_wrong_backward_passes_are_gone_round(name, base):
    x, _ = bed.images(4)
    model = Function(base, MASKS[name][0])
    view = StraightThrough(model)
    torch.testing.assert_close(slope(view, x), slope(base, x))
    assert torch.equal(view(x.requires_grad_()), model(x))
    assert sum(view.replaced.values())
    assert not torch.equal(
        slope(model, x.detach()), slope(base, x.detach())
    )  # outside the view nothing is changed


@pytest.mark.parametrize("name", ["sigmoids", "softmax x30"])
def test_outputs_are_seen_before_they_are_squashed(name, base):
    x, _ = bed.images(8)
    view = Unsquashed(Function(base, MASKS[name][0]), 10)
    expected = base(x) - 3 if name == "sigmoids" else 30 * base(x)
    assert torch.equal(view(x), expected)
    assert list(view.replaced) == [name.partition(" ")[0].rstrip("s")]


def test_hidden_layers_are_left_alone():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Softmax(1), nn.Linear(16, 10))
    x = torch.rand(3, 1, 8, 8)
    view = Unsquashed(model, 10)
    assert torch.equal(view(x), model(x))
    assert not view.replaced


@pytest.mark.slow
def test_time_given_is_kept_and_what_was_left_out_is_named(base):
    x, y = bed.images(COUNT)
    seen = []
    report = audit(base, x, y, norm=bed.NORM, eps=bed.EPS, budget=BUDGET, minutes=1e-6, say=seen.append)
    left_out = next(line for line in report.evidence if line.check == "parts left out for want of time")
    assert left_out.alarm
    assert "gradient-free attacks" in left_out.note
    assert report.verdict is Verdict.INCONCLUSIVE
    assert "left out for want of time" in report.headline
    assert [outcome.name for outcome in report.attacks] == ["PGD, cross-entropy"]
    assert report.robust_accuracy == report.claimed_accuracy
    assert all("left" in text for text in seen[1:])
    complete = next(line for line in audit_in_time(base, x, y).evidence if line.check == left_out.check)
    assert (complete.value, complete.alarm) == (0, False)


def audit_in_time(model, x, y):
    small = replace(
        BUDGET, steps=2, distillation_steps=2, square_queries=4, label_queries=20, difference_steps=1
    )
    return audit(model, x[:4], y[:4], norm=bed.NORM, eps=bed.EPS, budget=small, minutes=60)
