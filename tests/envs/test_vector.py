from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers.vector import DictInfoToList, RecordEpisodeStatistics

from envs import InputError
from envs.checker import check_vector_env
from envs.vector import ImageEpisodeVector
from tests.support.env_toys import random_images

DATA = random_images(50)
OPTIONS = [
    ("ImageBandit-v0", {}),
    ("ImageBandit-v0", {"augmentation": "paper", "reward": "signed", "label_noise": 0.4}),
    ("ImageEpisode-v0", {"length": 4}),
    ("ImageEpisode-v0", {"length": 5, "stop_on_error": True, "augmentation": "standard"}),
    ("ImageEpisode-v0", {"length": 3, "reward": np.arange(16).reshape(4, 4) / 7}),
]


def make_vec(name: str, num_envs: int = 3, **options: Any) -> gym.vector.VectorEnv:
    return gym.make_vec(
        f"envs:{name}",
        num_envs=num_envs,
        vectorization_mode="vector_entry_point",
        **{"dataset": DATA, **options},
    )


@pytest.mark.parametrize("output", ["numpy", "torch"])
@pytest.mark.parametrize(("name", "options"), OPTIONS)
def test_the_vector_environment_equals_scalar_ones(name: str, options: dict[str, Any], output: str) -> None:
    vector_env = make_vec(name, output=output, **options)
    check_vector_env(vector_env, lambda: gym.make(f"envs:{name}", dataset=DATA, **options), steps=8)


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_the_checker_accepts_gymnasiums_own_loop(mode: AutoresetMode) -> None:
    def make() -> gym.Env:
        return gym.make("CartPole-v1", max_episode_steps=7)

    check_vector_env(SyncVectorEnv([make] * 2, autoreset_mode=mode), make, steps=20)


