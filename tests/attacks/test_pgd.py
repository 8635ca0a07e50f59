"""FGSM and PGD against closed forms, foolbox, and a re-derivation of cleverhans' step."""

import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from attacks import fgsm, pgd
from attacks.core.errors import AttackError
from attacks.core.losses import LOSSES
from attacks.core.norms import NORMS, get_norm
from tests.support.attack_models import cnn_problem, linear_problem, random_cnn

RADII = {"Linf": 0.04, "L2": 0.3, "L1": 1.0}
DUAL = {"Linf": 1, "L2": 2, "L1": math.inf}


def signed_margin(model, x, y):
    """How far the true class leads: negative where misclassified."""
    return model.margin(x) * (2 * y - 1)


class TestLinearModel:
    @pytest.mark.parametrize("norm", NORMS)
    @pytest.mark.parametrize("attack", [fgsm, lambda *a, **k: pgd(*a, early_stop=False, **k)])
    def test_takes_the_most_that_the_ball_allows(self, norm, attack):
        """Away from the box the margin of a linear model can fall by eps * (dual norm of w), and no further."""
        model, x, y = linear_problem()
        eps = {"Linf": 0.2, "L2": 0.25, "L1": 0.3}[norm]
        result = attack(model, x, y, norm=norm, eps=eps)
        fall = signed_margin(model, x, y) - signed_margin(model, result.adversarial, y)
        optimum = eps * torch.linalg.vector_norm(model.weight, ord=DUAL[norm])
        torch.testing.assert_close(fall, optimum.expand(len(x)), rtol=1e-6, atol=0)

    @pytest.mark.parametrize("norm", NORMS)
    def test_breaks_exactly_beyond_the_distance_to_the_boundary(self, norm):
        """Per-sample radii a hair below and above |f(x)| / (dual norm of w) decide the outcome."""
        model, x, y = linear_problem(40)
        model.bias = -model.margin(x).mean().item()
        x, y = x, model(x).argmax(1)
        distance = model.margin(x).abs() / torch.linalg.vector_norm(model.weight, ord=DUAL[norm])
        near = torch.arange(40) % 2 == 0
        assert (distance < 0.35).all()  # the box is not met
        eps = torch.where(near, 1.001 * distance, 0.999 * distance).detach()
        for result in (fgsm(model, x, y, norm=norm, eps=eps), pgd(model, x, y, norm=norm, eps=eps)):
            assert torch.equal(result.success, near)
            assert (result.distance(x, norm) <= eps * (1 + 1e-9)).all()

    def test_l1_fills_the_box(self):
        """At L1 the best attack moves the heaviest pixels to their bounds, one after the other."""
        model, x, y = linear_problem()
        order = model.weight.abs().argsort(descending=True)
        bound = ((1 - 2 * y[:, None]) * model.weight > 0).double()
        best = x.flatten(1).clone()
        for pixel in order[:3]:
            best[:, pixel] = bound[:, pixel]
        eps = (best - x.flatten(1)).abs().sum(1)
        result = fgsm(model, x, y, norm="L1", eps=eps)
        torch.testing.assert_close(result.adversarial.flatten(1), best, rtol=0, atol=1e-9)
        walked = pgd(model, x, y, norm="L1", eps=eps, early_stop=False).adversarial
        fall, most = (
            signed_margin(model, x, y) - signed_margin(model, z, y) for z in (walked, result.adversarial)
        )
        assert (fall <= most + 1e-9).all()
        assert (fall > 0.97 * most).all()


