"""Presets: all of them can be trained, the paper's hold its published settings, and options override them."""

import dataclasses
from pathlib import Path

import pytest
import torch
from rich.console import Console

from agents.adversarial_config import AdversarialConfig
from agents.algorithms.registry import find_algorithm
from agents.config import ExplorationConfig
from agents.presets import PRESETS, SOURCES, describe, get_preset, print_presets, settings
from agents.train import run
from agents.training.factory import build_algorithm, build_env, check_names
from agents.training.resolve import resolve
from agents.training.schedule import learning_rate
from envs import ImageDataset
from envs.errors import InputError
from tests.support.agent_runs import summary

SMALL = [name for name, config in PRESETS.items() if config.network in ("small", "mlp")]


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_valid(name):
    config = get_preset(name)
    config.validate()
    check_names(config)
    assert config.preset == name
    assert describe(config)


def shown(dataset):
    """Images of the shape of a data set, few and random."""
    shape = {"digits": (1, 8, 8), "mnist": (1, 28, 28)}.get(dataset, (3, 32, 32))
    images = torch.randint(0, 256, (300, *shape), dtype=torch.uint8)
    return ImageDataset(dataset, "train", images, torch.arange(300) % 10, tuple("0123456789"))


@pytest.mark.slow
@pytest.mark.parametrize("name", [*SMALL, "paper-cnn4-cifar10-rl-adv", "paper-cnn4-cifar10-sl-adv-long"])
def test_presets_build(name):
    config = get_preset(name)
    data = shown(config.dataset)
    resolved = resolve(config, data)
    env = build_env(resolved, data)
    model = build_algorithm(resolved, env, data)
    direct = config.algo not in ("ppo", "a2c")
    assert (getattr(model, "adversarial", None) is None) == (
        config.adversarial.method == "none" or not direct
    )
    assert env.num_envs == config.images_per_step()


PUBLISHED = {  # batch, passes, rate, schedule, clipping, weight and start of the attacks
    "rl": (32, 100, 1e-3, "constant", 0.0, None, None),
    "rl-adv": (32, 100, 1e-3, "constant", 0.0, 0.2, 50),
    "rl-long": (256, 600, 1e-4, "constant", 0.0, None, None),
    "rl-adv-long": (256, 600, 1e-4, "constant", 0.0, 1.0, 400),
    "sl": (256, 100, 2e-4, "linear-floor", 1.0, None, None),
    "sl-adv": (256, 100, 2e-4, "linear-floor", 1.0, 1.0, 80),
    "sl-long": (256, 600, 2e-4, "linear-floor", 1.0, None, None),
    "sl-adv-long": (256, 600, 2e-4, "linear-floor", 1.0, 1.0, 400),
}


@pytest.mark.parametrize("regime", PUBLISHED)
@pytest.mark.parametrize("network", ["cnn6", "cnn4"])
@pytest.mark.parametrize("dataset", ["cifar10", "cifar100", "imagenet100"])
def test_the_papers_settings(network, dataset, regime):
    config = get_preset(f"paper-{network}-{dataset}-{regime}")
    rule = config.adversarial
    assert (config.network, config.dataset, config.augmentation) == (network, dataset, "paper")
    assert config.algo == ("reinforce" if regime.startswith("rl") else "supervised")
    found = (config.batch_size, config.passes, config.learning_rate, config.lr_schedule, config.max_grad_norm)
    assert (*found, rule.weight, rule.start) == PUBLISHED[regime]
    assert config.exploration == (
        ExplorationConfig(0.1, "batch") if regime.startswith("rl") else ExplorationConfig()
    )
    assert config.weight_decay == 0.01
    assert config.image_size == (32 if dataset == "imagenet100" else None)
    if config.algo == "supervised":
        assert (config.lr_warmup, config.lr_end) == (5, 0.1)
    if "adv" in regime:
        assert (rule.method, rule.eps, rule.norm, rule.rule) == ("fgsm", 0.01, "Linf", "add")
        assert rule.full_objective() == "own"
    else:
        assert rule == AdversarialConfig()


