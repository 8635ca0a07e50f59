"""Pictures: what they show, for any number of models; the mechanism command; the training callback."""

import dataclasses
import json

import pytest
import torch
from matplotlib.colors import to_rgba
from matplotlib.text import Text
from stable_baselines3 import PPO
from stable_baselines3.common.logger import Figure, KVWriter, Logger
from torch import nn

from agents import ImageNetwork
from agents.config import TrainConfig
from agents.training.run import train as run_training
from envs import sb3_env
from envs.datasets import load_dataset
from envs.errors import InputError
from eval.core.plot_style import colour, save_figure, shorten
from eval.core.stats import wilson
from eval.core.targets import load_samples, load_target
from eval.core.threats import Threat
from eval.mechanism import command
from eval.mechanism.analysis import AnalysisOptions, analyse, shared_planes
from eval.mechanism.callback import PictureCallback
from eval.mechanism.entropy import EntropySplit
from eval.mechanism.landscape import Landscape
from eval.mechanism.landscape_plots import landscape_figure, shared_figure
from eval.mechanism.path_indicators import DynamicIndicators
from eval.mechanism.plots import (
    SecurityCurve,
    adversarial_grid,
    dynamic_figure,
    entropy_figure,
    security_figure,
)
from eval.report.gallery import read_gallery
from eval.report.safe_folder import Folder
from tests.eval.test_attack import MODEL


def texts(figure):
    return " ".join(text.get_text() for text in figure.findobj(Text))


def test_grid_names_predictions_and_magnifies(tmp_path):
    x = torch.full((2, 1, 4, 4), 0.5)
    adversarial = x.clone()
    adversarial[0, 0, 0, 0] += 0.1
    logits = torch.tensor([[9.0, 0.0], [9.0, 0.0]])
    figure = adversarial_grid(
        x, adversarial, torch.tensor([0, 0]), logits, logits.flip(1), ("cat", "dog"), "PGD"
    )
    assert len(figure.axes) == 6
    captions = [axes.get_title() for axes in figure.axes]
    assert captions[:2] == ["✓ cat 100 %"] * 2
    assert captions[4:] == ["✗ dog 100 %"] * 2
    assert captions[2] == "×5"
    magnified = figure.axes[2].images[0].get_array()
    assert magnified[0, 0] == pytest.approx(1.0)
    assert magnified[1, 1] == pytest.approx(0.5)
    save_figure(tmp_path / "grid.png", figure)
    assert (tmp_path / "grid.png").read_bytes()[:4] == b"\x89PNG"


def test_grid_shows_colour_images():
    x = torch.rand(1, 3, 4, 4)
    figure = adversarial_grid(x, x, torch.tensor([1]), torch.eye(2)[:1], torch.eye(2)[:1])
    assert figure.axes[0].images[0].get_array().shape == (4, 4, 3)
    assert figure.axes[0].get_title().startswith("✗ 0")


def test_security_curve_has_a_band_per_model():
    curve = SecurityCurve([0, 0.5, 1], [0.9, 0.5, 0.1], [wilson(k, 10) for k in (9, 5, 1)])
    figure = security_figure({"L2": {"a": curve, "b": curve}, "Linf": {"a": curve}})
    assert [len(axes.lines) for axes in figure.axes] == [2, 1]
    assert figure.axes[0].lines[0].get_ydata().tolist() == [0.9, 0.5, 0.1]
    assert [to_rgba(line.get_color()) for line in figure.axes[0].lines] == [
        to_rgba(colour(k)) for k in (0, 1)
    ]
    assert "eps (L2" in texts(figure)


def test_path_figure_survives_undefined_cosines():
    nan = torch.full((4, 3), float("nan"))
    item = DynamicIndicators(
        gradient_norm=torch.ones(5, 3),
        cosine=nan,
        same_sign=torch.ones(4, 3),
        dispersion=torch.linspace(0, 1, 5),
        drift=0.1,
        clamped=torch.ones(5, 3, dtype=torch.bool),
        clamped_cosine=torch.zeros(4, 3),
        clamped_dispersion=torch.ones(5),
        clamped_drift=0.9,
        loss=torch.ones(5, 3),
        correct=torch.ones(5),
        adversarial=torch.zeros(3, 1, 2, 2),
    )
    figure = dynamic_figure({"m": item}, Threat("L2", 1.0))
    both = dataclasses.replace(item, double=item)
    assert len(figure.axes) == 9
    assert figure.axes[3].lines[0].get_ydata().tolist() == [1] * 5
    assert figure.axes[4].lines[0].get_ydata().tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert figure.axes[2].lines[0].get_xdata().tolist() == [1, 2, 3, 4]
    assert [len(axes.lines) for axes in dynamic_figure({"m": both}, Threat("L2", 1.0)).axes][1:3] == [2, 2]
    assert item.figures()["cosine"]["median"] == [None] * 4


