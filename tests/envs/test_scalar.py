import warnings
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as sb3_check_env

from envs import ImageTask, InputError
from envs.render import render_image
from envs.scalar import ImageBandit
from tests.support.env_toys import grey_levels, random_images

DATA = random_images(50)
LARGE = random_images(20, (3, 36, 40))  # SB3 warns of images under 36x36, which its own network cannot take


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ImageBandit-v0", {}),
        ("ImageBandit-v0", {"augmentation": "paper", "reward": "signed", "render_mode": "rgb_array"}),
        ("ImageEpisode-v0", {"length": 3, "stop_on_error": True}),
        ("ImageEpisode-v0", {"order": "epoch", "label_noise": 0.3}),
    ],
)
def test_the_checkers_of_both_libraries_pass(name: str, options: dict[str, Any]) -> None:
    env = gym.make(f"envs:{name}", dataset=LARGE, **options)
    check_env(env.unwrapped)
    sb3_check_env(env, skip_render_check=False)


def test_a_bandit_episode() -> None:
    env = gym.make("envs:ImageBandit-v0", dataset=DATA)
    assert env.observation_space == gym.spaces.Box(0, 255, (3, 9, 8), np.uint8)
    assert env.action_space == gym.spaces.Discrete(4)
    image, info = env.reset(seed=4)
    np.testing.assert_array_equal(image, DATA.images[info["index"]])
    assert info.keys() == {"index"}  # the label is not given away
    label = int(DATA.labels[info["index"]])
    last, reward, terminated, truncated, after = env.step(label)
    assert (reward, terminated, truncated) == (1.0, True, False)
    assert [type(value) for value in (reward, terminated, truncated)] == [float, bool, bool]
    assert after == {"index": info["index"], "label": label}
    np.testing.assert_array_equal(last, image)
    with pytest.raises(ResetNeeded):
        env.step(0)
    _, again = env.reset(seed=4)
    assert again == info
    assert env.step((label + 1) % 4)[1] == 0.0


def test_an_episode_returns_the_next_image_and_the_label_of_the_last() -> None:
    env = gym.make("envs:ImageEpisode-v0", dataset=DATA, length=3)
    _, info = env.reset(seed=0)
    for turn in range(3):
        label = int(DATA.labels[info["index"]])
        image, reward, terminated, _, after = env.step(label)
        assert reward == 1.0
        assert after["label"] == label
        assert terminated == (turn == 2)
        np.testing.assert_array_equal(image, DATA.images[after["index"]])
        info = after


@pytest.mark.parametrize("augmentation", ["none", "paper"])
@pytest.mark.parametrize("order", ["iid", "epoch"])
def test_the_scalar_environment_equals_a_task_of_one(order: str, augmentation: str) -> None:
    options: dict[str, Any] = {
        "length": 4,
        "stop_on_error": True,
        "reward": np.arange(16).reshape(4, 4) / 7,
        "label_noise": 0.2,
        "augmentation": augmentation,
        "order": order,
    }
    env = gym.make("envs:ImageEpisode-v0", dataset=DATA, **options)
    task = ImageTask(DATA, **options)
    image, info = env.reset(seed=9)
    task.reset(9)
    generator = np.random.default_rng(0)
    for _ in range(60):
        np.testing.assert_array_equal(image, task.observe()[0])
        assert info["index"] == task.indices.item()
        action = int(task.labels) if generator.random() < 0.7 else int(generator.integers(4))
        image, reward, terminated, _, info = env.step(action)
        rewards, ended = task.step(torch.tensor([action]))
        assert reward == rewards.item()
        assert terminated == ended.item()
        if terminated:
            image, info = env.reset()


def test_the_user_may_write_into_observations() -> None:
    data = grey_levels()
    env = gym.make("envs:ImageBandit-v0", dataset=data)
    image, _ = env.reset(seed=0)
    image[:] = 77
    last, *_ = env.step(0)
    assert (last != 77).all()
    last[:] = 77
    assert torch.equal(data.images, grey_levels().images)


@pytest.mark.parametrize("action", [4, -1, 1.0, "0", None])
def test_wrong_actions_are_named(action: Any) -> None:
    env = gym.make("envs:ImageBandit-v0", dataset=DATA, disable_env_checker=True)
    env.reset(seed=0)
    with pytest.raises(InputError, match=r"action is .*; expected a label in 0..3"):
        env.step(action)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 3}, "length is for ImageEpisode-v0"),
        ({"stop_on_error": True}, "stop_on_error is for ImageEpisode-v0"),
        ({"reward": "speed"}, "unknown reward"),
        ({"render_mode": "ansi"}, "render_mode is 'ansi'"),
        ({"dataset": 3}, "dataset is a int"),
        ({"dataset": "digit"}, "digits"),
    ],
)
def test_wrong_arguments_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ImageBandit(**{"dataset": DATA, **options})


def test_environments_by_name_share_their_images() -> None:
    first, second = (
        gym.make("envs:ImageBandit-v0", dataset="digits", split="val").unwrapped for _ in range(2)
    )
    assert first.observation_space.shape == (1, 8, 8)
    assert np.shares_memory(first._images, second._images)


def test_a_specification_does_not_copy_the_images() -> None:
    env = gym.make("envs:ImageBandit-v0", dataset=DATA)
    assert env.spec is not None
    assert env.spec.kwargs["dataset"] is DATA


def test_pictures_show_image_action_and_truth() -> None:
    data = grey_levels()
    env = gym.make("envs:ImageBandit-v0", dataset=data, render_mode="rgb_array")
    image, info = env.reset(seed=0)
    before = env.render()
    np.testing.assert_array_equal(before, render_image(image, data.classes))
    label = int(data.labels[info["index"]])
    env.step(label)
    after = env.render()
    assert after.dtype == np.uint8
    assert after.shape == before.shape
    np.testing.assert_array_equal(after, render_image(image, data.classes, action=label, truth=label))
    wrong = render_image(image, data.classes, action=(label + 1) % 4, truth=label)
    pictures = [before, after, wrong]
    assert len({picture.tobytes() for picture in pictures}) == 3
    half = before.shape[0] // 2
    assert (before[half, half] == image[0, 0, 0]).all()  # the enlarged image itself


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 5, 300), (2, 9, 4), (3, 500, 400)])
def test_pictures_of_any_shape(shape: tuple[int, int, int]) -> None:
    image = np.full(shape, 100, np.uint8)
    picture = render_image(image, ("a", "b" * 200), action=0, truth=1)
    assert picture.ndim == 3
    assert (picture == 100).all(-1).sum() >= shape[1] * shape[2]