def test_the_papers_learning_rate_at_its_passes():
    """The published rule, max(.1, (100 - e) / 95) from pass 5 on, and its difference from a decay to 10 %."""
    paper = get_preset("paper-cnn6-cifar10-sl")
    rate = learning_rate(paper, find_algorithm("supervised"), paper.lr_warmup / paper.passes)
    shares = {e: rate(1 - e / 100) / 2e-4 for e in (0, 2.5, 5, 80, 90, 95, 100)}
    assert shares == pytest.approx({0: 0, 2.5: 0.5, 5: 1, 80: 0.211, 90: 0.105, 95: 0.1, 100: 0.1}, abs=5e-4)
    linear = learning_rate(
        dataclasses.replace(paper, lr_schedule="linear"), find_algorithm("supervised"), 0.05
    )
    assert [linear(1 - e / 100) / 2e-4 for e in (80, 90)] == pytest.approx([0.289, 0.195], abs=5e-4)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_says_what_is_published(name):
    found, source = settings(name), SOURCES[name]
    assert set(source.chosen or ()) <= set(found)
    published = {key for key, (_, known) in found.items() if known}
    assert bool(published) == name.startswith("paper-")
    assert published.isdisjoint(source.chosen or ())
    assert found["algo" if "algo" in found else "max_grad_norm"][1] == bool(published)


def test_only_commands_that_were_published_choose_nothing():
    whole = {name for name, source in SOURCES.items() if source.chosen == ()}
    assert whole == {
        "paper-cnn6-cifar10-rl-adv",
        "paper-cnn6-cifar10-rl-adv-long",
        "paper-cnn6-cifar10-sl-adv",
        "paper-cnn6-cifar100-rl-adv",
        "paper-cnn6-imagenet100-rl-adv",
    }


def test_the_table_of_the_documentation_is_that_of_the_presets():
    columns = {regime: settings(f"paper-cnn6-cifar10-{regime}") for regime in PUBLISHED}
    rows = ["| setting | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for key in dict.fromkeys(key for found in columns.values() for key in found):
        cells = [found.get(key, ("-", True)) for found in columns.values()]
        shown = [f"{value}" if published else f"*{value}*" for value, published in cells]
        rows.append(f"| `{key}` | " + " | ".join(shown) + " |")
    page = Path(__file__).parents[2] / "docs" / "reproduction.md"
    table = "\n".join(rows)
    assert table in page.read_text(), f"{page} should have this table:\n{table}"


def test_options_override_a_preset(tmp_path):
    path = tmp_path / "run"
    line = "--preset digits-sl-adv --network mlp --total-images 300 --adv-steps 1 --no-attack --no-progress"
    assert run([*line.split(), "--run-dir", str(path)]) == 0
    found = summary(path)
    assert (found["network"], found["images"]) == ("mlp", 320)
    assert found["adversarial"]["steps"] == 1
    assert found["adversarial"]["eps"] == 0.1


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("none", AdversarialConfig()),
        ("trades", AdversarialConfig("trades", eps=0.1, norm="Linf")),
        ("pgd", get_preset("digits-sl-adv").adversarial),
    ],
)
def test_another_method_keeps_the_ball_alone(method, expected, monkeypatch):
    seen = []
    monkeypatch.setattr("agents.training.run.train", seen.append)
    assert run(["--preset=digits-sl-adv", "--adversarial", method]) == 0
    assert seen[0].adversarial == expected
    assert dataclasses.replace(seen[0], adversarial=expected) == seen[0]


def test_an_unknown_preset_names_the_nearest(capsys):
    with pytest.raises(InputError, match="the nearest are paper-cnn6-cifar10-rl, "):
        get_preset("paper-cnn6-cifr10-rl")
    assert run(["--preset", "paper-cnn6-cifr10-rl"]) == 2
    assert capsys.readouterr().err.startswith("error: unknown preset 'paper-cnn6-cifr10-rl'")


def test_the_list_shows_every_preset(capsys):
    assert run(["--list-presets"]) == 0
    assert "digits-sl-adv" in capsys.readouterr().out
    console = Console(width=400, record=True)
    print_presets(console)
    text = console.export_text()
    for name in PRESETS:
        assert f" {name} " in text
    assert (
        "reinforce, cnn6, 600 passes, batch 256, rate 0.0001; fgsm Linf 0.01, weight 1, from pass 400" in text
    )
