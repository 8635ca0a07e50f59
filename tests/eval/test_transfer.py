"""The transfer matrix: two linear models whose answers are known, resumed, refused where wrong."""

import json

import pytest
import torch
from torch import nn

import eval.transfer.matrix as module
from envs.errors import InputError
from eval.core.stats import wilson
from eval.core.targets import Target, model_sha256, samples_from
from eval.core.threats import Threat
from eval.transfer.command import main
from eval.transfer.matrix import fill, make_images, read_matrix

THREAT = Threat("L2", 0.3)  # pixels are a quarter from the border: reached by one, not by two at once


class Pixel(nn.Module):
    """Class 1 where one pixel is above a half; its gradient lies along that pixel alone."""

    def __init__(self, pixel):
        super().__init__()
        weight = torch.zeros(2, 4)
        weight[1, pixel], weight[0, pixel] = 1.0, -1.0
        self.weight = nn.Parameter(weight)

    def forward(self, x):
        return (x.flatten(1) - 0.5) @ self.weight.T


def target(pixel):
    model = Pixel(pixel).eval()
    return Target(f"pixel {pixel}", model, model_sha256(model), None)


@pytest.fixture
def samples():
    labels = torch.tensor([0, 1, 0, 1, 1])
    images = (0.25 + 0.5 * labels.float())[:, None].expand(5, 4).reshape(5, 1, 2, 2).contiguous()
    images[4, 0, 0, 1] = 0.2  # the second model errs on the last image
    return samples_from(images, labels)


def accuracies(matrix, models, craft):
    return [[matrix.entry(craft, a.sha256, b.sha256).accuracy for b in models] for a in models]


@pytest.mark.parametrize("craft", ["paper", "strong"])
def test_images_fool_their_own_model_and_not_one_that_looks_elsewhere(tmp_path, samples, craft):
    models = [target(0), target(1)]
    matrix = fill(tmp_path / "t.json", models, samples, THREAT, steps=40)
    assert matrix.entry("clean", models[1].sha256, models[1].sha256).correct == "11110"
    first, second = accuracies(matrix, models, craft)
    assert first[0] == 0
    assert first[1] == pytest.approx(0.8)  # as without an attack
    assert second[0] == 1
    entry = matrix.entry(craft, models[0].sha256, models[1].sha256)
    assert entry.ci95 == pytest.approx(wilson(4, 5))


def test_a_stopped_call_goes_on_and_a_further_model_costs_its_own_entries_alone(
    tmp_path, samples, monkeypatch
):
    models, path = [target(0), target(1), target(2)], tmp_path / "t.json"
    whole = fill(tmp_path / "whole.json", models, samples, THREAT, steps=5)
    made, make = [], module.make_images

    def stop(craft, model, *rest, **options):
        if len(made) == 3:
            raise KeyboardInterrupt
        made.append(craft)
        return make(craft, model, *rest, **options)

    monkeypatch.setattr(module, "make_images", stop)
    with pytest.raises(KeyboardInterrupt):
        fill(path, models[:2], samples, THREAT, steps=5)
    made.clear()
    monkeypatch.setattr(
        module,
        "make_images",
        lambda craft, *rest, **options: made.append(craft) or make(craft, *rest, **options),
    )
    fill(path, models[:2], samples, THREAT, steps=5)
    assert made == ["strong"]
    fill(path, models, samples, THREAT, steps=5)
    found = read_matrix(path)
    for craft in ("paper", "strong"):
        assert accuracies(found, models, craft) == accuracies(whole, models, craft)
    made.clear()
    fill(path, models, samples, THREAT, steps=5)
    assert not made
    with pytest.raises(InputError, match="other images, radius, steps or seed"):
        fill(path, models, samples, THREAT, steps=6)


@pytest.mark.parametrize("craft", ["paper", "strong"])
def test_images_attack_the_true_labels(craft):
    """An image that its own model gets wrong is pushed away from its label, not back to it."""
    model, eps = Pixel(0), 0.3
    image, label = torch.full((1, 1, 2, 2), 0.45), torch.tensor([1])  # the model says 0
    made = make_images(
        craft, model, image, label, Threat("L2", eps), steps=40, seed=0, ids=torch.zeros(1).long()
    )
    assert made[0, 0, 0, 0] == pytest.approx(0.45 - eps, abs=0.02)


def test_a_file_made_by_other_crafts_is_not_gone_on_with(tmp_path, samples):
    path, models = tmp_path / "t.json", [target(0), target(1)]
    fill(path, models, samples, THREAT, steps=5)
    content = json.loads(path.read_text())
    content["crafts"]["paper"]["labels"] = "predicted"
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match="made by an earlier version's crafts"):
        fill(path, models, samples, THREAT, steps=5)
    assert read_matrix(path).crafts["paper"]["labels"] == "predicted"
    fill(path, models, samples, THREAT, crafts=["strong"], steps=5)
    fill(path, models, samples, THREAT, steps=5, force=True)
    assert "labels" not in read_matrix(path).crafts["paper"]


@pytest.mark.parametrize(
    "content", ["", "[]", '{"question": 3}', '{"question": {}, "entries": [{}]}', "\xff"]
)
def test_damaged_files_are_refused_in_one_line(tmp_path, samples, content):
    path = tmp_path / "t.json"
    path.write_text(content, encoding="latin-1")
    with pytest.raises(InputError, match=r"t\.json") as caught:
        fill(path, [target(0)], samples, THREAT)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_the_command_writes_table_json_and_picture(tmp_path, capsys):
    models = ["tests.eval.test_transfer:first", "tests.eval.test_transfer:second"]
    options = ["--dataset", "digits", "--n", "30", "--steps", "5", "--device", "cpu", "--out", str(tmp_path)]
    assert main([*models, *options]) == 0
    out = capsys.readouterr().out
    assert out.count("shown to") == 6
    (path,) = tmp_path.glob("*.json")
    found = json.loads(path.read_text())
    assert len(found["entries"]) == 2 + 2 * 4
    assert {len(entry["correct"]) for entry in found["entries"]} == {30}
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert main([*models, *options, "--norm", "L1", "--crafts", "paper"]) != 0
    assert "--crafts strong" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["a"], "at least two"),
        (["a", "b", "--steps", "0"], "at least 1"),
        (["a", "b", "--crafts", "x"], "paper, strong"),
    ],
)
def test_wrong_calls_end_before_anything_is_loaded(argv, expected, capsys):
    assert main(argv) != 0
    assert expected in capsys.readouterr().err


def _net(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


def first():
    return _net(0)


def second():
    return _net(1)