def test_entropy_figure_counts_correct_and_wrong():
    split = EntropySplit(torch.tensor([[5.0, 0], [0, 5.0], [0, 0.1]]), torch.tensor([0, 0, 0]))
    figure = entropy_figure({"a": (split, split), "b": (split, split)}, "under PGD")
    assert len(figure.axes) == 4
    assert "correct (1)" in texts(figure)
    assert "wrong (2)" in texts(figure)


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["L2", "Linf"])
def test_landscape_figure_has_every_panel_and_colours_classes(norm):
    line = torch.linspace(-3, 3, 9)
    value = line[None, :].expand(9, 9) - 0.5
    predicted = torch.where(value > 0, 7, 2)
    one = Landscape(line, value.exp().log1p(), value, (value < 0).float(), predicted, norm, 1.0, 1, 2)
    figure = landscape_figure({"a": one, "b": one}, [f"class{k}" for k in range(10)])
    panels = [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]
    assert len(panels) == 10
    region = panels[4]  # the last of its row to be drawn
    legend = [text.get_text() for text in region.get_legend().get_texts()]
    assert legend == ["class2 (true)", "class7"]
    codes = region.collections[0].get_array().reshape(9, 9)
    assert codes[0].tolist() == [0] * 5 + [1] * 4
    average = Landscape(line, value, value, torch.rand(9, 9), None, norm, 1.0, 4, None)
    assert "share classified correctly" in texts(landscape_figure({"a": average}))


@pytest.mark.slow
def test_landscape_figure_survives_flat_surfaces(tmp_path):
    line, flat = torch.linspace(-3, 3, 5), torch.zeros(5, 5)
    item = Landscape(line, flat, flat - 3, flat + 1, flat.long(), "L2", 1.0, 1, 0)
    save_figure(tmp_path / "flat.png", landscape_figure({"a": item}))


@pytest.mark.slow
def test_landscape_figure_masks_what_has_no_answer(tmp_path):
    line, nan = torch.linspace(-3, 3, 5), torch.full((5, 5), torch.nan)
    half = nan.clone()
    half[:, 2:] = torch.arange(3.0)
    predicted = torch.where(half.isnan(), -1, 1)
    items = [
        Landscape(line, values, values, torch.zeros(5, 5), labels, "L2", 1.0, 1, 0)
        for values, labels in ((half, predicted), (nan, predicted * 0 - 1))
    ]
    figure = landscape_figure({"half": items[0], "none": items[1]}, ["a", "b"])
    legends = [axes.get_legend() for axes in figure.axes]
    assert [text.get_text() for legend in legends if legend for text in legend.get_texts()] == [
        "no answer",
        "b",
        "no answer",
    ]
    save_figure(tmp_path / "masked.png", figure)
    assert items[1].figures()["cross_entropy"] == {"min": None, "max": None}


def test_shared_planes_have_one_colour_scale():
    target = load_target(MODEL)
    samples = load_samples(target, n=4, dataset="digits")
    options = AnalysisOptions(
        steps=3, resolution=3, average_images=1, average_resolution=3, plane_resolution=5, double=False
    )
    other = dataclasses.replace(target, name="twice", model=nn.Sequential(target.model, Twice()))
    analyses = [analyse(item, samples, Threat("L2", 0.5), options) for item in (target, other)]
    planes = shared_planes([target, other], samples, analyses, options)
    for owned in planes:  # the same points: twice the logits have twice the margin, and the same decisions
        torch.testing.assert_close(owned[1].margin, 2 * owned[0].margin)
        assert torch.equal(owned[1].correct, owned[0].correct)
    figure = shared_figure(["one", "twice"], planes)
    panels = [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]
    assert len(panels) == 8
    losses = [axes.collections[0] for axes in panels if "cross-entropy" in axes.get_title(loc="left")]
    assert len(losses) == 4
    assert len({(drawn.norm.vmin, drawn.norm.vmax) for drawn in losses}) == 1
    assert losses[0].norm.vmax == pytest.approx(
        max(float(item.cross_entropy.max()) for owned in planes for item in owned)
    )


class Twice(nn.Module):
    def forward(self, logits):
        return 2 * logits


def test_names_fit_legends_and_differ():
    names = ["a" * 60 + "1", "a" * 60 + "2", "short"]
    assert len(set(shorten(names))) == 3
    assert max(len(name) for name in shorten(names)) <= 40
    assert shorten(["short"]) == ["short"]


QUICK = (
    "--n",
    "12",
    "--steps",
    "3",
    "--resolution",
    "8",
    "--average-images",
    "2",
    "--average-resolution",
    "4",
    "--plane-resolution",
    "5",
)


