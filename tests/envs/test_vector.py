import copy
import pickle
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import TransformObservation
from gymnasium.wrappers import vector as vector_wrappers
from gymnasium.wrappers.vector import DictInfoToList, RecordEpisodeStatistics

from envs import InputError
from tests.support.env_toys import random_images
from tests.support.vector_checker import check_vector_env

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


LIMITS = [
    ("ImageBandit-v0", {"max_episode_steps": 1}),
    ("ImageBandit-v0", {"max_episode_steps": 7}),
    ("ImageEpisode-v0", {"length": 5, "max_episode_steps": 3}),
    (
        "ImageEpisode-v0",
        {"length": 4, "max_episode_steps": 4, "stop_on_error": True, "augmentation": "paper"},
    ),
    ("ImageEpisode-v0", {"length": 9, "max_episode_steps": 2, "stop_on_error": True}),
]


def scalar(name: str, options: dict[str, Any]) -> Callable[[], gym.Env]:
    return lambda: gym.make(f"envs:{name}", dataset=DATA, **options)


@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("output", ["numpy", "torch"])
@pytest.mark.parametrize(("name", "options"), OPTIONS + LIMITS)
def test_the_vector_environment_equals_scalar_ones(
    name: str, options: dict[str, Any], output: str, mode: AutoresetMode
) -> None:
    vector_env = make_vec(name, output=output, autoreset_mode=mode, **options)
    check_vector_env(vector_env, scalar(name, options), steps=8)


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_environments_reset_in_part_equal_scalar_ones(mode: AutoresetMode) -> None:
    options: dict[str, Any] = {"length": 6, "stop_on_error": True, "augmentation": "standard"}
    pair = (
        make_vec("ImageEpisode-v0", 4, autoreset_mode=mode.value, **options),
        SyncVectorEnv([scalar("ImageEpisode-v0", options)] * 4, autoreset_mode=mode),
    )
    generator = np.random.default_rng(0)
    results = [env.reset(seed=3) for env in pair]
    done = np.zeros(4, dtype=bool)
    for step in range(40):
        if step % 3 == 2 or (mode is AutoresetMode.DISABLED and done.any()):
            mask = done | (generator.random(4) < 0.4) if step % 2 else done
            seeds = [None, 3 * step, None, 5] if step % 4 else None
            if mask.any():
                results = [env.reset(seed=seeds, options={"reset_mask": mask.copy()}) for env in pair]
                assert_equal(*results)
        actions = np.where(
            generator.random(4) < 0.8, pair[0].task.labels.numpy(), generator.integers(4, size=4)
        )
        results = [env.step(actions) for env in pair]
        assert_equal(*results)
        done = results[1][2] | results[1][3]


def assert_equal(got: Any, expected: Any) -> None:
    """Compare what reset or step returned, infos where their masks are true."""
    for value, reference in zip(got[:-1], expected[:-1], strict=True):
        np.testing.assert_array_equal(value, reference)
    assert got[-1].keys() == expected[-1].keys()
    for key, reference in expected[-1].items():
        if key in ("index", "label", "final_obs"):
            mask = expected[-1]["_" + key]
            np.testing.assert_array_equal(got[-1]["_" + key], mask)
            for i in mask.nonzero()[0]:
                np.testing.assert_array_equal(got[-1][key][i], reference[i])


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED])
def test_epoch_order_shows_every_image_once_whoever_rests(mode: AutoresetMode) -> None:
    env = make_vec("ImageEpisode-v0", 5, order="epoch", length=9, stop_on_error=True, autoreset_mode=mode)
    _, infos = env.reset(seed=0)
    shown = [[index] for index in infos["index"].tolist()]
    generator = np.random.default_rng(0)
    done = np.zeros(5, dtype=bool)
    for _ in range(60):
        if mode is AutoresetMode.DISABLED and done.any():
            _, infos = env.reset(options={"reset_mask": done})
            for i in done.nonzero()[0]:
                shown[i].append(int(infos["index"][i]))
        _, _, terminated, _, infos = env.step(generator.integers(4, size=5))
        for i in (~terminated).nonzero()[0]:
            shown[i].append(int(infos["index"][i]))
        done = terminated
    passes = [[row[10 * k : 10 * k + 10] for row in shown] for k in range(3)]
    for one in passes:  # five environments deal ten of the fifty images each in a pass
        assert sorted(index for row in one for index in row) == list(range(50))
    with pytest.raises(InputError, match="seed all of them or none"):
        env.reset(seed=[1, 2, 3, 4, 5], options={"reset_mask": np.eye(5, dtype=bool)[0]})


WRAPPERS: dict[str, Callable[[gym.vector.VectorEnv], gym.vector.VectorEnv]] = {
    "flatten": vector_wrappers.FlattenObservation,
    "reshape": lambda env: vector_wrappers.ReshapeObservation(env, (9, 24)),
    "rescale": lambda env: vector_wrappers.RescaleObservation(env, 0.0, 1.0),
    "dtype": lambda env: vector_wrappers.DtypeObservation(env, np.float32),
    "invert": lambda env: vector_wrappers.VectorizeTransformObservation(
        env, TransformObservation, func=lambda image: 255 - image, observation_space=None
    ),
    "normalize": vector_wrappers.NormalizeObservation,
    "reward": vector_wrappers.NormalizeReward,
    "statistics": vector_wrappers.RecordEpisodeStatistics,
    "list": vector_wrappers.DictInfoToList,
}


