from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from envs import Augmentation, ImageTask, InputError, load_dataset, sb3_env
from envs.rewards import noisy_labels, reward_matrix
from envs.sampling import choose_indices, iid_draw, spread
from tests.support.env_toys import grey_levels, random_images

DATA = random_images(50)


def play(task: ImageTask, steps: int, seed: int = 0) -> list[tuple[torch.Tensor, ...]]:
    """Step with arbitrary actions; return all that was seen."""
    generator = torch.Generator().manual_seed(seed)
    seen = []
    for _ in range(steps):
        shown = (task.indices.clone(), task.augment_seeds.clone(), task.observe())
        seen.append((*shown, *task.step(torch.randint(4, (task.num_envs,), generator=generator))))
    return seen


def same(first: list[tuple[torch.Tensor, ...]], second: list[tuple[torch.Tensor, ...]]) -> bool:
    return all(
        torch.equal(a, b)
        for one, two in zip(first, second, strict=True)
        for a, b in zip(one, two, strict=True)
    )


def test_observations_are_the_images_at_the_indices() -> None:
    task = ImageTask(DATA, 7)
    task.reset(3)
    for _ in range(5):
        assert torch.equal(task.observe(), DATA.images[task.indices])
        assert torch.equal(task.labels, DATA.labels[task.indices])
        task.step(task.labels)


def test_environment_i_draws_what_its_seed_says() -> None:
    task = ImageTask(DATA, 5, augmentation="paper")
    task.reset(11)
    for time in range(4):
        expected = [iid_draw(11 + i, time, len(DATA)) for i in range(5)]
        assert list(zip(task.indices.tolist(), task.augment_seeds.tolist(), strict=True)) == expected
        task.step(task.labels)


def test_draws_go_on_across_blocks() -> None:
    task = ImageTask(DATA, 3000)  # five times 3000 draws make a block
    task.reset(0)
    for time in range(12):
        assert task.indices[17].item() == iid_draw(17, time, len(DATA))[0]
        task.step(task.labels)


def test_seeding_and_resetting() -> None:
    task = ImageTask(DATA, 4)
    with pytest.raises(InputError, match="has not begun"):
        task.observe()
    task.reset(8)
    first = task.indices
    task.reset()
    second = task.indices
    assert not torch.equal(first, second)
    task.reset([8, 9, 10, 11])
    assert torch.equal(task.indices, first)
    task.reset(seed=np.int64(8))
    task.step(task.labels)
    assert torch.equal(task.indices, second)
    task.reset([9, 8, 9, 10**30])
    assert task.indices[[1, 0]].tolist() == first[[0, 1]].tolist()
    assert task.indices[0] == task.indices[2]


def test_unseeded_tasks_differ() -> None:
    tasks = [ImageTask(random_images(1000), 20) for _ in range(2)]
    for task in tasks:
        task.reset()
    assert not torch.equal(tasks[0].indices, tasks[1].indices)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 3), st.integers(0, 2**40))
def test_epoch_order_deals_every_image_once_per_pass(
    count: int, num_envs: int, parts: int, seed: int
) -> None:
    data = random_images(count, (1, 2, 2))
    tasks = [ImageTask(data, num_envs, order="epoch", shard=(part, parts)) for part in range(parts)]
    for task in tasks:
        task.reset(seed)
    dealt: list[int] = []
    while len(dealt) < 3 * count:
        for task in tasks:
            dealt += task.indices.tolist()
            task.step(task.labels)
    passes = [dealt[i : i + count] for i in (0, count, 2 * count)]
    assert all(sorted(one) == list(range(count)) for one in passes)
    assert count < 15 or passes[0] != passes[1] != passes[2]


def test_epoch_order_goes_on_across_blocks_and_passes() -> None:
    task = ImageTask(random_images(1000, (1, 1, 1)), 7, order="epoch")
    task.reset(1)
    dealt = []
    for _ in range(5000):
        dealt += task.indices.tolist()
        task.step(task.labels)
    passes = torch.tensor(dealt[:35_000]).view(35, 1000)
    assert torch.equal(passes.sort(1).values, torch.arange(1000).expand(35, -1))
    assert len(passes.unique(dim=0)) == 35


@pytest.mark.parametrize("order", ["iid", "epoch"])
def test_shards_together_are_one_larger_task(order: str) -> None:
    whole = ImageTask(DATA, 12, order=order, augmentation="standard")
    parts = [ImageTask(DATA, 4, order=order, augmentation="standard", shard=(k, 3)) for k in range(3)]
    for task in (whole, *parts):
        task.reset(5)
    for _ in range(30):
        assert torch.equal(torch.cat([part.observe() for part in parts]), whole.observe())
        for task in (whole, *parts):
            task.step(task.labels)