class Broken(ImageEpisodeVector):
    """An environment with one fault, to see whether the checker finds it."""

    def __init__(self, fault: str) -> None:
        super().__init__(3, DATA, length=3)
        self.fault = fault
        if fault == "mode":
            self.metadata = {**self.metadata, "autoreset_mode": "SameStep"}
        if fault == "space":
            self.single_action_space = gym.spaces.Discrete(5)

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        if self.fault == "seeds" and isinstance(seed, int):
            seed = [seed] * 3
        if self.fault == "list" and isinstance(seed, list):
            seed = seed[0]
        self.buffer, infos = super().reset(seed=seed, options=options)
        return self.buffer, infos

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        observations, rewards, terminated, truncated, infos = super().step(actions)
        if self.fault == "buffer":
            self.buffer[:] = observations
            observations = self.buffer
        if self.fault == "dtype":
            rewards = rewards.astype(np.float32)
        if self.fault == "rewards":
            rewards[1] += 1e-6
        if self.fault == "truncated":
            truncated, terminated = terminated, truncated
        if self.fault == "infos":
            infos.pop("label", None)
        if self.fault == "final_info" and "final_info" in infos:
            infos["final_info"]["index"] += 1
        if self.fault == "final_obs" and "final_obs" in infos:
            infos["final_obs"] = observations
        return observations, rewards, terminated, truncated, infos


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("mode", "not an AutoresetMode"),
        ("space", "single_action_space is Discrete.5"),
        ("seeds", r"after reset\(seed=123\): observations\[1\]"),
        ("list", r"after reset\(seed=\[.*observations\[1\]"),
        ("buffer", "share memory"),
        ("dtype", "step 0 .*rewards are float32, not float64"),
        ("rewards", r"rewards\[1\]"),
        ("truncated", r"step 2 .*terminations\[0\]"),
        ("infos", "infos have the keys"),
        ("final_info", r"final_info: infos\['index'\]"),
        ("final_obs", r"infos\['final_obs'\]"),
    ],
)
def test_the_checker_finds(fault: str, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_vector_env(
            Broken(fault), lambda: gym.make("envs:ImageEpisode-v0", dataset=DATA, length=3), steps=6
        )


def test_final_observations_follow_gymnasiums_convention() -> None:
    env = make_vec("ImageEpisode-v0", length=9, stop_on_error=True)
    before, infos = env.reset(seed=0)
    labels = DATA.labels[infos["index"]].numpy()
    actions = labels.copy()
    actions[1] = (labels[1] + 1) % 4
    after, rewards, terminated, truncated, infos = env.step(actions)
    assert terminated.tolist() == infos["_final_obs"].tolist() == [False, True, False]
    assert infos["final_obs"].dtype == object
    assert infos["final_obs"][0] is None
    np.testing.assert_array_equal(infos["final_obs"][1], before[1])
    assert infos["final_info"]["label"][1] == labels[1]
    assert infos["_label"].tolist() == [True, False, True]
    np.testing.assert_array_equal(after, DATA.images[infos["index"]])
    assert rewards.tolist() == [1, 0, 1]
    assert not truncated.any()
    per_env = DictInfoToList(env).step(np.zeros(3, dtype=int))[-1]
    assert per_env[0]["index"] == env.task.indices[0]


def test_record_episode_statistics() -> None:
    env = RecordEpisodeStatistics(make_vec("ImageEpisode-v0", num_envs=2, length=3))
    _, infos = env.reset(seed=0)
    for _ in range(3):
        labels = DATA.labels[infos["index"]].numpy()
        *_, infos = env.step(np.array([labels[0], (labels[1] + 1) % 4]))
    assert infos["episode"]["r"].tolist() == [3, 0]
    assert infos["episode"]["l"].tolist() == [3, 3]


def test_batched_spaces_are_made_when_asked_for() -> None:
    env = make_vec("ImageBandit-v0", num_envs=4096)
    env.reset(seed=0)
    env.step(np.zeros(4096, dtype=int))
    assert "observation_space" not in vars(env)
    assert env.observation_space.shape == (4096, 3, 9, 8)
    assert env.action_space.shape == (4096,)


def test_torch_output_stays_torch() -> None:
    env = make_vec("ImageBandit-v0", output="torch")
    observations, infos = env.reset(seed=0)
    values = [observations, infos["index"], *env.step(torch.zeros(3, dtype=torch.int64))[:4]]
    assert all(isinstance(value, torch.Tensor) for value in values)
    assert [value.dtype for value in values[2:]] == [torch.uint8, torch.float32, torch.bool, torch.bool]


def test_shards_are_parts_of_one_environment() -> None:
    whole = make_vec("ImageBandit-v0", num_envs=4).reset(seed=5)[0]
    parts = [make_vec("ImageBandit-v0", num_envs=2, shard=(k, 2)).reset(seed=5)[0] for k in range(2)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_stepping_before_a_reset_is_named() -> None:
    with pytest.raises(InputError, match=r"call reset"):
        make_vec("ImageBandit-v0").step(np.zeros(3, dtype=int))


def test_pictures_of_all_environments() -> None:
    env = make_vec("ImageBandit-v0", render_mode="rgb_array")
    scalar = gym.make("envs:ImageBandit-v0", dataset=DATA, render_mode="rgb_array")
    env.reset(seed=0)
    scalar.reset(seed=1)
    np.testing.assert_array_equal(env.render()[1], scalar.render())
    env.step(np.full(3, 2))
    scalar.step(2)
    np.testing.assert_array_equal(env.render()[1], scalar.render())
    assert make_vec("ImageBandit-v0").render() is None


@pytest.mark.parametrize("actions", [[0, 1], [0, 1, 4], [0, -1, 2], [0.0, 1.0, 2.0], [[0], [1], [2]], 1])
def test_wrong_actions_are_named(actions: Any) -> None:
    env = make_vec("ImageBandit-v0")
    env.reset(seed=0)
    with pytest.raises(InputError, match=r"actions .*expected"):
        env.step(np.array(actions))


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(InputError, match="unknown output 'tensor'"):
        make_vec("ImageBandit-v0", output="tensor")
    with pytest.raises(InputError, match="length is for ImageEpisode-v0"):
        make_vec("ImageBandit-v0", length=2)
    with pytest.raises(InputError, match="reset_mask is not supported"):
        make_vec("ImageBandit-v0").reset(options={"reset_mask": np.ones(3, dtype=bool)})
    with pytest.raises(InputError, match="2 seeds for 3 environments"):
        make_vec("ImageBandit-v0").reset(seed=[1, 2])
