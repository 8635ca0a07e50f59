"""Algorithms of Stable-Baselines3 and sb3-contrib by their import path, with all that a run has."""

import dataclasses

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

from agents import extract_classifier, load_classifier
from agents.adversarial_config import AdversarialConfig
from agents.algorithms.registry import find_algorithm
from agents.config import DQNConfig, ExplorationConfig, PPOConfig, TrainConfig
from agents.training.factory import build_algorithm, build_env
from agents.training.resolve import resolve
from agents.training.run import resume, train
from envs import load_dataset
from envs.errors import InputError
from tests.support.agent_runs import assert_same_runs, error_of, metrics, short, stopping

contrib = pytest.importorskip("sb3_contrib")
SMALL = {
    "total_images": 400,
    "batch_size": 20,
    "eval_every": 200,
    "ppo": PPOConfig(rollout=100),
    "dqn": DQNConfig(buffer_size=200, learning_starts=60, target_update_interval=100),
}


def stock(path, algo, **options):
    return dataclasses.replace(short(path, "ppo", **SMALL | options), algo=algo)


def built(algo, **options):
    data = load_dataset("digits")
    settings = resolve(stock(None, algo, **options), data)
    return build_algorithm(settings, build_env(settings, data), data)


def observations(count=200):
    return load_dataset("digits", "test").images[:count]


@pytest.mark.parametrize("algo", ["TRPO", "QRDQN", "MaskablePPO"])
def test_the_extracted_classifier_decides_as_the_policy(algo):
    model = built(f"sb3_contrib:{algo}")
    classifier = extract_classifier(model.policy).eval()
    images = observations()
    decided, _ = model.predict(images.numpy(), deterministic=True)
    assert np.array_equal(classifier(images / 255).argmax(1).numpy(), decided)


def test_the_logits_of_qr_dqn_are_the_means_of_its_quantiles():
    policy = contrib.qrdqn.CnnPolicy(
        spaces.Box(0, 255, (1, 36, 36), np.uint8), spaces.Discrete(5), lambda _: 1e-3, n_quantiles=7
    )
    images = torch.randint(0, 256, (9, 1, 36, 36), dtype=torch.uint8)
    logits = extract_classifier(policy).eval()(images / 255)
    assert torch.allclose(logits, policy.quantile_net(images).mean(1), atol=1e-6)


def test_options_reach_the_algorithm_and_those_without_use_are_named():
    options = {"ppo": PPOConfig(rollout=200, epochs=3, vf_coef=0.7), "max_grad_norm": 0.0, "compile": True}
    model = built("stable_baselines3:PPO", **options)
    assert (model.n_steps, model.batch_size, model.n_epochs, model.vf_coef) == (10, 20, 3, 0.7)
    assert (model.gamma, model.max_grad_norm, model.clip_range(1.0)) == (0.0, float("inf"), 0.2)
    spec = find_algorithm("sb3_contrib:TRPO")
    notes = spec.notes(stock(None, "sb3_contrib:TRPO", **options), spec.algorithm)
    assert notes.startswith("TRPO runs Stable-Baselines3's own updates")
    assert notes.endswith("it has no use for --ppo.epochs, --ppo.vf-coef, --max-grad-norm, --compile")
    model = built("sb3_contrib:QRDQN", exploration=ExplorationConfig(eps=0.3))
    assert (model.exploration_final_eps, model.learning_starts, model.replay_buffer.buffer_size) == (
        0.3,
        60,
        10,
    )


@pytest.mark.parametrize("algo", ["RecurrentPPO", "ARS"])
def test_policies_that_are_no_classifiers_are_refused(algo, capsys):
    message = error_of(capsys, ["--algo", f"sb3_contrib:{algo}", "--network", "mlp", "--no-progress"])
    assert "no classifier of single images" in message or "is no Stable-Baselines3 algorithm" in message


