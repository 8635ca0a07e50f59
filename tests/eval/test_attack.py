"""The attack command: results per image, resumed after any interruption, wrong input refused in one line."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from agents.common.protocols import CLEVERHANS_BATCH
from envs.datasets import load_dataset
from eval.attack import command, runner
from eval.attack.results import read_results
from eval.attack.runner import AttackSpec, run_attack, stored_results
from eval.core.targets import load_target, samples_from
from eval.core.threats import Threat

MODEL = "tests.eval.test_attack:nearest_mean"


def nearest_mean():
    """A linear classifier of the digits by the nearest class mean: about 90 % accurate, built without training."""
    data = load_dataset("digits", "train")
    images = data.images.flatten(1).float() / 255
    means = torch.stack([images[data.labels == k].mean(0) for k in range(10)])
    layer = nn.Linear(64, 10)
    with torch.no_grad():
        layer.weight.copy_(4 * means)
        layer.bias.copy_(-2 * means.square().sum(1))
    return nn.Sequential(nn.Flatten(), layer)


def not_a_model():
    return 7


def failing():
    raise RuntimeError("no weights here")


def five_classes():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 5))


@pytest.fixture
def run(tmp_path, capsys):
    """Run the command on digits and return (status, output, errors)."""

    def call(*arguments, target=MODEL):
        line = [
            target,
            "--dataset",
            "digits",
            "--results-dir",
            str(tmp_path / "r"),
            "--no-progress",
            *arguments,
        ]
        status = command.main(line)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


def only_file(tmp_path, pattern="*.json"):
    (path,) = (tmp_path / "r").glob(pattern)
    return path


def test_one_attack_leaves_one_file_and_prints_one_row(run, tmp_path):
    status, out, err = run("--attack", "pgd", "--norm", "L2", "--eps", "0.5", "--steps", "5", "--n", "64")
    assert (status, err) == (0, "")
    results = read_results(only_file(tmp_path))
    assert results.n == 64
    assert results.attack["steps"] == 5
    assert results.attack["averaged_over"] == CLEVERHANS_BATCH
    assert 0 < results.robust_accuracy < results.clean_accuracy
    assert (results.distance[results.success & results.clean_correct] > 0).all()
    assert (results.distance <= 0.5 * (1 + 1e-5)).all()
    for word in ("pgd-5", "L2 0.5", "normalized", f"{100 * results.robust_accuracy:.1f} %", "n = 64"):
        assert word in out
    assert set(results.broken_by) == {None, "clean", "pgd"}
    assert [name == "clean" for name in results.broken_by] == (~results.clean_correct).tolist()
    json.loads(only_file(tmp_path).read_text(), parse_constant=pytest.fail)
    assert not (tmp_path / "r" / ".partial").exists()


@pytest.mark.slow
def test_finished_attacks_are_reused_unless_forced(run, tmp_path, monkeypatch):
    arguments = ("--attack", "fgsm", "--n", "32")
    run(*arguments)
    before = only_file(tmp_path).read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(runner, "run_function", pytest.fail)
        status, out, _ = run(*arguments)
    assert status == 0
    assert "already done" in out
    assert only_file(tmp_path).read_bytes() == before
    assert "already done" not in run(*arguments, "--force")[1]
    run(*arguments, "--seed", "1")
    assert len(list((tmp_path / "r").glob("*.json"))) == 2


def test_a_damaged_result_is_named(run, tmp_path):
    run("--attack", "fgsm", "--n", "16")
    path = only_file(tmp_path)
    path.write_text(path.read_text()[:-40])
    status, _, err = run("--attack", "fgsm", "--n", "16")
    assert status == 2
    assert path.name in err
    assert run("--attack", "fgsm", "--n", "16", "--force")[0] == 0


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["normalized", "cleverhans"])
def test_an_interrupted_attack_goes_on_to_the_same_result(run, tmp_path, monkeypatch, protocol):
    arguments = (
        "--attack",
        "pgd",
        "--norm",
        "L2",
        "--eps",
        "0.6",
        "--steps",
        "6",
        "--n",
        "50",
        "--protocol",
        protocol,
    )
    arguments += ("--batch-size", "8", "--save-images")
    run(*arguments)
    whole, images = read_results(only_file(tmp_path)), load_file(only_file(tmp_path, "*.safetensors"))
    calls, real = [], runner.run_function

    def interrupted(*args, **kwargs):
        calls.append(args)
        if len(calls) in (3, 6):
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(runner, "run_function", interrupted)
    status, _, err = run(*arguments, "--force")
    assert status == 130
    assert "interrupted after 16 of 50 images; the same command goes on from there" in err
    parts = sorted((tmp_path / "r" / ".partial").rglob("*.safetensors"))
    assert len(parts) == 2
    parts[0].write_bytes(b"damaged")
    assert run(*arguments, "--force")[0] == 130
    assert run(*arguments, "--force")[0] == 0
    assert len(calls) == 3 + 3 + 4  # 7 parts, two of them interrupted and one damaged
    again = read_results(only_file(tmp_path))
    for name in ("indices", "label", "clean_correct", "success", "distance", "queries"):
        np.testing.assert_array_equal(getattr(again, name), getattr(whole, name))
    assert again.broken_by == whole.broken_by
    assert again.extra.keys() == whole.extra.keys()
    for name, values in whole.extra.items():
        np.testing.assert_array_equal(again.extra[name], values)
    torch.testing.assert_close(
        load_file(only_file(tmp_path, "*.safetensors"))["adversarial"], images["adversarial"]
    )
    assert not (tmp_path / "r" / ".partial").exists()


def test_outcomes_do_not_depend_on_the_batch_size():
    target = load_target(MODEL)
    data = load_dataset("digits", "test").take(torch.arange(40))
    spec = AttackSpec("pgd", Threat("L2", 0.6), {"steps": 8, "protocol": "cleverhans"})
    found = [
        run_attack(target, samples_from(data.images, data.labels), spec, batch_size=size) for size in (7, 40)
    ]
    np.testing.assert_array_equal(found[0].success, found[1].success)
    np.testing.assert_array_equal(found[0].extra["shortened"], found[1].extra["shortened"])
    np.testing.assert_allclose(found[0].distance, found[1].distance, rtol=1e-4)


def test_saved_images_are_those_that_broke_the_model(run, tmp_path):
    run("--attack", "fgsm", "--norm", "Linf", "--eps", "8/255", "--n", "40", "--save-images")
    saved = load_file(only_file(tmp_path, "*.safetensors"))
    results = read_results(only_file(tmp_path))
    data = load_dataset("digits", "test").take(saved["indices"])
    change = saved["adversarial"] - data.images.float() / 255
    assert change.abs().max() <= 8 / 255 + 1e-6
    wrong = nearest_mean()(saved["adversarial"]).argmax(1) != data.labels
    np.testing.assert_array_equal(wrong.numpy(), results.success)
    assert stored_results(only_file(tmp_path), with_images=True) is not None
    only_file(tmp_path, "*.safetensors").unlink()
    assert stored_results(only_file(tmp_path), with_images=True) is None


def test_targets_are_aimed_at(run, tmp_path):
    common = ("--attack", "pgd", "--norm", "L2", "--eps", "1", "--steps", "10", "--n", "40")
    for how in ("next", "random", "second", "least-likely"):
        assert run(*common, "--targeted", how)[0] == 0
    hits = {}
    for path in (tmp_path / "r").glob("*.json"):
        results = read_results(path)
        hits[results.attack["targeted"]] = results.extra["hit_target"].mean()
    assert hits["second"] > hits["next"] > 0
    assert hits["second"] > hits["least-likely"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--attack", "fgms"), "Did you mean 'fgsm'"),
        (("--attack", "fgsm", "--steps", "3"), "fgsm takes no option 'steps'"),
        (("--set", "queries"), "expected key=value"),
        (("--set", "steps=many"), "option steps of pgd is 'many'"),
        (("--set", "steps=true"), "option steps of pgd is True"),
        (("--targeted", "sideways"), "next, random, second, least-likely"),
        (("--norm", "L7"), "Linf, L2, L1"),
        (("--eps", "8"), "8/255"),
        (("--eps", "-1"), "eps is -1"),
        (("--norm", "L2", "--eps", "100"), "divide by 255"),
        (("--n", "0"), "--n is 0"),
        (("--batch-size", "0"), "--batch-size is 0"),
        (("--device", "tpu"), "device"),
        (("--split", "exam"), "split"),
        (("--network", "a:b"), "leave --network out"),
        (("--dataset", "digitz"), "digits"),
        (("--loss", "hinge"), "unknown loss 'hinge'"),
    ],
)
def test_wrong_input_ends_with_one_line(run, tmp_path, arguments, expected):
    status, out, err = run(*arguments)
    assert status == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert expected in err
    assert out == ""
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.slow
def test_transfer_takes_its_images_from_the_sources(run, tmp_path):
    common = ("--attack", "transfer", "--norm", "L2", "--eps", "0.8", "--n", "40", "--steps", "8")
    status, out, _ = run(*common, "--source", "tests.eval.test_robustness:blurred")
    assert status == 0
    assert "from tests.eval.test_robustness:blurred" in out
    results = read_results(only_file(tmp_path))
    assert results.attack["steps"] == 8
    assert results.attack["momentum"] == 1.0
    assert [source["name"] for source in results.attack["sources"]] == ["tests.eval.test_robustness:blurred"]
    assert results.clean_accuracy > results.robust_accuracy
    assert "already done" in run(*common, "--source", "tests.eval.test_robustness:blurred")[1]
    run(*common, "--source", MODEL)
    both = sorted(
        (read_results(path) for path in (tmp_path / "r").glob("*.json")), key=lambda r: r.robust_accuracy
    )
    assert both[0].attack["sources"][0]["name"] == MODEL  # white-box is stronger


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--attack", "transfer"), "add --source RUN"),
        (("--attack", "fgsm", "--source", MODEL), "leave --source out"),
        (
            ("--attack", "transfer", "--source", "tests.eval.test_attack:five_classes"),
            "needs logits of shape (1, 10)",
        ),
        (("--attack", "transfer", "--source", MODEL, "--queries", "7"), "takes no option 'queries'"),
    ],
)
def test_wrong_sources_end_with_one_line(run, arguments, expected):
    status, _, err = run(*arguments)
    assert status == 2
    assert err.count("\n") == 1
    assert expected in err


def test_odd_models_are_told_before_the_attack(run, monkeypatch):
    monkeypatch.setattr(
        "tests.eval.test_attack.five_classes", lambda: nn.Sequential(nearest_mean(), nn.Softmax(1))
    )
    status, _, err = run("--attack", "fgsm", "--n", "20", target="tests.eval.test_attack:five_classes")
    assert status == 0
    assert "returns probabilities, not logits" in err


@pytest.mark.slow
def test_nan_answers_are_errors_and_are_reported(run, tmp_path, monkeypatch):
    class Half(nn.Module):
        def forward(self, x):
            logits = nearest_mean()(x)
            return torch.where(x.flatten(1).sum(1, keepdim=True) > 20, torch.nan, logits)

    monkeypatch.setattr("tests.eval.test_attack.five_classes", Half)
    status, _, err = run("--attack", "fgsm", "--n", "20", target="tests.eval.test_attack:five_classes")
    assert status == 0
    assert "the model answered NaN on" in err
    results = read_results(only_file(tmp_path))
    assert results.clean_accuracy < 0.9
    assert (results.success >= ~results.clean_correct).all()


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("nowhere", "no classifier at 'nowhere'"),
        ("tests.eval.test_attack:not_a_model", "gave a int"),
        ("tests.eval.test_attack:failing", "no weights here"),
        ("tests.eval.test_attack:missing", "cannot build a model"),
        ("no_such_package:model", "cannot build a model"),
        ("tests.eval.test_attack:five_classes", "needs logits of shape (1, 10)"),
        ("torch.nn:Identity", "needs logits of shape (1, 10)"),
        ("tests", "not a run directory"),
    ],
)
def test_wrong_targets_end_with_one_line(run, target, expected):
    status, _, err = run(target=target)
    assert status == 2
    assert err.count("\n") == 1
    assert expected in err


def test_a_model_of_other_images_is_refused(run, monkeypatch):
    monkeypatch.setattr("tests.eval.test_attack.five_classes", lambda: nn.Conv2d(3, 4, 3))
    status, _, err = run(target="tests.eval.test_attack:five_classes")
    assert status == 2
    assert "does not take 1x8x8 images of digits" in err


def test_the_data_set_must_be_known(capsys):
    assert command.main([MODEL]) == 2
    assert "name one with --dataset" in capsys.readouterr().err
