"""Mechanism indicators on models whose values are known in closed form."""

import math

import pytest
import torch
from torch import nn

from eval.mechanism.entropy import entropy_bits, entropy_split
from eval.mechanism.gradients import cosines, input_gradient, lengths, units
from eval.mechanism.path_indicators import (
    DirectionRecorder,
    clamped_lengths,
    dispersion,
    drift,
    dynamic_indicators,
)
from eval.mechanism.static_indicators import static_indicators, summary
from tests.support.quadratic import Quadratic, quadratic_problem


@pytest.fixture
def problem():
    return quadratic_problem()


def test_static_indicators_of_a_quadratic(problem):
    model, matrix, x, y = problem
    eps = 0.05
    found = static_indicators(model, x, y, norm="L2", eps=eps, loss="margin", power_iterations=200, draws=4)
    grad = (x.flatten(1) - 0.3) @ matrix
    torch.testing.assert_close(found.gradient_norm, grad.norm(dim=1))
    torch.testing.assert_close(found.gradient_norm64.float(), grad.norm(dim=1))
    eigenvalues = torch.linalg.eigvalsh(matrix)
    largest = eigenvalues[eigenvalues.abs().argmax()]
    torch.testing.assert_close(found.curvature, largest.expand(5), rtol=5e-3, atol=5e-3)
    # The linear model's error is |d'Ad| / 2: at least that of the gradient step, at most that of the worst direction.
    step = eps * grad / grad.norm(dim=1, keepdim=True)
    least = (step @ matrix * step).sum(1).abs() / 2
    assert (found.nonlinearity >= least - 1e-6).all()
    assert (found.nonlinearity <= eigenvalues.abs().max() * eps**2 / 2 + 1e-6).all()
    torch.testing.assert_close(found.margin, -model(x)[:, 1])
    torch.testing.assert_close(found.logit_scale, model(x)[:, 1].abs() / 2)
    assert not found.zero.any()
    assert model.matrix.requires_grad


def test_a_linear_loss_is_stable_and_flat(problem):
    _, _, x, y = problem

    class Linear(nn.Module):
        def forward(self, x):
            return torch.stack([torch.zeros(len(x)), x.flatten(1).sum(1)], dim=1)

    found = static_indicators(Linear(), x, y, norm="Linf", eps=0.1, loss="margin")
    torch.testing.assert_close(found.stability, torch.ones(5))
    torch.testing.assert_close(found.nonlinearity, torch.zeros(5), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.curvature, torch.zeros(5), atol=1e-3, rtol=0)
    torch.testing.assert_close(found.gradient_norm, torch.full((5,), 2.0))


@pytest.mark.parametrize(("scale", "zero", "floor"), [(1.0, 0.0, 0.0), (1e-5, 0.0, 1.0), (0.0, 1.0, 1.0)])
def test_zero_and_under_floor_gradients(problem, scale, zero, floor):
    _, matrix, x, y = problem
    model = Quadratic(matrix, torch.full((4,), 0.3), scale)
    found = static_indicators(model, x, y, eps=0.1, loss="margin", batch=256)
    figures = found.figures()
    assert (figures["zero"], figures["under_floor"]) == (zero, floor)
    if zero:
        assert found.stability.isnan().all()
        assert figures["stability"] == {
            "n": 0,
            "mean": None,
            "ci95": None,
            **dict.fromkeys(("min", "q25", "median", "q75", "max")),
        }


def test_saturation_is_visible_in_float64_only():
    """Cross-entropy of a margin of 150 has gradient exp(-150): zero in float32, not in float64."""

    class Saturated(nn.Module):
        def forward(self, x):
            value = -150 * x.flatten(1).mean(1)
            return torch.stack([torch.zeros_like(value), value], dim=1)

    x, y = torch.ones(3, 1, 2, 2), torch.zeros(3, dtype=torch.int64)
    found = static_indicators(Saturated(), x, y, eps=0.1, draws=1, power_iterations=1)
    assert found.zero.all()
    torch.testing.assert_close(
        found.gradient_norm64, torch.full((3,), 75 * math.exp(-150), dtype=torch.float64)
    )


