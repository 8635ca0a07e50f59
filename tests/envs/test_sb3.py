import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor, is_vecenv_wrapped

from envs import ImageTask, InputError, sb3_env
from envs.sb3 import ImageVecEnv
from tests.support.env_toys import quadrants, random_images

DATA = random_images(50)
OPTIONS: list[dict[str, Any]] = [
    {},
    {"augmentation": "paper", "reward": "signed", "label_noise": 0.3},
    {"length": 4},
    {"length": 5, "stop_on_error": True, "augmentation": "standard"},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_it_equals_sb3s_loop_over_monitored_scalar_environments(options: dict[str, Any]) -> None:
    name = "ImageEpisode-v0" if "length" in options else "ImageBandit-v0"
    loop = DummyVecEnv([lambda: Monitor(gym.make(f"envs:{name}", dataset=DATA, **options))] * 4)
    env = sb3_env(DATA, 4, monitor=True, **options)
    assert (env.observation_space, env.action_space) == (loop.observation_space, loop.action_space)
    assert env.seed(7) == loop.seed(7) == [7, 8, 9, 10]
    np.testing.assert_array_equal(env.reset(), loop.reset())
    generator = np.random.default_rng(0)
    for _ in range(15):
        guesses = generator.integers(4, size=4)
        actions = np.where(generator.random(4) < 0.7, env.task.labels.numpy(), guesses)
        got, expected = env.step(actions), loop.step(actions)
        for value, reference in zip(got[:3], expected[:3], strict=True):
            np.testing.assert_array_equal(value, reference)
            assert value.dtype == reference.dtype
        for info, reference in zip(got[3], expected[3], strict=True):
            assert ("episode" in info) == ("episode" in reference)
            if "episode" in reference:
                assert {key: info["episode"][key] for key in "rl"} == {
                    key: reference["episode"][key] for key in "rl"
                }
                assert info["episode"]["t"] >= 0
            if "length" in options and "terminal_observation" in reference:
                np.testing.assert_array_equal(info["terminal_observation"], reference["terminal_observation"])
            else:
                assert "terminal_observation" not in info


def test_infos_are_shared_while_there_is_nothing_to_say() -> None:
    env = sb3_env(DATA, 4, length=3, seed=0)
    env.reset()
    seen = [env.step(np.zeros(4, dtype=int))[3] for _ in range(6)]
    assert [any(infos) for infos in seen] == [False, False, True] * 2
    assert seen[0] is seen[1] is seen[3]
    bandit = sb3_env(DATA, 4, seed=0)
    bandit.reset()
    assert bandit.step(np.zeros(4, dtype=int))[3] == [{}] * 4


def test_returned_arrays_are_never_written_again() -> None:
    env = sb3_env(DATA, 4, seed=0)
    kept = [env.reset()]
    copies = [kept[0].copy()]
    for _ in range(3):
        observations, *_ = env.step(np.zeros(4, dtype=int))
        kept.append(observations)
        copies.append(observations.copy())
    kept[0][:] = 0
    for array, copy in list(zip(kept, copies, strict=True))[1:]:
        np.testing.assert_array_equal(array, copy)
    np.testing.assert_array_equal(DATA.images[env.task.indices], kept[-1])


@pytest.mark.parametrize("monitor", [False, True])
def test_tensors_hold_the_same_as_arrays(monitor: bool) -> None:
    options: dict[str, Any] = {"seed": 3, "length": 3, "augmentation": "paper", "monitor": monitor}
    arrays, tensors = sb3_env(DATA, 4, **options), sb3_env(DATA, 4, tensors=True, **options)
    np.testing.assert_array_equal(arrays.reset(), tensors.reset())
    for _ in range(5):
        actions = arrays.task.labels
        got, expected = tensors.step(actions), arrays.step(actions.numpy())
        assert [value.dtype for value in got[:3]] == [torch.uint8, torch.float32, torch.bool]
        for value, reference in zip(got[:3], expected[:3], strict=True):
            np.testing.assert_array_equal(value, reference)
        episodes = [[info.get("episode", {}).get("r") for info in infos] for infos in (got[3], expected[3])]
        assert episodes[0] == episodes[1]


def test_seeding() -> None:
    first = sb3_env(DATA, 4, seed=1)
    images = first.reset()
    second = sb3_env(DATA, 4)
    second.seed(1)
    np.testing.assert_array_equal(second.reset(), images)
    assert not np.array_equal(second.reset(), images)  # goes on with the draws
    second.seed(1)
    np.testing.assert_array_equal(second.reset(), images)
    half = sb3_env(DATA, 2, seed=1, shard=(1, 2))
    np.testing.assert_array_equal(half.reset(), images[2:])


def test_the_interface_of_vecenv() -> None:
    env = sb3_env(DATA, 3, length=2)
    assert isinstance(env, ImageVecEnv)
    assert isinstance(env.task, ImageTask)
    assert env.get_attr("length") == [2, 2, 2]
    assert env.get_attr("render_mode", [0, 2]) == [None, None]
    assert env.has_attr("task")
    assert not env.has_attr("colour")
    assert env.env_is_wrapped(Monitor) == [False] * 3
    assert sb3_env(DATA, 3, monitor=True).env_is_wrapped(Monitor, indices=1) == [True]
    env.set_attr("colour", 3)
    assert env.get_attr("colour", 1) == [3]
    with pytest.raises(InputError, match="share 'colour'"):
        env.set_attr("colour", 3, indices=0)
    with pytest.raises(AttributeError, match="no method 'fly'"):
        env.env_method("fly")
    env.close()


def test_stepping_before_a_reset_is_named() -> None:
    with pytest.raises(InputError, match=r"call reset"):
        sb3_env(DATA, 3).step(np.zeros(3, dtype=int))


def test_pictures() -> None:
    env = sb3_env(DATA, 4, seed=0, render_mode="rgb_array")
    scalar = gym.make("envs:ImageBandit-v0", dataset=DATA, render_mode="rgb_array")
    env.reset()
    scalar.reset(seed=2)
    env.step(np.full(4, 1))
    scalar.step(1)
    picture = scalar.render()
    np.testing.assert_array_equal(env.env_method("render", indices=2)[0], picture)
    tiled = env.render()
    assert tiled is not None
    assert tiled.shape == (2 * picture.shape[0], 2 * picture.shape[1], 3)


@pytest.mark.parametrize("actions", [[0, 1], [0, 1, 4], [0.0, 1.0, 2.0]])
def test_wrong_actions_are_named(actions: list[float]) -> None:
    env = sb3_env(DATA, 3, seed=0)
    env.reset()
    with pytest.raises(InputError, match=r"actions .*expected"):
        env.step(np.array(actions))


def test_sb3s_statistics_and_evaluation_work_without_warnings() -> None:
    env = sb3_env(DATA, 4, seed=0, length=5, monitor=True)
    model = PPO("MlpPolicy", env, n_steps=10, batch_size=20, n_epochs=1, device="cpu").learn(80)
    assert {info["l"] for info in model.ep_info_buffer} == {5}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rewards, lengths = evaluate_policy(model, env, 12, return_episode_rewards=True)
    assert lengths == [5] * 12
    assert all(0 <= reward <= 5 for reward in rewards)
    wrapped = VecMonitor(sb3_env(DATA, 4, length=5))
    assert is_vecenv_wrapped(wrapped, VecMonitor)
    wrapped.reset()
    infos = [wrapped.step(np.zeros(4, dtype=int))[3] for _ in range(5)]
    assert [info["episode"]["l"] for info in infos[-1]] == [5] * 4
    assert "episode" not in infos[0][0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("algorithm", "options", "steps"),
    [
        (PPO, {"n_steps": 4, "batch_size": 64, "n_epochs": 4, "learning_rate": 1e-2}, 3000),
        (A2C, {"n_steps": 2, "learning_rate": 1e-2}, 3000),
        (
            DQN,
            {"learning_starts": 256, "train_freq": 1, "batch_size": 128, "target_update_interval": 32}
            | {"learning_rate": 3e-3, "buffer_size": 5000, "exploration_fraction": 0.3},
            5000,
        ),
    ],
)
@pytest.mark.parametrize("length", [1, 4])
def test_sb3s_algorithms_learn(algorithm: Any, options: dict[str, Any], steps: int, length: int) -> None:
    data = quadrants()
    env = sb3_env(data, 32, length=length)
    policy = {"net_arch": [32]}
    model = algorithm("MlpPolicy", env, gamma=0.0, seed=0, device="cpu", policy_kwargs=policy, **options)
    model.learn(steps)
    predicted, _ = model.predict(data.images.numpy(), deterministic=True)
    assert np.mean(predicted == data.labels.numpy()) > 0.95


def test_set_attr_changes_the_task_or_refuses():
    env = sb3_env("digits", 2, seed=0)
    env.reset()
    env.set_attr("length", 3)
    assert [env.step(np.array([0, 0]))[2].tolist() for _ in range(4)] == [
        [False] * 2,
        [False] * 2,
        [True] * 2,
        [False] * 2,
    ]
    env.set_attr("reward_matrix", torch.full((10, 10), 7.0))
    assert env.step(np.array([0, 0]))[1].tolist() == [7.0, 7.0]
    env.set_attr("note", "mine")
    env.set_attr("note", "again")
    assert env.get_attr("note") == ["again"] * 2
    for name, value in (
        ("length", 0),
        ("reward_matrix", "x"),
        ("num_envs", 5),
        ("images", None),
        ("label_noise", 0.5),
    ):
        with pytest.raises(InputError, match=name if name != "reward_matrix" else "reward"):
            env.set_attr(name, value)
