"""The probe of a validation slice, and the selection and warning that go by it."""

import pytest
import torch
from torch import nn

import agents.training.validation
from agents.adversarial_config import AdversarialConfig
from agents.common.protocols import default_eps
from agents.config import TrainConfig
from agents.training.factory import build_probe
from agents.training.resolve import resolve
from agents.training.run import train
from agents.training.validation import Evaluation, Probe, Robustness, Selection, overfits_catastrophically
from envs.errors import InputError
from tests.support.agent_runs import metrics, short, summary
from tests.support.env_toys import random_images


class Linear(nn.Module):
    """Two classes by the sign of w x."""

    def __init__(self, shape):
        super().__init__()
        generator = torch.Generator().manual_seed(2)
        self.weight = nn.Parameter(torch.randn(shape, generator=generator))

    def forward(self, images):
        score = ((images - 0.5) * self.weight).flatten(1).sum(1)
        return torch.stack([-score, score], 1)


def inner_half(count=200):
    """Images away from the borders of [0, 1], labelled by the linear model."""
    data = random_images(count, (1, 4, 4), 2)
    images = (data.images // 2 + 64).contiguous()
    model = Linear((1, 4, 4))
    labels = model(images.float() / 255).argmax(1)
    return type(data)("toy", "val", images, labels, data.classes), model


def test_the_probe_finds_the_closed_forms_of_a_linear_model():
    data, model = inner_half()
    eps = 0.03
    found = Probe(data, 200, "Linf", eps)(model)
    score = ((data.images.float() / 255 - 0.5) * model.weight).flatten(1).sum(1).abs()
    robust = (score > eps * model.weight.abs().sum()).float().mean()
    assert found.accuracy == pytest.approx(robust.item(), abs=0.011)
    assert found.fgsm_accuracy == pytest.approx(robust.item(), abs=0.011)
    assert 0.2 < found.accuracy < 0.9
    assert found.margin == pytest.approx(2 * score.mean().item(), rel=1e-5)
    slope = 2 * model.weight.norm() * torch.sigmoid(-2 * score)
    assert found.gradient_norm == pytest.approx(slope.mean().item(), rel=1e-4)


def test_the_probe_repeats_itself_and_disturbs_nothing():
    data, model = inner_half()
    model.train()
    state = torch.get_rng_state()
    probe = Probe(data, 60, "L2", 0.2, steps=3)
    first = probe(model)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(9)
    assert probe(model) == first
    assert model.training
    assert model.weight.requires_grad
    assert model.weight.grad is None


def test_the_slice_is_spread_over_the_data():
    data, _ = inner_half(100)
    probe = Probe(data, 10, "Linf", 0.1)
    assert torch.equal(probe.images, data.images[::10])
    assert len(Probe(data, 500, "Linf", 0.1).labels) == 100


def test_a_run_is_probed_where_robustness_matters():
    data, _ = inner_half(300)

    def probe_of(**options):
        return build_probe(resolve(TrainConfig(**options), data), data)

    assert probe_of() is None
    assert probe_of(adversarial=AdversarialConfig("pgd"), probe_images=0) is None
    probe = probe_of(adversarial=AdversarialConfig("pgd", eps=0.2, norm="L2"))
    assert (len(probe.labels), probe.norm.name, probe.eps, probe.steps) == (256, "L2", 0.2, 10)
    probe = probe_of(select="robust", probe_images=7)
    assert (len(probe.labels), probe.norm.name, probe.eps) == (7, "Linf", default_eps("Linf", 1))
    with pytest.raises(InputError, match="--adv-eps is 50; expected at most 4, the L2 diameter"):
        Probe(data, 5, "L2", 50)


@pytest.mark.parametrize(
    ("history", "expected"),
    [
        ([(0.9, 0.01)], False),  # one validation says nothing
        ([(0.5, 0.40), (0.6, 0.50), (0.7, 0.10)], True),  # collapse
        ([(0.5, 0.40), (0.6, 0.50), (0.7, 0.45)], False),
        ([(0.1, 0.09), (0.1, 0.04), (0.1, 0.06)], False),
        ([(0.6, 0.50), (0.1, 0.05)], False),  # both lost: training broke, which is another thing
        ([(0.9, 0.10), (0.95, 0.05)], True),  # never robust
        ([(0.9, 0.10), (0.6, 0.40)], False),
        ([(0.2, 0.01), (0.3, 0.02)], False),  # has learnt nothing yet
    ],
)
def test_catastrophic_overfitting(history, expected):
    assert overfits_catastrophically(history) is expected


def test_selection_by_robust_accuracy_and_then_by_clean():
    weights = {"w": torch.zeros(2)}
    clean, robust = Selection(), Selection()
    offers = [(0.8, 0.3), (0.9, 0.2), (0.7, 0.5), (0.85, 0.5), (0.6, 0.5)]
    for step, (accuracy, under_attack) in enumerate(offers):
        evaluation = Evaluation(accuracy, loss=1.0, margin=0.0)
        clean.offer(evaluation, step, weights, under_attack)
        robust.offer(evaluation, step, weights, under_attack, "robust")
    assert (clean.step, clean.accuracy, clean.robust_accuracy) == (1, 0.9, 0.2)
    assert (robust.step, robust.accuracy, robust.robust_accuracy) == (3, 0.85, 0.5)


def scripted(monkeypatch, points):
    """Make validations find these (accuracy, robust accuracy, FGSM accuracy), in turn."""
    clean, probed = iter(points), iter(points)
    monkeypatch.setattr(
        agents.training.validation, "evaluate", lambda *_: Evaluation(next(clean)[0], 1.0, 0.0)
    )

    def probe(_):
        _, robust, fgsm = next(probed)
        return Robustness(robust, fgsm, 0.0, 0.0)

    monkeypatch.setattr(Probe, "__call__", lambda self, classifier: probe(classifier))


POINTS = [(0.9, 0.1, 0.2), (0.8, 0.3, 0.4), (0.7, 0.4, 0.5), (0.75, 0.1, 0.6)]


@pytest.mark.parametrize(
    ("options", "step"),
    [
        ({"select": "clean"}, 100),
        ({"select": "robust"}, 300),
        (
            {"select": "clean", "start": 0.08},
            200,
        ),  # 103 images: what was kept before was no adversarial training
    ],
)
def test_what_a_run_keeps(options, step, monkeypatch, tmp_path):
    scripted(monkeypatch, POINTS)
    adversarial = AdversarialConfig("pgd", steps=1, start=options.pop("start", None))
    config = short(tmp_path / "run", "supervised", adversarial=adversarial, total_images=400, eval_every=100)
    path = train(TrainConfig(**vars(config) | options)).path
    found = summary(path)
    assert found["selected_at"] == step
    assert (found["val_accuracy"], found["val_robust_accuracy"]) == POINTS[step // 100 - 1][:2]


def test_catastrophic_overfitting_is_told_once_and_logged(monkeypatch, tmp_path, capsys):
    scripted(monkeypatch, [*POINTS, (0.75, 0.1, 0.6), (0.7, 0.3, 0.5), (0.7, 0.1, 0.6)])
    config = short(
        tmp_path / "run",
        "supervised",
        adversarial=AdversarialConfig("fgsm"),
        total_images=700,
        eval_every=100,
    )
    path = train(config).path
    warnings = [line for line in capsys.readouterr().err.splitlines() if "overfitting" in line]
    assert len(warnings) == 1
    assert (
        "at 400 images: accuracy 60.0% under FGSM but 10.0% under PGD; use --adversarial pgd" in warnings[0]
    )
    flags = [line["probe/catastrophic_overfitting"] for line in metrics(path) if "probe/accuracy" in line]
    assert flags == [0, 0, 0, 1, 1, 0, 1]


def test_every_validation_logs_robustness_gradients_and_margin(tmp_path):
    path = train(short(tmp_path / "run", "supervised", adversarial=AdversarialConfig("pgd", steps=1))).path
    validated = [line for line in metrics(path) if "val/accuracy" in line]
    assert len(validated) >= 3
    for line in validated:
        assert 0 <= line["probe/accuracy"] <= line["val/accuracy"] + 0.15
        assert line["probe/gradient_norm"] > 0
        assert {"probe/fgsm_accuracy", "probe/margin", "val/margin"} < line.keys()
