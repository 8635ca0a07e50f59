from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from envs.vector import ImageEpisodeVector
from tests.support.env_toys import random_images
from tests.support.vector_checker import check_vector_env

DATA = random_images(50)


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