def test_gradients_do_not_mix_samples(problem):
    model, _, x, y = problem
    together = input_gradient(model, x, y, "ce").grad
    alone = torch.cat([input_gradient(model, x[i : i + 1], y[i : i + 1], "ce").grad for i in range(5)])
    torch.testing.assert_close(together, alone)


def test_lengths_units_and_cosines_survive_tiny_gradients():
    grad = torch.tensor([[3.0, 4.0], [3e-30, 4e-30], [0.0, 0.0], [3e25, 4e25]])
    torch.testing.assert_close(lengths(grad), torch.tensor([5.0, 5e-30, 0.0, 5e25]))
    torch.testing.assert_close(units(grad)[[0, 1, 3]], torch.tensor([[0.6, 0.8]] * 3))
    cosine = cosines(grad, torch.tensor([[4.0, 3.0], [-3.0, -4.0], [1.0, 0.0], [4.0, -3.0]]))
    torch.testing.assert_close(cosine, torch.tensor([0.96, -1.0, float("nan"), 0.0]), equal_nan=True)


def test_dynamic_indicators_follow_the_quadratic_exactly():
    """q = |x - c|^2 / 2 on a line from c: the gradient is x - c and PGD walks straight away from c."""
    model = Quadratic(torch.eye(4), torch.zeros(4))
    start = torch.stack([torch.full((4,), 0.1), torch.tensor([0.2, 0.0, 0.0, 0.0])]).view(2, 1, 2, 2)
    y = torch.zeros(2, dtype=torch.int64)
    found = dynamic_indicators(
        model, start, y, eps=0.25, steps=4, step_size=0.1, loss="margin", random_start=False
    )
    walked = torch.tensor([0.0, 0.1, 0.2, 0.25])[:, None]  # the last step ends on the ball
    torch.testing.assert_close(found.gradient_norm, 0.2 + walked.expand(4, 2))
    torch.testing.assert_close(found.loss, (0.2 + walked.expand(4, 2)) ** 2 / 2)
    torch.testing.assert_close(found.cosine, torch.ones(3, 2))
    torch.testing.assert_close(found.same_sign, torch.ones(3, 2))
    # Unit gradients (1/2, 1/2, 1/2, 1/2) and (1, 0, 0, 0): their sum has length sqrt(3).
    torch.testing.assert_close(found.dispersion, torch.full((4,), 1 - math.sqrt(3) / 2))
    assert found.drift == pytest.approx(0, abs=1e-6)
    assert found.correct.tolist() == [0, 0, 0, 0]


def test_an_oscillating_path_turns_back_at_every_step():
    """On -|x - c|^2 / 2 a step of twice the distance jumps over the optimum and back."""
    model = Quadratic(-torch.eye(4), torch.full((4,), 0.5))
    x = torch.full((1, 1, 2, 2), 0.55)
    found = dynamic_indicators(
        model,
        x,
        torch.zeros(1, dtype=torch.int64),
        eps=1.0,
        steps=5,
        step_size=0.2,
        loss="margin",
        random_start=False,
    )
    torch.testing.assert_close(found.cosine, -torch.ones(4, 1))
    torch.testing.assert_close(found.same_sign, torch.zeros(4, 1))
    torch.testing.assert_close(found.gradient_norm, torch.full((5, 1), 0.1))
    # Common directions alternate: of the 10 pairs, 6 are opposite and 4 equal, so the mean cosine is -1/5.
    assert found.drift == pytest.approx(1.2, abs=1e-5)


def test_dispersion_equals_its_definition():
    generator = torch.Generator().manual_seed(1)
    gradients = torch.randn(7, 12, generator=generator)
    common = units(gradients).sum(0)
    mean_cosine = cosines(gradients, common.expand(7, 12)).mean()
    torch.testing.assert_close(dispersion(common[None], torch.tensor([7.0]))[0], 1 - mean_cosine)