def test_rewards_follow_the_matrix() -> None:
    matrix = np.arange(16, dtype=np.float64).reshape(4, 4) - 3
    actions = torch.tensor([0, 1, 2, 3, 3])
    for reward, expected in (("accuracy", torch.eye(4)), ("signed", 2 * torch.eye(4) - 1), (matrix, None)):
        table = torch.tensor(matrix).float() if expected is None else expected
        task = ImageTask(DATA, 5, reward=reward)
        task.reset(0)
        labels = task.labels
        assert torch.equal(task.action_rewards(), table[labels])
        rewards, terminated = task.step(actions)
        assert rewards.dtype == torch.float32
        assert torch.equal(rewards, table[labels, actions])
        assert terminated.all()


@settings(max_examples=20, deadline=None)
@given(st.floats(0, 0.999), st.integers(2, 5))
def test_label_noise_replaces_its_share_by_wrong_labels(noise: float, num_classes: int) -> None:
    labels = torch.arange(20_000) % num_classes
    noisy = noisy_labels(labels, num_classes, noise)
    wrong = noisy != labels
    assert abs(wrong.double().mean().item() - noise) < 0.018  # 5 standard errors
    assert noisy.min() >= 0
    assert noisy.max() < num_classes
    if noise > 0.1:
        offsets = torch.bincount((noisy - labels)[wrong] % num_classes, minlength=num_classes)[1:]
        assert (offsets / wrong.sum() - 1 / (num_classes - 1)).abs().max() < 0.06
    assert torch.equal(noisy, noisy_labels(labels, num_classes, noise))


def test_rewards_go_by_the_noisy_labels() -> None:
    task = ImageTask(DATA, 50, label_noise=0.5)
    task.reset(0)
    assert 0 < (task.labels != task.true_labels).sum() < 50
    assert torch.equal(task.true_labels, DATA.labels[task.indices])
    assert task.step(task.labels)[0].sum() == 50


def test_episodes_end_after_their_length_or_at_an_error() -> None:
    task = ImageTask(DATA, 3, length=4, stop_on_error=True)
    task.reset(0)
    ends = []
    for time in range(8):
        wrong = torch.tensor([time == 1, False, time in (2, 3)])  # environment 0 errs at 1, and so on
        ends.append(task.step(torch.where(wrong, (task.labels + 1) % 4, task.labels))[1].tolist())
    assert [[ends[t][i] for t in range(8)] for i in range(3)] == [
        [False, True, False, False, False, True, False, False],
        [False, False, False, True, False, False, False, True],
        [False, False, True, True, False, False, False, True],
    ]


@pytest.mark.parametrize("order", ["iid", "epoch"])
def test_a_loaded_state_goes_on_exactly(order: str) -> None:
    options: dict[str, Any] = {"length": 5, "order": order, "augmentation": "paper", "stop_on_error": True}
    task = ImageTask(DATA, 6, **options)
    task.reset(2)
    play(task, 33)
    state = task.state_dict()
    expected = play(task, 20)
    restored = ImageTask(DATA, 6, **options)
    restored.load_state_dict(state)
    assert same(play(restored, 20), expected)
    assert same(play_from(restored, state), expected)  # the state is not touched by its use
    with pytest.raises(InputError, match="set num_envs=6"):
        ImageTask(DATA, 5).load_state_dict(state)
    with pytest.raises(InputError, match="not the state"):
        task.load_state_dict({"time": 3})


def play_from(task: ImageTask, state: dict[str, Any]) -> list[tuple[torch.Tensor, ...]]:
    task.load_state_dict(state)
    return play(task, 20)


def test_stored_indices_and_seeds_render_the_same_observations() -> None:
    task = ImageTask(DATA, 6, augmentation="paper")
    task.reset(0)
    seen = play(task, 4)
    indices, seeds, observations = (torch.cat(column) for column in list(zip(*seen, strict=True))[:3])
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    assert torch.equal(task.render_batch(indices[order], seeds[order]), observations[order])
    assert not torch.equal(DATA.images[indices], observations)


