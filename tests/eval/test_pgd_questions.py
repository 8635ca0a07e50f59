"""Accuracy against PGD's iterations, and PGD towards one class: against PGD itself and closed forms."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from attacks import pgd
from envs.errors import InputError
from eval.core.targets import Target, load_samples, load_target, samples_from
from eval.core.threats import Threat
from eval.robustness import command, iterations
from eval.robustness.iterations import iteration_curve, iteration_figure
from eval.robustness.options import PgdOptions
from eval.robustness.suite import pgd_options
from eval.robustness.targeted import targeted_outcome
from tests.eval.test_attack import MODEL


class Line(nn.Module):
    """Two classes; the logit of class 1 is ``slope`` times the first pixel over a threshold."""

    def __init__(self, threshold, slope=1.0):
        super().__init__()
        self.threshold, self.slope = threshold, slope

    def forward(self, x):
        value = self.slope * (x.flatten(1)[:, 0] - self.threshold)
        return torch.stack([torch.zeros_like(value), value], dim=1)


def as_target(model):
    return Target("m", model, "0" * 64, None)


def grey(pixels):
    images = torch.full((len(pixels), 1, 2, 2), 0.5)
    images[:, 0, 0, 0] = torch.tensor(pixels)
    return images


@pytest.mark.parametrize("protocol", ["pgd", "pgd-cleverhans", "pgd-paper"])
@pytest.mark.parametrize("loss", ["ce", "mifpe"])
def test_one_pass_equals_pgd_of_every_length(protocol, loss):
    target, threat = load_target(MODEL), Threat("L2", 0.8)
    samples = load_samples(target, n=20, dataset="digits")
    x, y = samples.batch(slice(None), torch.device("cpu"))
    asked = (1, 3, 8)
    curve = iteration_curve(target, samples, threat, protocol, loss, asked, batch_size=7)
    with torch.no_grad():
        clean = target.model(x).argmax(1) == y
    for number, row in zip(asked, curve.robust, strict=True):
        options = pgd_options(protocol, loss, threat, number)
        found = pgd(target.model, x, y, norm="L2", eps=0.8, sample_ids=samples.indices, **options)
        assert row == "".join("01"[int(value)] for value in clean & ~found.success)
    assert curve.iterations == list(asked)
    if protocol == "pgd":
        assert curve.accuracy == sorted(curve.accuracy, reverse=True)


def test_steps_of_a_linear_model_break_images_when_they_reach_the_border(monkeypatch):
    """Steps lead straight to the border at .7: an image falls with the first step that takes it beyond."""
    samples = samples_from(grey([0.65, 0.55, 0.44, 0.36]), torch.zeros(4, dtype=torch.int64))
    random, asked, threat = iterations.pgd, (1, 2, 3, 4, 5), Threat("L2", 1.0)
    monkeypatch.setattr(iterations, "pgd", lambda *args, **more: random(*args, **more, random_start=False))

    def still(protocol, slope=1.0):
        curve = iteration_curve(as_target(Line(0.7, slope)), samples, threat, protocol, "margin", asked)
        return [round(4 * share) for share in curve.accuracy]

    assert still("pgd-cleverhans") == [3, 2, 1, 0, 0]  # steps of .1
    # A slope under the floor of 128 * 1e-6 shortens every step: here to .06, and none of unit length, which are .125.
    assert still("pgd-cleverhans", slope=0.6 * 128e-6) == [3, 3, 2, 2, 1]
    assert still("pgd", slope=0.6 * 128e-6) == [3, 2, 0, 0, 0]


def test_finished_curves_are_read_and_damaged_ones_refused(tmp_path, monkeypatch):
    target = as_target(Line(0.7))
    samples = samples_from(grey([0.1, 0.6]), torch.zeros(2, dtype=torch.int64))
    question = (target, samples, Threat("Linf", 0.2), "pgd", "ce", (1, 2))
    first = iteration_curve(*question, folder=tmp_path)
    monkeypatch.setattr(iterations, "pgd", lambda *args, **kwargs: pytest.fail("attacked again"))
    assert iteration_curve(*question, folder=tmp_path) == first
    (path,) = tmp_path.iterdir()
    path.write_text(path.read_text().replace('"11"', '"1"').replace('"10"', '"1"'))
    with pytest.raises(InputError, match="delete it and rerun"):
        iteration_curve(*question, folder=tmp_path)


def test_targeted_pgd_counts_the_class_apart():
    """Class 1 lies above .7: within eps .2 two of three images of class 0 get there, those of class 1 stay."""
    samples = samples_from(grey([0.3, 0.55, 0.65, 0.75, 0.65]), torch.tensor([0, 0, 0, 1, 1]))
    found = targeted_outcome(as_target(Line(0.7, 50.0)), samples, Threat("Linf", 0.2), "pgd", "ce", 1)
    assert found.clean.tolist() == [0, 0, 0, 1, 0]
    assert found.attacked.tolist() == [0, 1, 1, 1, 1]
    values = {name: share and share[0] for name, share in found.shares.items()}
    expected = {"clean_rate": 0, "attack_success_rate": 2 / 3, "attack_success_rate_all": 4 / 5}
    expected |= {"target_accuracy_clean": 1 / 2, "target_accuracy": 1, "accuracy": 3 / 5}
    assert values == pytest.approx(expected)
    with pytest.raises(InputError, match="classes 0 to 1"):
        targeted_outcome(as_target(Line(0.7)), samples, Threat("Linf", 0.2), "pgd", "ce", 2)


@pytest.fixture
def run(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        status = command.main([MODEL, "--dataset", "digits", "--n", "12", "--no-progress", *arguments])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


@pytest.mark.slow
def test_the_command_shows_iterations(run, tmp_path):
    options = ("--norm", "L2", "--iterations", "4", "1", "--losses", "ce", "margin", "--out", "o")
    status, out, _ = run(*options)
    assert status == 0
    assert "pgd-paper margin" in out
    rows = json.loads((tmp_path / "o" / "iterations.json").read_text(), parse_constant=pytest.fail)["rows"]
    assert [(row["protocol"], row["loss"]) for row in rows] == [
        (protocol, loss) for protocol in ("pgd", "pgd-cleverhans", "pgd-paper") for loss in ("ce", "margin")
    ]
    for row in rows:
        assert row["iterations"] == [1, 4]
        assert row["accuracy"] == [np.mean([bit == "1" for bit in bits]) for bits in row["robust"]]
        assert all(
            low <= share <= high for share, (low, high) in zip(row["accuracy"], row["ci95"], strict=True)
        )
    assert (tmp_path / "o" / "iterations.png").read_bytes()[:4] == b"\x89PNG"
    assert run(*options)[1] == out


def test_the_command_shows_a_target_class(run, tmp_path):
    status, out, _ = run("--norm", "Linf", "--target-class", "3", "--losses", "ce", "--out", "o")
    assert status == 0
    assert "towards class 3" in out
    rows = json.loads((tmp_path / "o" / "targeted-3.json").read_text(), parse_constant=pytest.fail)["rows"]
    assert [row["protocol"] for row in rows] == ["pgd", "pgd-cleverhans", "pgd-paper"]
    for row in rows:
        label, attacked = np.asarray(row["label"]), np.asarray(row["attacked"])
        assert row["attack_success_rate"]["value"] == pytest.approx((attacked == 3)[label != 3].mean())


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--iterations", "0"), "--iterations has 0"),
        (("--iterations", "3", "--target-class", "1"), "two questions"),
        (("--target-class", "-1"), "--target-class is -1"),
        (("--target-class", "10", "--norm", "L2"), "classes 0 to 9"),
        (("--iterations", "3", "--protocols", "pgd-papr"), "Did you mean 'pgd-paper'"),
        (("--iterations", "3", "--losses", "cee"), "Did you mean 'ce'"),
    ],
)
def test_wrong_questions_end_with_one_line(run, arguments, expected):
    status, _, err = run(*arguments)
    assert status == 2
    assert err.count("\n") == 1
    assert expected in err


def test_figures_have_a_panel_per_loss_and_norms_without_the_step_rule_leave_it_out():
    cells = list(PgdOptions().cells([Threat("L1", 10.0), Threat("L2", 1.0)]))
    assert [(threat.norm, protocol) for threat, protocol, loss in cells if loss == "ce"] == [
        ("L1", "pgd"),
        ("L2", "pgd"),
        ("L2", "pgd-cleverhans"),
        ("L2", "pgd-paper"),
    ]
    samples = samples_from(grey([0.1, 0.6]), torch.zeros(2, dtype=torch.int64))
    curves = [
        iteration_curve(as_target(Line(0.7)), samples, Threat("L2", 1.0), protocol, loss, (1, 2))
        for protocol in ("pgd", "pgd-paper")
        for loss in ("ce", "margin", "mifpe")
    ]
    figure = iteration_figure(curves)
    assert [len(axes.lines) for axes in figure.axes] == [2, 2, 2]
    assert figure.axes[0].lines[0].get_xdata().tolist() == [1, 2]