def test_drift_equals_the_mean_over_pairs():
    generator = torch.Generator().manual_seed(2)
    common = torch.randn(4, 6, generator=generator)
    pairs = [float(cosines(common[i][None], common[j][None])) for i in range(4) for j in range(i)]
    assert drift(common) == pytest.approx(1 - sum(pairs) / 6, abs=1e-6)
    assert drift(common[:1]) == 0.0


def authors_indicators(averaged):
    """The published formulas, on gradients (T, N, D) of a loss averaged over the batch."""
    unit = averaged / averaged.norm(dim=2, keepdim=True).clamp(min=1e-12)
    cosine = (unit[1:] * unit[:-1]).sum(2)
    mean = unit.mean(1, keepdim=True)
    mean = mean / mean.norm(dim=2, keepdim=True).clamp(min=1e-12)
    over_time = (mean[:, 0] @ mean[:, 0].T).triu(1).sum() / (len(mean) * (len(mean) - 1) / 2)
    return cosine, 1 - (unit * mean).sum(2).mean(1), float(1 - over_time)


@pytest.mark.parametrize("batches", [1, 2])
def test_clamped_directions_are_those_of_the_published_formulas(batches):
    generator = torch.Generator().manual_seed(4)
    sizes = torch.tensor([1e-14, 1e-12, 1e-11, 1e-10, 1e-9, 1.0], dtype=torch.float64)
    own = torch.randn(5, 6, 12, generator=generator, dtype=torch.float64) * sizes[:, None]
    recorder = DirectionRecorder(5, own.new_zeros(6, 1, 3, 4), averaged_over=128, dtype=torch.float64)
    for rows in torch.arange(6).chunk(batches):
        for t in range(5):
            recorder.take(t, rows, own[t, rows].view(-1, 1, 3, 4))
    found = recorder.columns()
    cosine, spread_out, over_time = authors_indicators(own / 128)
    torch.testing.assert_close(found["clamped_cosine"], cosine, rtol=1e-10, atol=1e-15)
    torch.testing.assert_close(found["clamped_dispersion"], spread_out, rtol=1e-10, atol=1e-12)
    assert found["clamped_drift"] == pytest.approx(over_time, abs=1e-12)
    true = torch.cosine_similarity(own[1:], own[:-1], dim=2, eps=1e-300)
    torch.testing.assert_close(found["cosine"], true, rtol=1e-10, atol=1e-12)
    assert found["clamped"][:, 0].all()
    assert not found["clamped"][:, -1].any()
    assert clamped_lengths(torch.tensor([64e-12, 256e-12]), 128).tolist() == pytest.approx([0.5, 1.0])


class Multiplied(nn.Module):
    """A small network whose logits are multiplied: the same decisions, a softmax that saturates."""

    def __init__(self, factor):
        super().__init__()
        self.factor, generator = factor, torch.Generator().manual_seed(1)
        self.first, self.last = nn.Linear(16, 32), nn.Linear(32, 4)
        for weights in self.parameters():
            weights.data = 0.5 * torch.randn(weights.shape, generator=generator)

    def forward(self, x):
        return self.factor * self.last(torch.tanh(self.first(x.flatten(1))))


def test_multiplied_logits_make_published_directions_look_unstable_and_change_no_true_one():
    x = torch.rand(24, 1, 4, 4, generator=torch.Generator().manual_seed(2))
    y = Multiplied(1)(x).argmax(1)
    found = {k: dynamic_indicators(Multiplied(k), x, y, eps=0.3, steps=10, double=True) for k in (1, 10, 100)}
    true, clamped, double = (
        {k: float(getattr(item, name).nanmean()) for k, item in items.items()}
        for items, name in (
            (found, "cosine"),
            (found, "clamped_cosine"),
            ({k: item.double for k, item in found.items()}, "cosine"),
        )
    )
    assert clamped[1] == pytest.approx(true[1], abs=5e-6)
    assert clamped[10] < clamped[1] - 0.05
    assert clamped[100] < 0.6
    for k in found:
        assert true[k] > 0.96
        assert double[k] == pytest.approx(true[k], abs=0.03)
        share = float(found[k].clamped.double().mean())
        assert float(found[k].double.clamped.double().mean()) == pytest.approx(share, abs=0.05)
    assert not found[1].clamped.any()
    assert found[100].clamped.double().mean() > 0.4
    assert found[100].clamped_dispersion.mean() > found[100].dispersion.mean() + 0.05
    assert found[100].clamped_drift > found[100].drift
    figures = found[100].figures()
    assert figures["float64"]["clamped_cosine"]["mean"][0] < 0.6 < figures["float64"]["cosine"]["mean"][0]