@pytest.mark.slow
@pytest.mark.parametrize(
    "algo", ["sb3_contrib:TRPO", "sb3_contrib:QRDQN", "stable_baselines3:A2C", "stable_baselines3:DQN"]
)
@pytest.mark.usefixtures("event_files_in_order")
def test_a_run_is_whole_and_a_stopped_one_continues_exactly(algo, tmp_path, monkeypatch):
    whole, path = tmp_path / "whole", tmp_path / "run"
    train(stock(whole, algo))
    with stopping(monkeypatch, 4), pytest.raises(KeyboardInterrupt):
        train(stock(path, algo))
    resume(path, progress=False, algo=algo)
    assert_same_runs(path, whole)
    lines = metrics(whole)
    assert {"train/reward", "train/accuracy", "train/learning_rate", "val/accuracy"} <= {
        key for line in lines for key in line
    }
    images = observations()
    logits = load_classifier(whole)(images / 255)
    assert torch.allclose(load_classifier(whole / "policy.zip")(images / 255), logits, atol=1e-6)
    stock_model = find_algorithm(algo).algorithm.load(whole / "policy.zip")
    decided, _ = stock_model.predict(images.numpy(), deterministic=True)
    assert np.array_equal(logits.argmax(1).numpy(), decided)


@pytest.mark.slow
def test_trpo_learns_digits(tmp_path):
    run = train(stock(tmp_path / "run", "sb3_contrib:TRPO", total_images=3_000, ppo=PPOConfig(rollout=300)))
    test = load_dataset("digits", "test")
    right = load_classifier(run.path)(test.images / 255).argmax(1) == test.labels
    assert right.float().mean() > 0.5


@pytest.mark.slow
def test_on_policy_algorithms_are_shown_attacked_images(tmp_path):
    adversarial = AdversarialConfig("pgd", steps=1, eps=0.1)
    attacked = train(stock(tmp_path / "attacked", "stable_baselines3:A2C", adversarial=adversarial)).path
    plain = train(stock(tmp_path / "plain", "stable_baselines3:A2C")).path
    assert (attacked / "model.safetensors").read_bytes() != (plain / "model.safetensors").read_bytes()
    assert "probe/accuracy" in metrics(attacked)[-2]


def tied(shape):
    """Return a network with what safetensors and state dicts of tensors alone cannot hold."""

    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(shape[1] * shape[2], shape[1] * shape[2])
            self.again = self.first  # one module under two names
            self.second = nn.Linear(shape[1] * shape[2], shape[1] * shape[2])
            self.second.weight = self.first.weight
            self.calls = {"seen": 0, "names": ["a", "b"]}

        def get_extra_state(self):
            return self.calls

        def set_extra_state(self, state):
            self.calls = state

        def forward(self, images):
            return self.second(self.again(images.flatten(1)).relu()).relu()

    return Tied()


class Unsavable(nn.Flatten):
    """Keeps what no file of weights can hold."""

    def get_extra_state(self):
        return {1, 2}


def unsavable(shape):
    return Unsavable()


def test_tied_weights_shared_modules_and_extra_state_are_saved_and_resumed(tmp_path, monkeypatch):
    whole, path, network = tmp_path / "whole", tmp_path / "run", f"{__name__}:tied"
    train(short(whole, "supervised", network=network, total_images=600))
    with stopping(monkeypatch, 8), pytest.raises(KeyboardInterrupt):
        train(short(path, "supervised", network=network, total_images=600))
    resume(path, progress=False, network=network)
    classifier = load_classifier(path)
    body = classifier.body.network
    assert body.second.weight is body.first.weight
    assert body.calls == {"seen": 0, "names": ["a", "b"]}
    images = observations() / 255
    assert torch.equal(classifier(images), load_classifier(whole)(images))
    assert torch.allclose(classifier(images), load_classifier(path / "policy.zip")(images), atol=1e-6)


def test_what_cannot_be_saved_is_found_before_training(tmp_path):
    with pytest.raises(InputError, match=r"_extra_state is a set, which cannot be saved; expected tensors"):
        train(short(tmp_path / "run", "supervised", network=f"{__name__}:unsavable"))
    assert not (tmp_path / "run").exists()


def test_the_defaults_of_a_class_stay_its_own():
    assert built("stable_baselines3:PPO").n_epochs == 10
    assert TrainConfig().ppo.epochs == 4
