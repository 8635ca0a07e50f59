"""Attacks by scores and labels, towards many targets, on random policies and through layers without gradients."""

import pytest
import torch
from torch import nn

from attacks import BPDA, eot, expected_success, multitargeted, nes, pgd, rays, spsa
from attacks.core.errors import AttackError
from attacks.core.norms import NORMS
from tests.support.attack_models import Linear, cnn_problem, linear_problem


class Counting(nn.Module):
    """A model that counts the images it is shown, and refuses to be differentiated."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.images = 0

    def forward(self, x):
        assert not torch.is_grad_enabled()
        self.images += len(x)
        return self.model(x)


BUDGETED = [(spsa, "Linf"), (spsa, "L2"), (nes, "Linf"), (nes, "L2"), (nes, "L1"), (rays, "Linf")]


@pytest.mark.parametrize(("attack", "norm"), BUDGETED)
class TestBudgets:
    def test_every_query_is_counted_and_none_exceeds_the_budget(self, attack, norm):
        model, x, y = cnn_problem(12)
        options = {} if attack is rays else {"samples": 6}
        counting = Counting(model)
        result = attack(counting, x, y, norm=norm, eps=0.02, queries=40, **options)
        # The verification looks at each once, and the trial of the layout at one.
        assert result.queries.sum() + len(x) + 1 == counting.images
        assert result.queries.max() <= 40
        assert result.queries[~result.success].min() >= 34
        assert result.backwards.sum() == 0

    @pytest.mark.slow
    def test_more_queries_break_no_less(self, attack, norm):
        model, x, y = cnn_problem()
        eps = {"Linf": 0.05, "L2": 0.4, "L1": 2.0}[norm]
        few, many = (
            attack(model, x, y, norm=norm, eps=eps, queries=queries).success for queries in (70, 700)
        )
        assert (many >= few).all()
        assert many.sum() > few.sum()

    @pytest.mark.slow
    def test_comes_near_the_gradient_attack(self, attack, norm):
        model, x, y = cnn_problem()
        eps = {"Linf": 0.05, "L2": 0.4, "L1": 2.0}[norm]
        white = multitargeted(model, x, y, norm=norm, eps=eps, steps=50, num_targets=4).success
        black = attack(model, x, y, norm=norm, eps=eps, queries=700 if attack is rays else 2500).success
        assert black.sum() >= white.sum() - 6
        assert (black & ~white).sum() <= 2


class TestScores:
    @pytest.mark.parametrize("attack", [spsa, nes])
    def test_recovers_the_gradient_of_a_linear_model(self, attack):
        """On a linear loss the estimate is unbiased: with many directions the sign step is the optimum."""
        model, x, y = linear_problem(6)
        options = {"samples": 2000, "queries": 2002, "delta": 0.01, "random_start": False}
        step = {"learning_rate": 1.0} if attack is spsa else {"step_size": 1.0}
        result = attack(model, x, y, norm="Linf", eps=0.01, **options, **step)
        optimum = x - 0.01 * (2 * y.double() - 1).view(-1, 1, 1, 1) * model.weight.sign().view(1, 1, 4, 4)
        agree = ((result.adversarial - optimum).abs() < 1e-9).double().mean()
        assert agree > 0.9

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"samples": 7}, "samples must be even"),
            ({"samples": 64, "queries": 20}, "queries=20 does not suffice .* allow 66 or lower samples"),
            ({"delta": 0.0}, "delta must be positive"),
        ],
    )
    @pytest.mark.parametrize("attack", [spsa, nes])
    def test_wrong_options(self, attack, options, message):
        model, x, y = linear_problem()
        with pytest.raises(AttackError, match=message):
            attack(model, x, y, norm="Linf", eps=0.1, **options)


class TestRays:
    def test_finds_the_distance_of_a_linear_model(self):
        """The nearest point in Linf lies along -sign(w), at |f(x)| / |w|_1."""
        model, x, y = linear_problem(8, seed=3)
        distance = (model.margin(x).abs() / model.weight.abs().sum()).detach()
        reachable = distance < 0.35  # with room to the edges of the box
        result = rays(model, x, y, norm="Linf", eps=0.0, queries=800, early_stop=False, tolerance=1e-4)
        radius = result.trace["radius"]
        assert (radius >= distance - 1e-9)[reachable].all()
        torch.testing.assert_close(radius[reachable], distance[reachable], rtol=0.01, atol=2e-4)

    @pytest.mark.slow
    def test_uses_labels_alone(self):
        model, x, y = cnn_problem(15)

        def hard(images):
            return nn.functional.one_hot(model(images).argmax(1), 5).double()

        options = {"norm": "Linf", "eps": 0.05, "queries": 300}
        by_label, by_score = rays(hard, x, y, **options), rays(model, x, y, **options)
        assert torch.equal(by_label.adversarial, by_score.adversarial)
        assert torch.equal(by_label.queries, by_score.queries)

    def test_a_constant_model_is_never_fooled(self):
        x, y = torch.rand(3, 1, 3, 3), torch.zeros(3, dtype=torch.int64)

        def constant(images):
            return torch.tensor([[1.0, 0.0]]).expand(len(images), 2)

        result = rays(constant, x, y, norm="Linf", eps=1, queries=200)
        assert not result.success.any()
        assert result.trace["radius"].isinf().all()
        assert (result.queries == 200).all()

    def test_radius_says_how_far_and_clean_errors_are_at_zero(self):
        model, x, y = cnn_problem()
        result = rays(model, x, y, norm="Linf", eps=0.05, queries=300)
        assert torch.equal(result.trace["radius"] <= 0.05, result.success)
        assert (result.trace["radius"][model(x).argmax(1) != y] == 0).all()

    def test_knows_linf_alone(self):
        model, x, y = linear_problem()
        with pytest.raises(AttackError, match="knows Linf alone, got norm='L2'"):
            rays(model, x, y, norm="L2", eps=0.1)


class Corner(nn.Module):
    """The runner-up class cannot be reached, the third can: untargeted losses climb towards the wrong one."""

    def forward(self, x):
        up = x.flatten(1).mean(1)
        decoy = (0.9 + 0.5 * (up - 0.5)).clamp_max(0.95)
        return torch.stack([torch.ones_like(up), decoy, 0.5 + 8 * (0.5 - up)], 1)


class TestMultitargeted:
    def test_reaches_the_class_that_the_runner_up_hides(self):
        x, y = torch.full((4, 1, 2, 2), 0.5), torch.zeros(4, dtype=torch.int64)
        options = {"norm": "Linf", "eps": 0.1, "steps": 10, "random_start": False}
        assert not pgd(Corner(), x, y, loss="margin", **options).success.any()
        result = multitargeted(Corner(), x, y, **options)
        assert result.success.all()
        assert (Corner()(result.adversarial).argmax(1) == 2).all()

    @pytest.mark.slow
    @pytest.mark.parametrize("norm", NORMS)
    def test_breaks_what_pgd_breaks(self, norm):
        model, x, y = cnn_problem()
        eps = {"Linf": 0.05, "L2": 0.4, "L1": 2.0}[norm]
        ours = multitargeted(model, x, y, norm=norm, eps=eps, steps=30).success
        pgds = pgd(model, x, y, norm=norm, eps=eps, steps=30, loss="margin").success
        assert (pgds & ~ours).sum() <= 1

    def test_walks_each_target_once(self):
        model, x, y = cnn_problem()
        y = model(x).argmax(1)
        wrong = model(x).shape[1] - 1  # the order by distance asks about each
        for order, asked in (("logit", 0), ("distance", wrong)):
            options = {"steps": 3, "num_targets": 2, "target_order": order}
            result = multitargeted(model, x, y, norm="L2", eps=1e-6, **options)
            assert (result.queries == 1 + asked + 2 * 4).all()
        with pytest.raises(AttackError, match="targeted dlr loss needs at least 4 classes"):
            multitargeted(*linear_problem(), norm="L2", eps=0.1, loss="dlr")


class TestExpectedSuccess:
    def test_sampled_answers_in_closed_form(self):
        model, x, y = cnn_problem()
        right = model(x).softmax(1).gather(1, y[:, None]).squeeze(1).detach()
        torch.testing.assert_close(expected_success(model, x, y), 1 - right)
        torch.testing.assert_close(expected_success(model, x, y, exploration=0.1), 1 - 0.9 * right - 0.1 / 5)
        wrong = expected_success(model, x, y, action="argmax")
        assert torch.equal(wrong, (model(x).argmax(1) != y).double())

    def test_agrees_with_drawing_answers(self):
        model, x, y = cnn_problem(20)
        generator = torch.Generator().manual_seed(0)
        drawn = torch.multinomial(model(x).detach().softmax(1), 4000, replacement=True, generator=generator)
        rate = (drawn != y[:, None]).double().mean(1)
        torch.testing.assert_close(expected_success(model, x, y), rate, rtol=0, atol=0.03)

    def test_averages_a_random_model(self):
        x, y = torch.full((300, 1, 2, 2), 0.5), torch.zeros(300, dtype=torch.int64)
        generator = torch.Generator().manual_seed(0)

        def coin(images):
            up = (torch.rand(len(images), generator=generator) < 0.3).float()
            return torch.stack([1 - up, up], 1)

        found = expected_success(coin, x, y, action="argmax", passes=50)
        assert found.mean().item() == pytest.approx(0.3, abs=0.02)
        assert found.std() < 0.1

    def test_wrong_inputs(self):
        model, x, y = linear_problem()
        with pytest.raises(AttackError, match=r"within \[0, 1\], got 1.5"):
            expected_success(model, x, y, exploration=1.5)
        with pytest.raises(AttackError, match="unknown action 'greedy'; valid: sampled, argmax"):
            expected_success(model, x, y, action="greedy")


class TestEot:
    def test_linear_policy_meets_the_optimum(self):
        """The chance of a sampled error is a sigmoid of the margin, largest where the margin is least."""
        model, x, y = linear_problem()
        result = eot(model, x, y, norm="L2", eps=0.2, samples=1, passes=1)
        least = model.margin(x) * (2 * y - 1) - 0.2 * model.weight.norm()
        torch.testing.assert_close(result.trace["expected_success"], torch.sigmoid(-least).detach())
        assert (result.queries == 102).all()

    def test_raises_the_chance_even_where_the_argmax_holds(self):
        model, x, y = cnn_problem(scale=0.3)
        before = expected_success(model, x, y)
        result = eot(model, x, y, norm="Linf", eps=0.03, steps=20, samples=1, passes=1)
        after = result.trace["expected_success"]
        assert (after > before).all()
        assert (after[~result.success] > before[~result.success] + 0.01).any()
        stopped = pgd(model, x, y, norm="Linf", eps=0.03, steps=20)
        assert after.mean() > expected_success(model, stopped.adversarial, y).mean()

    def test_sees_through_noise(self):
        """A decision hidden in heavy output noise: averaged gradients beat single ones."""
        model, x, y = linear_problem(10)
        generator = torch.Generator().manual_seed(1)

        def noisy(images):
            weight = model.weight + 4 * torch.randn(16, generator=generator, dtype=torch.float64)
            margin = images.flatten(1) @ weight
            return torch.stack([torch.zeros_like(margin), margin], 1)

        margins = {}
        for samples in (1, 30):
            adversarial = eot(
                noisy, x, y, norm="Linf", eps=0.2, steps=5, samples=samples, passes=1, loss="margin"
            ).adversarial
            margins[samples] = (model.margin(adversarial) * (2 * y - 1)).mean()
        assert margins[30] < margins[1] - 0.1


def quantise(x):
    return (x * 8).round() / 8


class TestBpda:
    def test_forward_is_exact_and_backward_is_the_substitute(self):
        x = torch.rand(3, 1, 4, 4, requires_grad=True)
        out = BPDA(quantise)(x)
        assert torch.equal(out, quantise(x))
        (grad,) = torch.autograd.grad((out * 3).sum(), x)
        assert (grad == 3).all()
        (grad,) = torch.autograd.grad(BPDA(quantise, substitute=lambda z: z**2)(x).sum(), x)
        torch.testing.assert_close(grad, 2 * x.detach())
        (grad,) = torch.autograd.grad(BPDA(quantise, backward=lambda z, g: g * 5)(x).sum(), x)
        assert (grad == 5).all()

    def test_attacks_through_a_quantised_input(self):
        """Rounding has no gradient: PGD fails on the bare model, and succeeds through the identity."""
        model, x, y = cnn_problem()
        bare = nn.Sequential(BPDA(quantise, backward=lambda z, g: g * 0), model)
        through = nn.Sequential(BPDA(quantise), model)
        options = {"norm": "Linf", "eps": 0.1, "steps": 20, "random_start": False}
        nothing, found = (pgd(m, x, y, **options).success for m in (bare, through))
        assert torch.equal(nothing, model(quantise(x)).argmax(1) != y)
        assert found.sum() > nothing.sum() + 15

    def test_shapes_must_fit(self):
        layer = BPDA(lambda z: z[:, :, :2, :2])
        x = torch.rand(2, 1, 4, 4, requires_grad=True)
        with pytest.raises(AttackError, match=r"shape \(2, 1, 2, 2\) for images of shape \(2, 1, 4, 4\)"):
            layer(x).sum().backward()
        substituted = BPDA(lambda z: quantise(z)[:, :, :2, :2], substitute=lambda z: z[:, :, :2, :2])
        substituted(x).sum().backward()
        assert x.grad.sum() == 8

    def test_one_way_back(self):
        with pytest.raises(AttackError, match="not both"):
            BPDA(quantise, substitute=torch.relu, backward=lambda z, g: g)


def test_linear_helper_is_what_it_says():
    model = Linear(torch.tensor([1.0, -2.0]), 0.5)
    assert model(torch.tensor([[[[3.0, 1.0]]]])).tolist() == [[0.0, 1.5]]