@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("name", ["ImageBandit-v0", "ImageEpisode-v0"])
@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS.keys())
def test_gymnasiums_vector_wrappers(wrap: Callable[[Any], Any], name: str, mode: AutoresetMode) -> None:
    options: dict[str, Any] = {"length": 3} if name == "ImageEpisode-v0" else {}
    pair = [
        make_vec(name, autoreset_mode=mode, **options),
        SyncVectorEnv([scalar(name, options)] * 3, autoreset_mode=mode),
    ]
    refusals = []
    for i in (1, 0):
        try:
            pair[i] = wrap(pair[i])
        except ValueError as error:
            refusals.append(str(error))
    if refusals:  # Gymnasium's own, the same for both
        assert refusals == [refusals[0]] * 2
        return
    assert pair[0].observation_space == pair[1].observation_space
    results = [env.reset(seed=4) for env in pair]
    for step in range(9):
        actions = np.array([step % 4, 1, 2])
        results = [env.step(actions) for env in pair]
        for value, reference in zip(results[0][:-1], results[1][:-1], strict=True):
            np.testing.assert_array_equal(value, reference)
        if "final_obs" in results[1][-1]:
            for image, reference in zip(
                results[0][-1]["final_obs"], results[1][-1]["final_obs"], strict=True
            ):
                np.testing.assert_array_equal(image, reference)
        done = results[0][2] | results[0][3]
        if mode is AutoresetMode.DISABLED and done.any():
            after = [env.reset(options={"reset_mask": done.copy()})[0] for env in pair]
            np.testing.assert_array_equal(*after)


def test_an_unreset_episode_and_a_wrong_mask_are_named() -> None:
    env = make_vec("ImageBandit-v0", autoreset_mode="Disabled")
    with pytest.raises(InputError, match="reset in part"):
        env.reset(options={"reset_mask": np.ones(3, dtype=bool)})
    env.reset(seed=0)
    env.step(np.zeros(3, dtype=int))
    with pytest.raises(ResetNeeded, match="reset_mask"):
        env.step(np.zeros(3, dtype=int))
    for mask in ([True, False], np.zeros(3, dtype=bool), np.ones(3), np.ones((3, 1), dtype=bool)):
        with pytest.raises(InputError, match=r"reset_mask .*expected booleans of shape \(3,\)"):
            env.reset(options={"reset_mask": mask})
    with pytest.raises(
        InputError, match=r"unknown autoreset_mode 'Never'; valid: NextStep, SameStep, Disabled"
    ):
        make_vec("ImageBandit-v0", autoreset_mode="Never")


@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))])
@pytest.mark.parametrize("name", ["ImageBandit-v0", "ImageEpisode-v0"])
def test_copies_go_on_alike_and_close_twice(
    name: str, duplicate: Callable[[Any], Any], mode: AutoresetMode
) -> None:
    env = make_vec(name, autoreset_mode=mode)
    env.reset(seed=0)
    env.step(np.zeros(3, dtype=int))
    twin = duplicate(env)
    if mode is AutoresetMode.DISABLED:
        for each in (env, twin):
            each.reset(options={"reset_mask": np.ones(3, dtype=bool)})
    for first, second in zip(
        env.step(np.ones(3, dtype=int))[:4], twin.step(np.ones(3, dtype=int))[:4], strict=True
    ):
        np.testing.assert_array_equal(first, second)
    for each in (env, twin):
        each.close()
        each.close()
        assert each.closed


def test_attributes_are_read_and_changed_as_in_sync_vector_env() -> None:
    options = {"length": 5}
    pair = (make_vec("ImageEpisode-v0", **options), SyncVectorEnv([scalar("ImageEpisode-v0", options)] * 3))
    for env in pair:
        env.reset(seed=0)
        assert env.get_attr("length") == env.call("length") == (5, 5, 5)
        assert env.get_attr("observation_space") == (env.single_observation_space,) * 3
        env.set_attr("length", 2)
        env.set_attr("reward_matrix", np.full((4, 4), 7.0))
        env.set_attr("note", ["mine"] * 3)
        assert env.get_attr("note") == ("mine",) * 3
        ends = [env.step(np.zeros(3, dtype=int))[1:3] for _ in range(2)]
        assert [end[0].tolist() for end in ends] == [[7.0] * 3] * 2
        assert [end[1].tolist() for end in ends] == [[False] * 3, [True] * 3]
        for name, value in (("length", 0), ("label_noise", 0.3), ("order", "epoch"), ("dataset", DATA)):
            with pytest.raises(InputError, match=name):
                env.set_attr(name, value)
    for name, value in (("num_envs", 4), ("task", None), ("length", [1, 2, 3])):
        with pytest.raises(InputError, match=name):
            pair[0].set_attr(name, value)
    with pytest.raises(AttributeError, match="no 'step' of their own"):
        pair[0].call("step", 0)


def test_specifications_know_the_longest_episode() -> None:
    for name, options, most in [
        ("ImageBandit-v0", {}, 1),
        ("ImageEpisode-v0", {}, 10),
        ("ImageEpisode-v0", {"length": 4}, 4),
        ("ImageEpisode-v0", {"length": 9, "max_episode_steps": 7}, 7),
    ]:
        made = (make_vec(name, **options), gym.make(f"envs:{name}", dataset=DATA, **options))
        assert [env.spec.max_episode_steps for env in made if env.spec] == [most] * 2
        again = gym.make(made[1].spec)
        again.reset(seed=0)
        ends = [again.step(0)[2] for _ in range(most)]
        assert ends == [False] * (most - 1) + [options.get("max_episode_steps") is None]


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
    with pytest.raises(InputError, match="2 seeds for 3 environments"):
        make_vec("ImageBandit-v0").reset(seed=[1, 2])
