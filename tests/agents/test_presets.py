"""Presets: all of them can be trained, the paper's hold its published settings, and options override them."""

import dataclasses

import pytest
import torch
from rich.console import Console

from agents.adversarial_config import AdversarialConfig
from agents.presets import PRESETS, describe, get_preset, print_presets
from agents.train import run
from agents.training.factory import build_algorithm, build_env, check_names
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


@pytest.mark.parametrize("name", [*SMALL, "paper-cnn4-cifar10-rl-adv", "paper-cnn4-cifar10-sl-adv-long"])
def test_presets_build(name):
    config = get_preset(name)
    data = shown(config.dataset)
    env = build_env(config, data)
    model = build_algorithm(config.algo, config, env, data)
    direct = config.algo not in ("ppo", "a2c")
    assert (getattr(model, "adversarial", None) is None) == (
        config.adversarial.method == "none" or not direct
    )
    assert env.num_envs == config.images_per_step()


@pytest.mark.parametrize("network", ["cnn6", "cnn4"])
@pytest.mark.parametrize("dataset", ["cifar10", "cifar100", "imagenet100"])
def test_the_papers_settings(network, dataset):
    presets = {
        (regime, form): get_preset(f"paper-{network}-{dataset}-{regime}{form}")
        for regime in ("rl", "sl", "rl-adv", "sl-adv")
        for form in ("", "-long")
    }
    for (regime, form), config in presets.items():
        assert (config.network, config.dataset, config.augmentation) == (network, dataset, "paper")
        assert config.algo == ("reinforce" if regime.startswith("rl") else "supervised")
        assert (config.batch_size, config.passes) == ((256, 600) if form else (32, 100))
        if regime != "sl-adv":
            assert config.learning_rate == (1e-4 if form else 1e-3)
        if regime.endswith("adv"):
            rule = config.adversarial
            assert (rule.method, rule.eps, rule.norm, rule.rule) == ("fgsm", 0.01, "Linf", "add")
            assert rule.full_objective() == "own"
            assert rule.start == (400 if form else 80)
            assert rule.weight == (1.0 if form else 0.2)
        else:
            assert config.adversarial == AdversarialConfig()
        assert config.exploration_of("reinforce") == (0.1, "batch")
    rate = presets["sl-adv", ""]
    assert (rate.learning_rate, rate.lr_warmup, rate.lr_schedule, rate.lr_end) == (2e-4, 5, "linear", 0.1)
    assert rate.max_grad_norm == 1.0


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
    console = Console(width=160, record=True)
    print_presets(console)
    text = console.export_text()
    for name in PRESETS:
        assert f" {name} " in text
    assert (
        "reinforce, cnn6, 600 passes, batch 256, rate 0.0001; fgsm Linf 0.01, weight 1, from pass 400" in text
    )