@pytest.mark.parametrize("norm", NORMS)
class TestOptions:
    def test_early_stop_changes_no_outcome_and_saves_queries(self, norm):
        model, x, y = cnn_problem()
        options = {"norm": norm, "eps": RADII[norm], "steps": 20}
        stopping, full = (pgd(model, x, y, early_stop=stop, **options) for stop in (True, False))
        assert torch.equal(stopping.success, full.success)
        assert 0.2 < stopping.success.double().mean() < 0.9
        assert (full.queries == 22).all()
        assert (full.backwards == 20).all()
        assert (stopping.queries[~stopping.success] == 22).all()
        assert stopping.queries.sum() < 0.8 * full.queries.sum()
        wrong = model(x).argmax(1) != y
        assert (stopping.queries[wrong] == 1).all()
        assert torch.equal(stopping.adversarial[wrong], x[wrong])

    @pytest.mark.parametrize("protocol", ["normalized", "cleverhans"])
    def test_batch_size_and_neighbours_do_not_matter(self, norm, protocol):
        if (norm, protocol) == ("L1", "cleverhans"):
            pytest.skip("cleverhans has no PGD at L1")
        model, x, y = cnn_problem()
        options = {"norm": norm, "eps": RADII[norm], "steps": 10, "protocol": protocol, "averaged_over": 40}
        whole = pgd(model, x, y, **options)
        for size in (1, 7):
            split = pgd(model, x, y, batch_size=size, **options)
            assert torch.equal(split.success, whole.success)
            assert torch.equal(split.queries, whole.queries)
            torch.testing.assert_close(split.adversarial, whole.adversarial, rtol=0, atol=1e-9)
        some = torch.tensor([31, 4, 17])
        alone = pgd(model, x[some], y[some], sample_ids=some, **options)
        torch.testing.assert_close(alone.adversarial, whole.adversarial[some], rtol=0, atol=1e-9)

    def test_seeds(self, norm):
        model, x, y = cnn_problem()
        first, again, other = (
            pgd(model, x, y, norm=norm, eps=RADII[norm], steps=3, seed=seed, keep="last")
            for seed in (0, 0, 1)
        )
        assert torch.equal(first.adversarial, again.adversarial)
        assert not torch.equal(first.adversarial, other.adversarial)

    def test_restarts_only_add_successes(self, norm):
        model, x, y = cnn_problem(60)
        options = {"norm": norm, "eps": 0.8 * RADII[norm], "steps": 3}
        results = [pgd(model, x, y, restarts=restarts, **options) for restarts in (1, 2, 6)]
        for fewer, more in pairwise(results):
            assert (more.success >= fewer.success).all()
            assert (more.trace["loss"] >= fewer.trace["loss"]).all()
            assert torch.equal(more.adversarial[fewer.success], fewer.adversarial[fewer.success])

    @pytest.mark.parametrize("loss", LOSSES)
    def test_losses_find_the_same_weak_samples(self, norm, loss):
        model, x, y = cnn_problem()
        reference = pgd(model, x, y, norm=norm, eps=RADII[norm], steps=20).success
        found = pgd(model, x, y, norm=norm, eps=RADII[norm], steps=20, loss=loss).success
        assert (found == reference).double().mean() > 0.85

    def test_targeted(self, norm):
        model, x, y = cnn_problem()
        targets = model(x).scatter(1, y[:, None], -math.inf).argmax(1)
        result = pgd(model, x, y, norm=norm, eps=3 * RADII[norm], steps=30, targets=targets)
        predicted = model(result.adversarial).argmax(1)
        assert torch.equal(result.trace["hit_target"], predicted == targets)
        assert torch.equal(result.success, predicted != y)
        assert result.trace["hit_target"].double().mean() > 0.5
        closer = fgsm(model, x, y, norm=norm, eps=RADII[norm], targets=targets).adversarial
        gain = model(closer).log_softmax(1) - model(x).log_softmax(1)
        assert (gain.gather(1, targets[:, None]) > 0).double().mean() > 0.9

    def test_zero_radius_leaves_the_clean_errors_alone(self, norm):
        model, x, y = cnn_problem()
        for result in (
            fgsm(model, x, y, norm=norm, eps=0),
            pgd(model, x, y, norm=norm, eps=0.0, steps=3),
            pgd(model, x, y, norm=norm, eps=0.0, steps=3, random_start="odi", early_stop=False),
        ):
            assert torch.equal(result.adversarial, x)
            assert torch.equal(result.success, model(x).argmax(1) != y)

    def test_odi_start_spreads_the_outputs(self, norm):
        model, x, y = cnn_problem()
        spread = {}
        for start in (True, "odi"):
            outputs = []
            for seed in range(6):
                seen = []
                pgd(
                    model, x, y, norm=norm, eps=RADII[norm], steps=1, seed=seed, random_start=start,
                    early_stop=False, on_step=lambda step, seen=seen: seen.append(step.logits),
                )  # fmt: skip
                outputs.append(torch.cat(seen))
            spread[start] = torch.stack(outputs).std(0).mean()
        assert spread["odi"] > 2 * spread[True]


def test_hook_sees_every_step_with_its_gradient():
    model, x, y = cnn_problem(20)
    steps = []
    pgd(model, x, y, norm="L2", eps=0.3, steps=7, restarts=2, early_stop=False, on_step=steps.append)
    assert [(step.restart, step.index) for step in steps] == [(r, i) for r in range(2) for i in range(7)]
    for step in (steps[0], steps[13]):
        leaf = step.x_adv.clone().requires_grad_()
        logits = model(leaf)
        loss = F.cross_entropy(logits, y[step.rows], reduction="none")
        (grad,) = torch.autograd.grad(loss.sum(), leaf)
        torch.testing.assert_close(step.grad, grad)
        torch.testing.assert_close(step.loss, loss.detach())
        torch.testing.assert_close(step.logits, logits.detach())
        assert (get_norm("L2").length(step.x_adv - x) <= 0.3 + 1e-6).all()


