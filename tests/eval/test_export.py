"""Exports: each is the model, can be read without this project, and appears whole or not at all."""

import dataclasses
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from agents.models.classifier import new_classifier
from agents.models.classifier_files import load_classifier
from envs.errors import InputError
from eval.attack.results import write_results
from eval.core.targets import load_samples, load_target
from eval.core.threats import Threat
from eval.export import command
from eval.export.card import Evaluation, model_info
from eval.export.formats import FORMATS, compare
from eval.export.layers import LayerNetwork, describe_layers
from eval.robustness.suite import run_battery

DOCS = Path(__file__).parents[2] / "docs" / "export.md"
WITH_ONNX = all(importlib.util.find_spec(name) for name in FORMATS["onnx"].packages)


def linear():
    """A model of somebody else: images in [0, 1] to logits."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


class Branching(nn.Module):
    """Cannot be traced: it looks at the pixels to decide what to do."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(64, 10)

    def forward(self, images):
        return self.head(images.flatten(1)) if images.sum() > 0 else self.head(-images.flatten(1))


def export(*arguments):
    return command.main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def exported(digits_run, tmp_path_factory):
    out = tmp_path_factory.mktemp("export") / "out"
    assert export(digits_run, out, "--n", 32) == 0
    return out


@pytest.mark.slow
def test_weights_and_json_rebuild_the_model_without_this_project(exported, digits_run, tmp_path):
    snippet = next(
        code for code in re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.S) if "load_file" in code
    )
    assert len([line for line in snippet.splitlines() if line.strip()]) <= 15
    images = np.random.default_rng(0).random((9, 1, 8, 8), dtype=np.float32)
    np.save(tmp_path / "images.npy", images)
    script = (
        "import numpy, sys, torch\ntorch.set_num_threads(1)\n"
        "images = torch.from_numpy(numpy.load('images.npy'))\n"
        + snippet.replace("OUT/", f"{exported}/")
        + "\nassert not {'agents', 'envs', 'attacks', 'eval'} & sys.modules.keys()\n"
        "numpy.save('logits.npy', rebuilt.detach().numpy())\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path)
    with torch.inference_mode():
        expected = load_classifier(digits_run)(torch.from_numpy(images)).numpy()
    found = np.load(tmp_path / "logits.npy")
    # another process may choose other kernels; float32 sums of some hundred terms in another order agree to 1e-5
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    np.testing.assert_array_equal(found.argmax(1), expected.argmax(1))
    assert torch.equal(  # this project reads it as well
        load_classifier(exported / "model.safetensors").head.weight, load_classifier(digits_run).head.weight
    )


def test_the_description_says_what_goes_in_and_out(exported):
    about = json.loads((exported / "model.json").read_text())
    assert about["input"] == {"name": "images", "shape": ["N", 1, 8, 8], "dtype": "float32", "range": [0, 1]}
    assert about["output"]["classes"] == [str(digit) for digit in range(10)]
    assert about["check"]["images"] == 32
    assert about["check"]["accuracy"] > 0.8
    entry = about["exports"]["safetensors"]
    assert entry["batch_sizes"] == [1, 7, 32]
    assert (entry["difference"], entry["changed"]) == (0, 0)
    assert entry["bytes"] == (exported / "model.safetensors").stat().st_size


@pytest.mark.slow
def test_every_format_is_the_model_for_any_number_of_images(digits_run, tmp_path, capsys):
    target = load_target(str(digits_run))
    kinds = [kind for kind in FORMATS.values() if WITH_ONNX or kind.name != "onnx"]
    found = command.export(target, load_samples(target, n=40), tmp_path / "out", kinds)
    assert all(agreement.changed == 0 for agreement in found.values())
    assert all(agreement.difference <= agreement.tolerance for agreement in found.values())
    images = torch.rand(3, 1, 8, 8)
    with torch.inference_mode():
        for kind in kinds:
            run = kind.load(tmp_path / "out" / kind.file)
            torch.testing.assert_close(run(images), target.model(images), atol=1e-4, rtol=1e-4)
    assert {path.name for path in tmp_path.iterdir()} == {"out"}
    printed = capsys.readouterr()
    assert printed.out == printed.err == ""
    if not WITH_ONNX:
        pytest.skip("ONNX left out: needs onnx, onnxruntime and onnxscript")


@pytest.mark.parametrize(
    ("network", "shape"),
    [("small", (1, 28, 28)), ("small", (3, 64, 48)), ("mlp", (3, 8, 8)), ("cnn4", (3, 9, 9)), ("cnn6", (1, 8, 8)),
     ("nature", (3, 36, 36))],
)  # fmt: skip
def test_chains_of_layers_are_described_exactly(network, shape):
    classifier = new_classifier(
        shape, 5, network, torch.full((shape[0],), 0.3), torch.full((shape[0],), 0.2), (16, "Tanh")
    )
    for layer in classifier.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(layer.running_mean)
            nn.init.uniform_(layer.running_var, 0.5, 2)
    classifier.eval()
    layers = json.loads(json.dumps(describe_layers(classifier)))
    images = torch.rand(4, *shape)
    with torch.inference_mode():
        assert torch.equal(LayerNetwork(layers, classifier.state_dict())(images), classifier(images))


@pytest.fixture(scope="module")
def attacked(digits_run, tmp_path_factory):
    """A run with results of two attacks, of another model, and a file that is none."""
    run = tmp_path_factory.mktemp("attacked") / "run"
    shutil.copytree(digits_run, run)
    target = load_target(str(run))
    samples = load_samples(target, n=20)
    threat = Threat("Linf", 0.1)
    found = run_battery(target, samples, ("fgsm", "pgd"), [threat], results_dir=run / "results")
    other = dataclasses.replace(
        found.worst[threat], attack=found.results[threat]["pgd"].attack, model={"sha256": "0"}
    )
    write_results(run / "results" / "pgd-of-others.json", other)
    (run / "results" / "notes.json").write_text("[]")
    (run / "results" / "audit-Linf-0.1-quick.json").write_text(
        json.dumps({"verdict": "sound", "headline": "sound", "norm": "Linf", "eps": 0.1, "n": 20,
                    "robust_accuracy": 0.25, "model": {"sha256": target.sha256}})
    )  # fmt: skip
    return run, found


def test_the_model_card_holds_the_numbers_of_the_result_files(attacked, tmp_path):
    run, found = attacked
    out = tmp_path / "out"
    assert export(run, out, "--n", 16, "--license", "apache-2.0") == 0
    card = (out / "README.md").read_text()
    front, body = card.split("---\n", 2)[1:]
    fields = dict(line.split(": ", 1) for line in front.splitlines())
    fields = {key: json.loads(value) for key, value in fields.items()}  # JSON's values are YAML's
    assert fields["license"] == "apache-2.0"
    assert "adversarial-robustness" in fields["tags"]
    worst = found.worst[Threat("Linf", 0.1)]
    (result,) = fields["model-index"][0]["results"]
    assert [metric["value"] for metric in result["metrics"][1:]] == [worst.robust_accuracy]
    rows = [line for line in body.splitlines() if line.startswith("| Linf 0.1")]
    assert len(rows) == 3
    assert f"{100 * worst.robust_accuracy:.1f} % [" in rows[-1]
    assert "worst case per image** of 2 attacks" in rows[-1]
    assert "- Linf 0.1, 20 images: **sound**; corrected robust accuracy 25.0 %" in body
    assert f"torch {torch.__version__.partition('+')[0]}" in body
    (snippet,) = re.findall(r"```python\n(.*?)```", body, re.S)
    spaces = {}
    exec(snippet.replace('"model.', f'"{out}/model.'), spaces)
    images = torch.rand(4, 1, 8, 8)
    torch.testing.assert_close(spaces["model"](images), load_classifier(run)(images))


def test_robustbench_gets_what_is_known_and_null_for_the_rest(attacked, tmp_path):
    run, found = attacked
    assert export(run, tmp_path / "out", "--n", 16) == 0
    info = json.loads((tmp_path / "out" / "model_info-Linf-0.1.json").read_text())
    threat = Threat("Linf", 0.1)
    assert {key for key, value in info.items() if value is None} == {
        "link", "authors", "venue", "reported", "autoattack_acc",
    }  # fmt: skip
    assert (info["dataset"], info["eps"], info["additional_data"]) == ("digits", "0.1", False)
    assert info["clean_acc"] == f"{100 * found.clean_accuracy:.2f}"
    ours = info["labelbandit"]
    assert [row["robust_accuracy"] for row in ours["attacks"]] == sorted(
        (item.robust_accuracy for item in found.results[threat].values()), reverse=True
    )
    assert ours["worst_case"][0]["ci95"] == list(found.worst[threat].interval)
    assert ours["audits"] == [{"verdict": "sound", "robust_accuracy": 0.25, "n": 20}]


@pytest.mark.parametrize(("version", "expected"), [("standard", "50.00"), ("plus", "50.00"), ("fast", None)])
def test_only_robustbenchs_own_autoattack_counts_as_such(attacked, version, expected):
    run, found = attacked
    target = load_target(str(run))
    samples = load_samples(target, n=20)
    threat = Threat("Linf", 0.1)
    success = np.arange(20) % 2 == 0
    success |= ~found.worst[threat].clean_correct
    result = dataclasses.replace(
        found.worst[threat],
        attack={"name": "autoattack", "norm": "Linf", "eps": 0.1, "version": version},
        success=success,
    )
    info = model_info(target, samples, Evaluation([result], [], []), threat, {})
    assert info["autoattack_acc"] == (expected and f"{100 * (1 - success.mean()):.2f}")
    assert info["additional_data"] is None


def test_a_model_without_results_has_a_card_that_says_so(exported):
    card = (exported / "README.md").read_text()
    assert "license" not in card
    assert "Its robustness has not been evaluated" in card
    assert not list(exported.glob("model_info*"))


def test_a_network_that_branches_has_no_list_of_layers():
    assert describe_layers(new_classifier((3, 16, 16), 2, "resnet18")) is None


def test_layers_of_unknown_kinds_are_not_built():
    weights = {"body.mean": torch.zeros(1), "body.std": torch.ones(1)}
    for layer in (
        {"type": "Module", "options": {}, "weights": {}},
        {"type": "Linear", "options": {"x": 1}, "weights": {}},
    ):
        with pytest.raises(InputError, match="the layers do not fit the weights"):
            LayerNetwork([layer], weights)


@pytest.mark.slow
def test_models_by_import_path_can_be_exported_as_programs(tmp_path):
    model = f"{__name__}:linear"
    assert export(model, tmp_path / "out", "--dataset", "digits", "--format", "torch-export", "--n", 8) == 0
    program = torch.export.load(tmp_path / "out" / "model.pt2").module()
    images = torch.rand(5, 1, 8, 8)
    torch.testing.assert_close(program(images), linear()(images))


def test_a_wrong_export_is_not_kept(exported, digits_run, tmp_path, capsys, monkeypatch):
    right = FORMATS["safetensors"]

    def blurred(model, example, path):
        other = load_classifier(digits_run)
        with torch.no_grad():
            other.head.bias[0] += 0.1
        right.write(other, example, path)

    monkeypatch.setitem(FORMATS, "safetensors", dataclasses.replace(right, write=blurred))
    assert export(digits_run, tmp_path / "out", "--n", 8) == 2
    assert re.search(
        r"logits of safetensors .* differ by 0\.1 .*nothing was written", capsys.readouterr().err
    )
    assert list(tmp_path.iterdir()) == []
    before = {path.name: path.read_bytes() for path in exported.iterdir()}
    assert export(digits_run, exported, "--n", 8, "--force") == 2
    assert {path.name: path.read_bytes() for path in exported.iterdir()} == before
    assert len(list(exported.parent.iterdir())) == 1


def test_an_interrupted_export_leaves_nothing(digits_run, tmp_path, monkeypatch):
    def stopped(model, example, path):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setitem(FORMATS, "safetensors", dataclasses.replace(FORMATS["safetensors"], write=stopped))
    assert export(digits_run, tmp_path / "out", "--n", 8) == 130
    assert list(tmp_path.iterdir()) == []


def test_force_replaces_an_export_and_nothing_else(digits_run, tmp_path, capsys):
    out = tmp_path / "out"
    assert export(digits_run, out, "--n", 8) == 0
    first = (out / "model.json").read_text()
    assert export(digits_run, out, "--n", 9) == 2
    assert "holds an export; choose another OUT or replace it with --force" in capsys.readouterr().err
    assert export(digits_run, out, "--n", 9, "--force") == 0
    assert (out / "model.json").read_text() != first
    (out / "thesis.tex").touch()
    assert export(digits_run, out, "--n", 9, "--force") == 2
    assert "is not empty and no export of labelbandit" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("RUN", "no/where"), r"no/where: .*no is no directory; make it first"),
        (
            ("RUN", "out", "--license", "My own"),
            r"--license is 'My own'; expected an identifier in lower case",
        ),
        (("RUN", "file"), r"file is no directory; choose another OUT"),
        (("RUN", "out", "--format", "tar"), r"'tar'.*see python -m eval\.export --help"),
        (("nowhere", "out"), r"no classifier at 'nowhere'"),
        ((f"{__name__}:linear", "out", "--dataset", "digits"), r"not a Sequential; use torch-export or onnx"),
        ((f"{__name__}:linear", "out"), r"name one with --dataset"),
        (
            (f"{__name__}:Branching", "out", "--dataset", "digits", "--format", "torch-export"),
            r"torch\.export cannot trace the model .*must not branch on pixel values",
        ),
    ],
)
def test_wrong_uses_end_with_one_line(digits_run, tmp_path, monkeypatch, capsys, arguments, expected):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    assert export(*(str(digits_run) if part == "RUN" else part for part in arguments)) == 2
    error = capsys.readouterr().err
    assert re.search(expected, error)
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_missing_packages_are_named_before_work_starts(tmp_path, capsys, monkeypatch):
    without = dataclasses.replace(FORMATS["onnx"], packages=("no_such_package",))
    monkeypatch.setitem(FORMATS, "onnx", without)
    assert export("nowhere", tmp_path / "out", "--format", "onnx") == 2
    assert 'needs no_such_package; install with: pip install -e ".[onnx]"' in capsys.readouterr().err


def test_a_comparison_sees_shapes_and_infinities():
    images = torch.rand(3, 1, 2, 2)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    with pytest.raises(InputError, match=r"gives logits \(1, 4\) for 1 images, the model \(1, 2\)"):
        compare(model, nn.Flatten(), images, "x")
    with pytest.raises(InputError, match="differ by"):
        compare(model, lambda x: model(x) * float("nan"), images, "x")
    with pytest.raises(InputError, match="x does not run on 3 images"):
        compare(model, lambda x: model(x) if len(x) == 1 else 1 / 0, images, "x")
