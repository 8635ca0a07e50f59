"""PGD beside foolbox, and the cleverhans protocol beside its published steps."""

import math

import pytest
import torch
import torch.nn.functional as F

from attacks import fgsm, pgd
from attacks.core.errors import AttackError
from attacks.core.rng import draws_for
from tests.support.attack_models import cnn_problem, linear_problem

RADII = {"Linf": 0.04, "L2": 0.3, "L1": 1.0}
DUAL = {"Linf": 1, "L2": 2, "L1": math.inf}


class TestAgainstFoolbox:
    @pytest.mark.parametrize(("norm", "name"), [("Linf", "LinfPGD"), ("L2", "L2PGD")])
    def test_same_points_from_the_same_start_and_step(self, norm, name):
        foolbox = pytest.importorskip("foolbox")
        model, x, y = cnn_problem()
        eps = RADII[norm]
        theirs = getattr(foolbox.attacks, name)(abs_stepsize=eps / 4, steps=10, random_start=False)
        wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
        _, expected, _ = theirs(wrapped, x, y, epsilons=eps)
        ours = pgd(
            model, x, y, norm=norm, eps=eps, steps=10, step_size=eps / 4, random_start=False, keep="last"
        )
        torch.testing.assert_close(ours.adversarial, expected, rtol=0, atol=1e-9)

    def test_fgsm(self):
        foolbox = pytest.importorskip("foolbox")
        model, x, y = cnn_problem()
        right = model(x).argmax(1) == y
        wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
        _, expected, _ = foolbox.attacks.LinfFastGradientAttack()(wrapped, x, y, epsilons=0.04)
        ours = fgsm(model, x, y, norm="Linf", eps=0.04)
        torch.testing.assert_close(ours.adversarial[right], expected[right])


def cleverhans_pgd(model, x, labels, norm, eps, step, steps, start, mean_over, box=True):
    """The published rule, written once more: averaged loss, floored length, clip, project, clip."""
    low, high = (0, 1) if box else (-math.inf, math.inf)
    point = start
    for _ in range(steps):
        leaf = point.clone().requires_grad_()
        loss = F.cross_entropy(model(leaf), labels, reduction="sum") / mean_over
        (grad,) = torch.autograd.grad(loss, leaf)
        if norm == "L2":
            direction = grad / grad.pow(2).sum((1, 2, 3), keepdim=True).clamp(min=1e-12).sqrt()
        else:
            direction = grad.sign()
        moved = (point + step * direction).clamp(low, high)
        point = (x + clip_eta(moved - x, norm, eps)).clamp(low, high)
    return point


def clip_eta(eta, norm, eps):
    if norm == "Linf":
        return eta.clamp(-eps, eps)
    length = eta.pow(2).sum((1, 2, 3), keepdim=True).clamp(min=1e-12).sqrt()
    return eta * (eps / length).clamp(max=1)


class TestCleverhans:
    @pytest.mark.parametrize("norm", ["Linf", "L2"])
    @pytest.mark.parametrize("saturation", [1, 60])
    @pytest.mark.parametrize(("labels", "box"), [("true", True), ("predicted", True), ("true", False)])
    def test_follows_the_published_rule(self, norm, saturation, labels, box):
        model, x, y = cnn_problem(scale=saturation)
        eps = RADII[norm]
        delta = (2 * draws_for(5, torch.arange(len(x))).fork(0).uniform((1, 8, 8)).double() - 1) * eps
        start = x + clip_eta(delta, norm, eps)
        start = start.clamp(0, 1) if box else start
        climbed = y if labels == "true" else model(x).argmax(1)
        expected = cleverhans_pgd(model, x, climbed, norm, eps, eps / 10, 12, start, len(x), box)
        options = {"protocol": "cleverhans", "keep": "last", "labels": labels, "seed": 5, "box": box}
        result = pgd(model, x, y, norm=norm, eps=eps, steps=12, step_size=eps / 10, batch_size=7, **options)
        torch.testing.assert_close(result.adversarial, expected, rtol=0, atol=1e-9)
        outside = ((expected < 0) | (expected > 1)).flatten(1).any(1)
        assert box != bool(outside.any())
        assert box or torch.equal(result.trace["left_box"], outside)
        assert torch.equal(result.success, model(expected).argmax(1) != y)

    def test_the_floor_hides_saturated_samples_and_is_counted(self):
        """Logits times 60 keep every decision; the averaged protocol then breaks fewer, unit steps as many."""
        outcome = {}
        for scale in (1, 60):
            model, x, y = cnn_problem(scale=scale)
            for protocol in ("normalized", "cleverhans"):
                result = pgd(model, x, y, norm="L2", eps=0.6, steps=20, random_start=False, protocol=protocol)
                outcome[scale, protocol] = (
                    int(result.success.sum()),
                    float(result.trace["shortened"].mean()),
                )
        for unharmed in ((60, "normalized"), (1, "cleverhans")):
            assert abs(outcome[unharmed][0] - outcome[1, "normalized"][0]) <= 1
        assert outcome[60, "cleverhans"][0] < 0.6 * outcome[1, "cleverhans"][0]
        assert outcome[1, "cleverhans"][1] == outcome[1, "normalized"][1] == 0
        assert outcome[60, "cleverhans"][1] > 0.3
        assert outcome[60, "normalized"][1] > 0.1  # the steps that the floor would have shortened

    def test_averaging_is_over_the_nominal_batch(self):
        """Splitting or leaving samples do not change the steps; another nominal batch does, where the floor acts."""
        model, x, y = cnn_problem(scale=20)
        options = {"norm": "L2", "eps": 0.3, "steps": 10, "protocol": "cleverhans", "keep": "last"}
        whole = pgd(model, x, y, **options)
        split = pgd(model, x[:10], y[:10], averaged_over=len(x), **options)
        torch.testing.assert_close(whole.adversarial[:10], split.adversarial, rtol=0, atol=1e-9)
        other = pgd(model, x, y, averaged_over=10**6, **options)
        assert (other.trace["shortened"] > whole.trace["shortened"]).any()
        assert other.distance(x, "L2").mean() < whole.distance(x, "L2").mean()

    def test_has_no_l1(self):
        model, x, y = linear_problem()
        with pytest.raises(AttackError, match=r"no PGD at L1; use protocol='normalized'"):
            pgd(model, x, y, norm="L1", eps=1.0, protocol="cleverhans")