def test_the_published_path_leaves_the_box_and_keeps_to_its_floor():
    """A gradient of 1e-5 averaged over 128 images is under the floor of 1e-6: steps of .1 become .1 * 1e-5 / 128e-6."""
    model = Quadratic(torch.zeros(4, 4), torch.zeros(4))
    model.forward = lambda x: torch.stack([torch.zeros(len(x)), 1e-5 * x.flatten(1)[:, 0]], dim=1)
    x = torch.full((1, 1, 2, 2), 0.999)
    found = dynamic_indicators(
        model,
        x,
        torch.zeros(1, dtype=torch.int64),
        eps=1.0,
        steps=5,
        loss="margin",
        protocol="cleverhans",
        box=False,
        random_start=False,
    )
    moved = 0.999 + 5 * 0.1 * 1e-5 / 128e-6
    torch.testing.assert_close(found.adversarial[0, 0, 0], torch.tensor([moved, 0.999]))


@pytest.mark.slow
def test_indicators_do_not_depend_on_the_batch_size(problem):
    model, _, x, y = problem
    one = dynamic_indicators(model, x, y, norm="L2", eps=0.2, steps=3, batch_size=1)
    all_at_once = dynamic_indicators(model, x, y, norm="L2", eps=0.2, steps=3)
    for name in ("gradient_norm", "cosine", "clamped_cosine", "same_sign", "dispersion", "loss", "correct"):
        torch.testing.assert_close(getattr(one, name), getattr(all_at_once, name))
    static = [static_indicators(model, x, y, eps=0.2, batch_size=size) for size in (2, 5)]
    for name, values in vars(static[0]).items():
        torch.testing.assert_close(values, getattr(static[1], name))


def test_entropy_in_bits():
    logits = torch.tensor(
        [[0.0] * 8, [1000.0] + [0.0] * 7, [50.0, 50.0] + [-900.0] * 6, [math.log(3), 0] + [-900.0] * 6]
    )
    expected = [3.0, 0.0, 1.0, 0.25 * 2 + 0.75 * math.log2(4 / 3)]
    assert entropy_bits(logits).tolist() == pytest.approx(expected)


def test_entropy_splits_correct_from_wrong():
    logits = torch.tensor([[9.0, 0, 0, 0], [0, 0, 0, 0.0], [0, 9.0, 0, 0]])
    split = entropy_split(nn.Identity(), logits, torch.tensor([0, 1, 2]), batch_size=2)
    assert split.correct.tolist() == [True, False, False]
    figures = split.figures(bins=4)
    assert figures["max_bits"] == 2.0
    assert figures["correct"]["n"] == 1
    assert figures["correct"]["histogram"] == [1, 0, 0, 0]
    assert figures["wrong"]["histogram"] == [1, 0, 0, 1]
    assert figures["wrong"]["quartiles"][1] == pytest.approx(figures["wrong"]["mean"])
    perfect = entropy_split(nn.Identity(), logits[:1], torch.tensor([0])).figures()
    assert perfect["wrong"] == {"n": 0, "mean": None, "quartiles": None, "histogram": [0] * 20}


def test_summary_leaves_undefined_values_out():
    figures = summary(torch.tensor([1.0, float("nan"), 3.0]))
    assert (figures["n"], figures["mean"], figures["min"], figures["median"]) == (2, 2.0, 1.0, 2.0)
