"""Algorithms by name and by import path: what a run must know of each stands in its spec."""

import dataclasses

import pytest

from agents import AlgorithmSpec, Reinforce, register_algorithm
from agents.algorithms.registry import algorithm_names, find_algorithm
from agents.algorithms.single_pass import SinglePassAlgorithm, build_single_pass
from agents.config import TrainConfig
from agents.training.factory import build_algorithm, build_env
from agents.training.resolve import resolve
from agents.training.run import resume, train
from envs import load_dataset
from envs.errors import InputError
from tests.support.agent_runs import short, stopping, summary


class Doubled(Reinforce):
    """REINFORCE on twice the loss."""

    def loss(self, logits, batch):
        return 2 * super().loss(logits, batch)


class Squared(SinglePassAlgorithm):
    """Squared error of the logits; no relative of a named algorithm."""

    def choose_actions(self, logits):
        return logits.argmax(-1)

    def loss(self, logits, batch):
        return ((logits - batch.action_rewards) ** 2).mean()

    full_information = True


DOUBLED = f"{__name__}:Doubled"


def test_the_names_are_those_of_the_documentation():
    assert {"a2c", "dqn", "ppo", "reinforce", "epg", "supervised"} <= set(algorithm_names())
    assert "dqn" not in algorithm_names(in_schedules=True)


def test_a_subclass_is_known_by_its_import_path_as_its_nearest_registered_ancestor():
    spec = find_algorithm(DOUBLED)
    assert spec == dataclasses.replace(find_algorithm("reinforce"), algorithm=Doubled)
    assert find_algorithm(f"{__name__}:Squared").adversarial == "loss"
    assert not find_algorithm("stable_baselines3:PPO").tensors


def test_the_same_name_for_another_algorithm_is_refused():
    register_algorithm("reinforce", find_algorithm("reinforce"))
    with pytest.raises(InputError, match="algorithm 'reinforce' is registered already"):
        register_algorithm("reinforce", AlgorithmSpec(Doubled, build_single_pass))


@pytest.mark.parametrize("name", ["ppo", "a2c", "dqn", "reinforce", "epg", "supervised"])
def test_defaults_depend_on_the_algorithm_and_options_go_first(name):
    data = load_dataset("digits")
    phase = resolve(TrainConfig(algo=name), data).phases[0]
    expected = {  # exploration, its mode, learning rate at the start, entropy bonus
        "ppo": (0.0, "mixture", 2e-3, 0.0),
        "a2c": (0.1, "mixture", 1e-3, 0.1),
        "dqn": (0.05, "batch", 2e-3, 0.0),
    }.get(name, (0.1, "batch", 2e-3, 0.0))
    found = (phase.exploration, phase.exploration_mode, phase.learning_rate(1.0), phase.ent_coef)
    assert found == pytest.approx(expected) if name == "dqn" else found == expected
    given = dataclasses.replace(
        TrainConfig(algo=name, learning_rate=0.5),
        exploration=dataclasses.replace(TrainConfig().exploration, eps=0.3, mode="mixture"),
        ppo=dataclasses.replace(TrainConfig().ppo, ent_coef=0.2),
    )
    phase = resolve(given, data).phases[0]
    found = (phase.exploration, phase.exploration_mode, phase.learning_rate(1.0), phase.ent_coef)
    assert found == (0.3, "mixture", 0.5, 0.2)


def test_a_registered_algorithm_trains_in_schedules(tmp_path):
    register_algorithm(
        "squared", AlgorithmSpec(Squared, build_single_pass, adversarial="loss", learning_rate=0.5)
    )
    path = train(short(tmp_path / "run", "schedule", schedule="squared:0.2,reinforce:0.1")).path
    assert summary(path)["algo"] == "squared:0.2,reinforce:0.1"
    settings = resolve(short(None, "schedule", schedule="squared:0.2,reinforce:0.1"), load_dataset("digits"))
    model = build_algorithm(settings, build_env(settings, load_dataset("digits")), load_dataset("digits"))
    assert type(model) is Squared
    assert model.lr_schedule(1.0) == 1e-3


def test_an_algorithm_by_import_path_is_named_again_to_resume(tmp_path, monkeypatch):
    """Files do not name code to be run: the user does, and the line that a stopped run prints has it."""
    path = tmp_path / "run"
    with stopping(monkeypatch, 3), pytest.raises(KeyboardInterrupt, match=rf"--algo {DOUBLED}$"):
        train(short(path, "reinforce", algo=DOUBLED))
    with pytest.raises(InputError, match=rf"names the algorithm '{DOUBLED}'.*add --algo {DOUBLED}"):
        resume(path, progress=False)
    resume(path, progress=False, algo=DOUBLED)
    assert summary(path)["images"] == 1_000