def test_observations_are_fresh() -> None:
    task = ImageTask(grey_levels(4), 4, order="epoch")
    task.reset(0)
    observation = task.observe()
    observation.zero_()
    assert task.observe().any()
    assert task.dataset.images.any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reward": "acuracy"}, "unknown reward 'acuracy'.*Did you mean 'accuracy'"),
        ({"reward": np.eye(3)}, r"reward matrix is \(3, 3\); expected \(4, 4\)"),
        ({"reward": [[1, 2], [3]]}, "reward is"),
        ({"reward": np.full((4, 4), np.nan)}, "NaN"),
        ({"label_noise": 1.0}, "label_noise is 1.0"),
        ({"label_noise": -0.1}, "label_noise is -0.1"),
        ({"label_noise": float("nan")}, "label_noise is nan"),
        ({"length": 0}, "length is 0"),
        ({"length": 2.5}, "length is 2.5"),
        ({"num_envs": -1}, "num_envs is -1"),
        ({"order": "epochs"}, "unknown order 'epochs'.*'epoch'"),
        ({"shard": (2, 2)}, r"shard is \(2, 2\)"),
        ({"shard": 3}, "shard is 3"),
        ({"augmentation": "hflop"}, "unknown augmentation"),
        ({"augmentation": 3}, "augmentation is 3"),
    ],
)
def test_wrong_arguments_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ImageTask(DATA, **{"num_envs": 2, **options})


@pytest.mark.parametrize("seed", [1.5, "abc", [1, 2, 3], [1, 0.5]])
def test_wrong_seeds_are_named(seed: Any) -> None:
    with pytest.raises(InputError, match="seed"):
        ImageTask(DATA, 2).reset(seed)


def test_label_noise_needs_two_classes() -> None:
    with pytest.raises(InputError, match="single class"):
        noisy_labels(torch.zeros(3, dtype=torch.int64), 1, 0.5)


def test_the_signed_reward_matrix() -> None:
    assert reward_matrix("signed", 2).tolist() == [[1, -1], [-1, 1]]


@pytest.mark.parametrize("number", [np.int64, torch.tensor, np.array], ids=["numpy", "tensor", "array"])
def test_numbers_of_numpy_and_torch_count_as_pythons(number: Any) -> None:
    options = {"length": 3, "augmentation": Augmentation(crop_padding=2), "shard": (1, 2)}
    given = {
        "length": number(3),
        "augmentation": Augmentation(crop_padding=number(2)),
        "shard": (number(1), number(2)),
    }
    tasks = ImageTask(DATA, 4, **options), ImageTask(DATA, number(4), **given)
    tasks[0].reset(7)
    tasks[1].reset(number(7))
    assert same(play(tasks[0], 5), play(tasks[1], 5))
    tasks[1].reset(torch.arange(4) if number is torch.tensor else np.arange(4))
    assert load_dataset("digits", "val", image_size=number(9)).shape == (1, 9, 9)
    scalar = gym.make("envs:ImageEpisode-v0", dataset=DATA, length=number(3)).unwrapped
    assert np.array_equal(scalar.reset(seed=number(5))[0], scalar.reset(seed=5)[0])
    vector = gym.make_vec("envs:ImageEpisode-v0", 2, vectorization_mode="vector_entry_point", dataset=DATA)
    assert np.array_equal(vector.reset(seed=number(5))[0], vector.reset(seed=5)[0])
    envs = sb3_env("digits", number(3), seed=number(2), image_size=number(8))
    assert np.array_equal(envs.reset(), sb3_env("digits", 3, seed=2).reset())
    assert envs.get_attr("length", number(1)) == [1]
    assert choose_indices(number(9), number(4)).tolist() == choose_indices(9, 4).tolist()
    assert spread(number(9), number(4)).tolist() == spread(9, 4).tolist()


@pytest.mark.parametrize("number", [np.float32, torch.tensor, np.array], ids=["numpy", "tensor", "array"])
def test_shares_of_numpy_and_torch_count_as_pythons(number: Any) -> None:
    assert repr(Augmentation(translate=number(0.25))) == repr(Augmentation(translate=0.25))
    given, own = ImageTask(DATA, label_noise=number(0.25)), ImageTask(DATA, label_noise=0.25)
    assert torch.equal(given.all_labels, own.all_labels)
    assert type(given.label_noise) is float


@pytest.mark.parametrize("seed", [2.5, "3", [3], np.array([3])])
def test_wrong_seeds_of_environments_are_named(seed: Any) -> None:
    with pytest.raises(InputError, match="seed is"):
        sb3_env(DATA, 2, seed=seed)
    with pytest.raises(InputError, match="seed is"):
        gym.make("envs:ImageBandit-v0", dataset=DATA).unwrapped.reset(seed=seed)
