"""The battery: worst cases per image, stored results reused, several models side by side."""

import json
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from envs.datasets import load_dataset
from envs.errors import InputError
from eval.attack.labels import attack_label
from eval.attack.results import read_results
from eval.core.targets import Target, samples_from
from eval.core.threats import Threat
from eval.robustness import command
from eval.robustness import suite as battery_module
from eval.robustness.suite import battery, evaluate, run_battery
from tests.eval.test_attack import MODEL, nearest_mean

OTHER = "tests.eval.test_robustness:blurred"


def blurred():
    """The nearest-mean classifier after a blur: another model for the same images."""
    blur = nn.AvgPool2d(3, stride=1, padding=1)
    return nn.Sequential(blur, nearest_mean())


@pytest.fixture
def run(tmp_path, capsys, monkeypatch):
    """Run the command in an empty directory and return (status, output, errors)."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        status = command.main([*arguments, "--dataset", "digits", "--no-progress"])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


SMALL = ("--n", "48", "--attacks", "fgsm", "pgd-margin", "pgd-cleverhans")


@pytest.mark.slow
def test_one_model(run, tmp_path):
    status, out, err = run(MODEL, *SMALL)
    assert (status, err) == (0, "")
    (folder,) = (tmp_path / "results").iterdir()
    report = json.loads((folder / "robustness.json").read_text(), parse_constant=pytest.fail)["reports"][0]
    assert [(threat["norm"], threat["eps"]) for threat in report["threats"]] == [("Linf", 0.1), ("L2", 1.5)]
    stored = [read_results(path) for path in folder.glob("*-*.json")]
    assert len(stored) == 6
    for threat in report["threats"]:
        same = [result for result in stored if result.threat == Threat(threat["norm"], threat["eps"])]
        broken = np.any([result.success for result in same], axis=0)
        worst = threat["worst_case"]
        assert worst["robust_accuracy"] == pytest.approx(1 - broken.mean())
        assert sum(worst["broken_by"].values()) == broken.sum()
        assert set(worst["broken_by"]) <= {"clean", "fgsm", "pgd-margin", "pgd-cleverhans"}
        assert worst["ci95"][0] <= worst["robust_accuracy"] <= worst["ci95"][1]
        assert threat["attacks"]["pgd-cleverhans"]["shortened"] is not None
    for word in ("Linf 0.1", "L2 1.5", "worst case per image", "cleverhans", "steps shortened"):
        assert word in out
    assert (folder / "robustness.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.slow
def test_stored_results_are_reused_and_missing_ones_run(run, monkeypatch):
    run(MODEL, *SMALL, "--norm", "Linf")
    calls, real = [], battery_module.run_attack

    def counted(target, samples, spec, **kwargs):
        calls.append(spec)
        return real(target, samples, spec, **kwargs)

    monkeypatch.setattr(battery_module, "run_attack", counted)
    assert run(MODEL, *SMALL, "--norm", "Linf")[0] == 0
    assert calls == []
    run(MODEL, *SMALL, "pgd", "--norm", "Linf")
    assert [spec.options for spec in calls] == [{}]
    run(MODEL, *SMALL, "--norm", "Linf", "--force")
    assert len(calls) == 4


@pytest.mark.slow
def test_two_models_side_by_side(run, tmp_path):
    status, out, _ = run(
        MODEL, OTHER, "--out", "both", "--curve", *SMALL[:2], "--attacks", "pgd-margin", "--norm", "L2"
    )
    assert status == 0
    assert "McNemar" in out
    assert MODEL in out
    assert OTHER in out
    reports = json.loads((tmp_path / "both" / "robustness.json").read_text())["reports"]
    assert [report["name"] for report in reports] == [MODEL, OTHER]
    assert {path.name for path in (tmp_path / "both").iterdir()} == {
        "robustness.json",
        "robustness.png",
        "security.png",
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((MODEL, "--attacks", "pgd-margni"), "Did you mean 'pgd-margin'"),
        ((MODEL, "--eps", "0.1"), "add --norm"),
        ((MODEL, "--norm", "L3"), "Linf, L2, L1"),
        ((MODEL, "--norm", "L2", "--eps", "x"), "eps is 'x'"),
        (("--norm", "L2"), "no model given"),
        (("nowhere",), "no classifier"),
    ],
)
def test_wrong_input_ends_with_one_line(run, tmp_path, arguments, expected):
    status, _, err = run(*arguments)
    assert status == 2
    assert err.count("\n") == 1
    assert expected in err
    assert list(tmp_path.iterdir()) == []


def test_evaluate_works_in_memory_on_any_classifier(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = load_dataset("digits", "test").take(torch.arange(30))
    threat = Threat("L2", 0.5)
    report = evaluate(
        nearest_mean(), data.images.float() / 255, data.labels, names=("fgsm", "pgd"), threats=[threat]
    )
    assert report.n == 30
    assert report.worst[threat].robust_accuracy <= min(
        r.robust_accuracy for r in report.results[threat].values()
    )
    assert list(tmp_path.iterdir()) == []
    again = evaluate(nearest_mean(), data.images, data.labels, names=("fgsm", "pgd"), threats=[threat])
    np.testing.assert_array_equal(again.worst[threat].success, report.worst[threat].success)


def test_the_bar_sees_every_attack():
    data = load_dataset("digits", "test").take(torch.arange(8))
    labels = []

    @contextmanager
    def bar(label, total):
        labels.append((label, total))
        yield lambda progress: None

    target = Target("m", nearest_mean(), "0", Path())
    run_battery(target, samples_from(data.images, data.labels), ("fgsm",), [Threat("Linf", 0.1)], bar=bar)
    assert labels == [("m: fgsm Linf 0.1", 8)]


def test_paper_protocol_is_to_the_letter():
    """True labels, no clipping, random start, loss averaged over 128; cleverhans is the same inside the box."""
    names = ("pgd-paper", "pgd-cleverhans", "pgd-paper-250")
    records = {name: spec.record() for name, spec in battery(names, [Threat("L2", 1.0)])}
    wanted = {"protocol": "cleverhans", "labels": "true", "keep": "last", "step_size": 0.1, "steps": 100}
    wanted |= {"box": False, "averaged_over": 128, "random_start": True, "loss": "ce", "restarts": 1}
    paper = records["pgd-paper"]
    assert {key: paper[key] for key in wanted} == wanted
    assert records["pgd-cleverhans"] == paper | {"box": True}
    _, _, (_, fine) = battery(names, [Threat("L2", 3.5)])
    assert fine.record() == paper | {"eps": 3.5, "step_size": pytest.approx(0.01), "steps": 250}


def test_points_outside_the_box_are_said_and_count_for_nothing():
    """On black images a loss that wants darker pixels leaves [0, 1]: broken outside, unharmed inside."""

    class Sum(torch.nn.Module):
        def forward(self, x):
            total = x.flatten(1).sum(1)
            return torch.stack([total, torch.full_like(total, -0.5)], dim=1)

    images, labels = torch.zeros(6, 1, 2, 2), torch.zeros(6, dtype=torch.int64)
    threat = Threat("L2", 1.0)
    report = evaluate(Sum(), images, labels, names=("pgd-paper", "pgd-cleverhans"), threats=[threat])
    paper, inside = report.results[threat].values()
    assert (paper.robust_accuracy, inside.robust_accuracy) == (0.0, 1.0)
    assert paper.extra["left_box"].tolist() == [1.0] * 6
    assert any("6 of 6 points left [0, 1]" in line for line in paper.warnings)
    assert (paper.distance <= 1 + 1e-4).all()
    assert report.worst[threat].robust_accuracy == 1.0
    assert not report.worst[threat].warnings
    labels_shown = {name: attack_label(result) for name, result in report.results[threat].items()}
    assert labels_shown["pgd-paper"] == f"{labels_shown['pgd-cleverhans']} unclipped"
    with pytest.raises(InputError, match=r"may leave \[0, 1\]; add an attack inside"):
        battery(("pgd-paper",), [threat])


def test_cleverhans_is_left_out_at_l1_and_unknown_names_are_refused():
    assert [name for name, _ in battery(("pgd", "pgd-cleverhans"), [Threat("L1", 10.0)])] == ["pgd"]
    with pytest.raises(InputError, match="pgd-cleverhans"):
        battery(("pdg-cleverhans",), [Threat("L2", 1.0)])


def test_curves_never_rise():
    data = load_dataset("digits", "test").take(torch.arange(40))
    grid = [Threat("L2", eps) for eps in (0.9, 0.1, 0.4)]
    report = evaluate(nearest_mean(), data.images, data.labels, names=("fgsm",), threats=grid)
    curve = command.security_curve(report)
    assert list(curve.eps) == [0.0, 0.1, 0.4, 0.9]
    assert curve.accuracy[0] == report.clean_accuracy
    assert all(a >= b for a, b in zip(curve.accuracy, curve.accuracy[1:], strict=False))
    assert all(
        low <= share <= high for share, (low, high) in zip(curve.accuracy, curve.intervals, strict=True)
    )