def test_saturated_logits_need_another_loss():
    """Times 1000, cross-entropy loses its gradient, while mifpe, margin and dlr break what they broke before."""
    model, x, y = cnn_problem(dtype=torch.float32)
    sharp, _, _ = cnn_problem(dtype=torch.float32, scale=1000)
    options = {"norm": "Linf", "eps": 0.08, "steps": 20, "random_start": False}
    before = pgd(model, x, y, **options).success
    found = {loss: pgd(sharp, x, y, loss=loss, **options).success for loss in LOSSES}
    assert found["ce"].sum() < before.sum() - 5
    for loss in ("margin", "dlr", "mifpe"):
        assert found[loss].sum() >= before.sum() - 1


def test_expected_gradient_of_a_random_model():
    """Averaging over passes counts them all, and finds the sign that single passes get wrong half the time."""
    model, x, y = linear_problem(8)
    generator = torch.Generator().manual_seed(0)

    def noisy(images):
        noise = torch.randn(len(images), 16, generator=generator, dtype=images.dtype)
        return model(images) + torch.stack(
            [torch.zeros(len(images)), (3 * noise * images.flatten(1)).sum(1)], 1
        )

    falls = {}
    for samples in (1, 40):
        result = pgd(
            noisy, x, y, norm="Linf", eps=0.2, steps=1, loss="margin", random_start=False, keep="last",
            eot_samples=samples,
        )  # fmt: skip
        assert (result.queries == samples + 2).all()
        assert (result.backwards == samples).all()
        falls[samples] = (signed_margin(model, x, y) - signed_margin(model, result.adversarial, y)).mean()
    assert falls[40] > 1.5 * falls[1]


@pytest.mark.parametrize("attack", [fgsm, pgd])
def test_works_in_inference_mode_on_tensors_made_there(attack):
    model, x, y = cnn_problem(10)
    expected = attack(model, x, y, norm="Linf", eps=0.04)
    with torch.inference_mode():
        found = attack(model, x * 1, y * 1, norm="Linf", eps=0.04)
    assert torch.equal(found.adversarial, expected.adversarial)


def test_survivors_take_every_step_once_and_few_regroupings():
    model, x, y = linear_problem(4)
    for steps in (1, 2, 7, 100):
        seen = []
        pgd(
            model,
            x,
            y,
            norm="Linf",
            eps=1e-4,
            steps=steps,
            on_step=lambda step, seen=seen: seen.append(step.index),
        )
        assert seen == list(range(steps))


@pytest.mark.slow
def test_out_of_memory_within_a_restart_changes_no_result():
    model, x, y = cnn_problem(32)

    def cramped(images):
        if len(images) > 10:
            raise torch.OutOfMemoryError("out of memory")
        return model(images)

    reference = pgd(model, x, y, norm="L2", eps=0.3, steps=6)
    with pytest.warns(UserWarning, match="going on with batches of"):
        found = pgd(cramped, x, y, norm="L2", eps=0.3, steps=6, batch_size=32)
    assert torch.equal(found.success, reference.success)
    assert torch.equal(found.queries, reference.queries)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be a whole number >= 1, got 0"),
        ({"restarts": 0}, "restarts must be a whole number"),
        ({"step_size": 0.0}, "step_size must be positive"),
        ({"step_size": -1.0}, "step_size must be positive"),
        ({"loss": "cw"}, "unknown loss 'cw'; valid: ce, margin, dlr, mifpe"),
        ({"protocol": "clever"}, r"Did you mean 'cleverhans'\?"),
        ({"keep": "first"}, "unknown keep 'first'; valid: best, loss, last"),
        ({"labels": "guess"}, "unknown labels 'guess'"),
        ({"loss": "dlr"}, "dlr loss needs at least 3 classes, the model has 2; use loss='ce'"),
        ({"batch_size": 0}, "batch_size must be a whole number >= 1"),
    ],
)
def test_wrong_options(options, message):
    model, x, y = linear_problem()
    with pytest.raises(AttackError, match=message):
        pgd(model, x, y, norm="L2", eps=0.1, **options)


def test_result_keeps_type_layout_and_model():
    model = random_cnn(dtype=torch.float32)
    x = torch.rand(4, 1, 8, 8)
    result = pgd(model, x, model(x).argmax(1), norm="Linf", eps=0.1, steps=3)
    assert result.adversarial.dtype == torch.float32
    assert result.adversarial.is_contiguous()
    assert not result.adversarial.requires_grad
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
