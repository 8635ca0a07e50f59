"""`evaluate` on hostile models and images: the right numbers and a warning, or one clear line."""

import pytest
import torch
from torch import nn

from attacks.core.errors import AttackError
from envs.errors import InputError
from eval.attack.registry import choose_targets
from eval.audit import audit
from eval.core.threats import Threat
from eval.mechanism.entropy import entropy_split
from eval.mechanism.gradients import input_gradient
from eval.mechanism.landscape import landscape
from eval.mechanism.static_indicators import static_indicators
from eval.robustness.suite import evaluate
from tests.support.audit_budgets import TINY

THREAT = Threat("L2", 0.8)


def problem(n=20):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10)
        )
    x = torch.rand((n, 1, 8, 8), generator=torch.Generator().manual_seed(1))
    return model, x, model.eval()(x).argmax(1)


class Behind(nn.Module):
    def __init__(self, model, function):
        super().__init__()
        self.model, self.function = model, function

    def forward(self, x):
        return self.model(self.function(x))


def test_a_model_in_training_mode():
    model, x, y = problem()
    expected = evaluate(model, x, y, names=("pgd",), threats=[THREAT])
    model.train()
    before = model[1].running_mean.clone()
    report = evaluate(model, x, y, names=("pgd",), threats=[THREAT])
    assert report.clean_accuracy == expected.clean_accuracy == 1
    assert report.worst[THREAT].robust_accuracy == expected.worst[THREAT].robust_accuracy
    assert torch.equal(model[1].running_mean, before)
    assert model.training
    assert any("training mode (BatchNorm2d)" in line for line in report.warnings)
    assert expected.warnings == ()


@pytest.mark.slow
def test_indicators_and_audits_of_a_model_in_training_mode():
    model, x, y = problem(8)

    def measure():
        static = static_indicators(model, x, y, eps=0.1, draws=2, power_iterations=2)
        plane = landscape(model, x, y, 1 - x, eps=0.1, resolution=4)
        entropy = entropy_split(model, x, y)
        gradient = input_gradient(model, x, y)
        chosen = choose_targets("second", model, x, y, torch.arange(len(x)))
        return (
            static.gradient_norm,
            static.curvature,
            plane.cross_entropy,
            entropy.logits,
            gradient.grad,
            chosen,
        )

    expected = measure()
    model.train()
    before = model[1].running_mean.clone()
    assert all(torch.equal(*pair) for pair in zip(measure(), expected, strict=True))
    with pytest.warns(UserWarning, match=r"training mode \(BatchNorm2d\)"):
        assert audit(model, x, y, norm="L2", eps=0.1, budget=TINY).clean_accuracy == 1
    assert torch.equal(model[1].running_mean, before)
    assert all(module.training for module in model.modules())


def test_gradients_that_are_not_finite_are_told_with_every_attack():
    model, x, _ = problem()
    x[:, :, 0, 0] = 0
    model = Behind(model, torch.sqrt).eval()
    report = evaluate(model, x, model(x).argmax(1), names=("fgsm", "pgd"), threats=[THREAT])
    for start in ("fgsm", "pgd", "the gradient has infinite or NaN entries"):
        assert any(line.startswith(start) and "infinite or NaN" in line for line in report.warnings)
    assert report.figures()["warnings"] == list(report.warnings)


@pytest.mark.slow
def test_an_image_that_no_gradient_attack_tried_is_not_robust():
    model, x, y = problem()
    x, y = x[:6], y[:6]
    model = Behind(model, lambda z: z + (z * 0 - 1).sqrt().nan_to_num(0) * 0).eval()
    blind = evaluate(model, x, y, names=("fgsm",), threats=[Threat("L2", 0.001)])
    seen = evaluate(model, x, y, names=("fgsm", "square"), threats=[Threat("L2", 0.001)])
    assert blind.worst[Threat("L2", 0.001)].robust_accuracy == 0
    assert not blind.worst[Threat("L2", 0.001)].success.any()
    assert any("nothing was attacked" in line for line in blind.warnings)
    assert seen.worst[Threat("L2", 0.001)].robust_accuracy > 0


def test_a_model_that_writes_into_its_input():
    model, x, y = problem()
    kept = x.clone()
    with pytest.raises(AttackError, match="changes its input in place"):
        evaluate(Behind(model, lambda z: z.sub_(0.5)).eval(), x, y, names=("square",), threats=[THREAT])
    assert torch.equal(x, kept)


def test_labels_and_images_are_checked():
    model, x, y = problem()
    expected = evaluate(model, x, y, names=("fgsm",), threats=[THREAT]).worst[THREAT].robust_accuracy
    for kind in (torch.int32, torch.uint8):
        found = evaluate(model, x, y.to(kind), names=("fgsm",), threats=[THREAT])
        assert found.worst[THREAT].robust_accuracy == expected
    for labels in (torch.cat([y, y]), y[:5], y.float(), y[:, None]):
        with pytest.raises(InputError, match="labels are"):
            evaluate(model, x, labels, names=("fgsm",), threats=[THREAT])
    with pytest.raises(InputError, match=r"images are torch\.int64"):
        evaluate(model, (x * 255).long(), y, names=("fgsm",), threats=[THREAT])


@pytest.mark.slow
def test_inside_inference_mode():
    model, x, y = problem()
    expected = evaluate(model, x, y, names=("fgsm", "autoattack"), threats=[THREAT]).worst[THREAT].success
    with torch.inference_mode():
        found = evaluate(model, x, y, names=("fgsm", "autoattack"), threats=[THREAT]).worst[THREAT].success
    assert (found == expected).all()