@pytest.mark.slow
def test_mechanism_command_writes_figures_and_pictures(tmp_path, capsys):
    out = tmp_path / "m"
    arguments = [MODEL, "--dataset", "digits", "--out", str(out), *QUICK, "--no-progress"]
    assert command.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "input-gradient norm" in printed
    assert "published, float64" in printed
    assert "pgd-paper" in printed
    content = json.loads((out / "mechanism.json").read_text(), parse_constant=pytest.fail)
    assert [model["name"] for model in content["models"]] == [MODEL]
    first = content["models"][0]
    assert first["static"]["gradient_norm"]["n"] == 12
    for path in ("dynamic", "published_path"):
        for precision in (first[path], first[path]["float64"]):
            assert len(precision["cosine"]["median"]) == len(precision["clamped_cosine"]["median"]) == 2
            assert len(precision["clamped"]) == 3
    assert sum(first["entropy"]["clean"]["all"]["histogram"]) == 12
    assert first["landscape"]["single"]["resolution"] == 8
    expected = {"landscape", "landscape-average", "gradients", "path", "path-published", "entropy"}
    expected |= {"adversarial", "landscape-planes"}
    assert len(content["planes"]) == len(content["planes"][0]) == 1
    assert {path.stem for path in out.glob("*.png")} == expected
    assert len(read_gallery(Folder(out), "gallery.npz", most=99)) == 10


def test_the_same_question_has_the_same_answer():
    options = AnalysisOptions(steps=3, resolution=4, average_images=2, average_resolution=3)
    target = load_target(MODEL)
    samples = load_samples(target, n=6, dataset="digits")
    first, second = (analyse(target, samples, Threat("L2", 0.5), options) for _ in range(2))
    assert first.figures() == second.figures()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((MODEL, "--image", "99", "--n", "4"), "--image is 99"),
        ((MODEL, "--steps", "1"), "--steps is 1"),
        ((MODEL, "--loss", "cee"), "Did you mean 'ce'"),
        ((MODEL, "--norm", "L9"), "Linf, L2, L1"),
        ((), "no model given"),
    ],
)
def test_wrong_input_ends_with_one_line(capsys, tmp_path, arguments, expected):
    status = command.main([*arguments, "--dataset", "digits", "--no-progress", "--out", str(tmp_path / "m")])
    captured = capsys.readouterr()
    assert status == 2
    assert captured.err.count("\n") == 1
    assert expected in captured.err
    assert not (tmp_path / "m").exists()


class Recorder(KVWriter):
    def __init__(self):
        self.seen = []

    def write(self, key_values, key_excluded, step=0):
        self.seen += [(key, step) for key, value in key_values.items() if isinstance(value, Figure)]

    def close(self):
        pass


def train(callback, recorder):
    network = {"features_extractor_class": ImageNetwork, "features_extractor_kwargs": {"network": "mlp"}}
    env = sb3_env("digits", num_envs=16, seed=0)
    options = {"n_steps": 4, "batch_size": 32, "gamma": 0.0, "seed": 0}
    model = PPO("CnnPolicy", env, policy_kwargs=network | {"net_arch": []}, **options)
    model.set_logger(Logger(None, [recorder]))
    return model.learn(256, callback=callback)


@pytest.mark.slow
def test_callback_shows_pictures_and_leaves_training_alone():
    callback = PictureCallback(load_dataset("digits", "val"), every=100, images=12, steps=3)
    recorder = Recorder()
    watched, plain = train(callback, recorder), train(None, Recorder())
    for name, value in plain.policy.state_dict().items():
        torch.testing.assert_close(watched.policy.state_dict()[name], value, rtol=0, atol=0)
    assert sorted(key for key, _ in recorder.seen) == [
        f"pictures/{name}" for name in ("adversarial", "path", "security") for _ in range(2)
    ]
    pictures = callback.pictures()
    assert set(pictures) == {"adversarial", "path", "security"}
    line = pictures["security"].axes[0].lines[0].get_ydata()
    assert line[0] > line[-1]
    assert list(line) == sorted(line, reverse=True)
    assert "after 256 images" in texts(pictures["adversarial"])


@pytest.mark.slow
def test_a_run_shows_pictures_at_intervals(tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    options = {"network": "mlp", "progress": False, "attack": False, "total_images": 1024, "batch_size": 128}
    config = TrainConfig("reinforce", run_dir=tmp_path / "run", pictures_every=500, eval_every=256, **options)
    run = run_training(config)
    seen = events.EventAccumulator(str(run.path), {"images": 0}).Reload()
    for name in ("pictures/adversarial", "pictures/path", "pictures/security"):
        assert [image.step for image in seen.Images(name)] == [512, 1024]
    plain = run_training(dataclasses.replace(config, run_dir=tmp_path / "plain", pictures_every=None))
    assert run.model_path.read_bytes() == plain.model_path.read_bytes()


def test_callback_refuses_empty_intervals():
    with pytest.raises(InputError, match="every=0"):
        PictureCallback(load_dataset("digits", "val"), every=0)
