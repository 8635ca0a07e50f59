import copy
import gc

import numpy as np
import pytest
import torch
from stable_baselines3.common.buffers import RolloutBuffer
from torch import nn

from agents import A2C, DQN, PPO, ImagePolicy, register_network
from agents.algorithms.buffers import ImageRolloutBuffer
from agents.models import image_network as networks
from agents.models.layers import ConsistentDropout, SampleSeeds, frozen_batchnorm
from envs import ImageTask, sb3_env
from envs.errors import InputError
from tests.support.env_toys import random_images


def build(
    kind=PPO, tensors=True, env=None, network="mlp", exploration=0.0, optimizer=torch.optim.AdamW, **options
):
    env = env or sb3_env(random_images(40, (1, 8, 8)), num_envs=8, tensors=tensors, seed=3)
    own = {"batch_size": 8, "n_epochs": 2} if kind is PPO else {}
    options = {"n_steps": 4, "seed": 3, "device": "cpu", "gamma": 0.0} | own | options
    kwargs = {"network": network, "exploration": exploration, "optimizer_class": optimizer}
    return kind(ImagePolicy, env, policy_kwargs=kwargs, **options)


@pytest.fixture
def normed(monkeypatch):
    """A network with everything that breaks PPO's ratio: BatchNorm before and after, dropout on maps and features."""
    monkeypatch.setattr(networks, "NETWORKS", dict(networks.NETWORKS))

    @register_network("normed")
    def normed(shape):
        return nn.Sequential(
            nn.Conv2d(shape[0], 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            ConsistentDropout(0.3, 0),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(8 * (shape[1] // 2) * (shape[2] // 2), 16),
            nn.BatchNorm1d(16),
            nn.ReLU(),
            ConsistentDropout(0.5, 1),
        )


def collect(model):
    """Collect one rollout as ``learn`` would."""
    _, callback = model._setup_learn(10**6, None)
    assert model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
    return model.rollout_buffer


@pytest.mark.parametrize("gamma", [0.0, 0.9, 1.0])
@pytest.mark.parametrize("gae_lambda", [0.0, 0.95, 1.0])
def test_advantages_equal_stable_baselines(gamma, gae_lambda):
    task = ImageTask(random_images(), num_envs=5)
    arguments = (7, task.observation_space, task.action_space)
    options = {"device": "cpu", "gae_lambda": gae_lambda, "gamma": gamma, "n_envs": 5}
    ours, stock = ImageRolloutBuffer(*arguments, **options), RolloutBuffer(*arguments, **options)
    ours.task = ImageTask(random_images(), num_envs=5, length=2)
    zeros = torch.zeros(5, dtype=torch.int64)
    for _ in range(7):
        rewards, values, log_probs = torch.randn(3, 5)
        starts = torch.rand(5) < 0.3
        taken = (zeros.numpy(), rewards.numpy(), starts.numpy(), values, log_probs)
        stock.add(np.zeros((5, *task.dataset.shape)), *taken)
        integers = {"indices": zeros, "augment_seeds": zeros, "actions": zeros}
        floats = {"rewards": rewards, "values": values, "log_probs": log_probs, "episode_starts": starts}
        ours.add_step(None, SampleSeeds(zeros), **integers, **floats)
    last, dones = torch.randn(5), torch.rand(5) < 0.5
    stock.compute_returns_and_advantage(last, dones.numpy())
    ours.compute_returns_and_advantage(last, dones)
    assert np.allclose(ours._floats["advantages"].numpy(), stock.advantages, atol=1e-6)
    assert isinstance(ours.returns, np.ndarray)
    assert isinstance(ours.values, np.ndarray)
    assert np.allclose(ours.returns, stock.returns, atol=1e-6)
    assert np.array_equal(ours.values, stock.values)


@pytest.mark.parametrize("batch_size", [None, 1, 5, 8, 32])
def test_every_transition_comes_exactly_once_with_its_image(batch_size):
    data = random_images(40, (1, 8, 8))
    model = build(env=sb3_env(data, num_envs=8, tensors=True, augmentation="paper"))
    buffer = collect(model)
    batches = list(buffer.get(batch_size))
    assert [len(batch.actions) for batch in batches][:-1] == [batch_size or 32] * (len(batches) - 1)
    together = [torch.cat(column) for column in zip(*batches, strict=True)]
    observations, actions, values, log_probs, advantages, returns = together
    shown = buffer.task.render_batch(
        *(buffer._integers[name].view(-1) for name in ("indices", "augment_seeds"))
    )

    def rows(images, *columns):
        flat = [images.flatten(1).double(), *(column.double()[:, None] for column in columns)]
        return sorted(map(tuple, torch.cat(flat, 1).tolist()))

    names = ("actions", "values", "log_probs", "advantages", "returns")
    stored = {**buffer._integers, **buffer._floats}
    expected = rows(shown, *(stored[name].view(-1) for name in names))
    assert rows(observations, actions, values, log_probs, advantages, returns) == expected


def test_two_passes_come_in_two_orders():
    buffer = collect(build())
    first, second = (torch.cat([batch.old_log_prob for batch in buffer.get(8)]) for _ in range(2))
    assert not torch.equal(first, second)
    assert torch.equal(first.sort()[0], second.sort()[0])


def test_the_collection_equals_stable_baselines_on_the_numpy_environment():
    """A policy that always takes its likeliest label acts alike in both, so both rollouts must be equal."""
    data = random_images(40, (1, 8, 8))
    buffers = []
    for tensors in (True, False):
        env = sb3_env(data, num_envs=8, tensors=tensors, seed=3, length=3, stop_on_error=True)
        model = build(env=env, n_steps=6, gamma=0.9)
        with torch.no_grad():
            model.policy.action_net.weight.mul_(1e7)
        buffers.append(collect(model))
    ours, stock = buffers
    assert type(ours) is ImageRolloutBuffer
    assert type(stock) is RolloutBuffer
    assert len(np.unique(stock.actions)) > 1
    assert 0 < stock.episode_starts[1:].mean() < 1
    stored = {**ours._integers, **ours._floats}
    for name in ("rewards", "episode_starts", "values", "log_probs", "advantages", "returns"):
        assert np.allclose(stored[name].numpy(), getattr(stock, name), atol=1e-5), name
    assert np.array_equal(stored["actions"].numpy(), stock.actions[..., 0])
    images = ours.task.render_batch(stored["indices"].view(-1), stored["augment_seeds"].view(-1))
    assert np.array_equal(images.view(6, 8, 1, 8, 8).numpy(), stock.observations)


PASSES = {"batch_size": 32, "n_epochs": 3}


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (PPO, PASSES | {"ent_coef": 0.01}),
        (PPO, PASSES | {"clip_range": 0.01, "clip_range_vf": 0.02, "max_grad_norm": 0.1}),
        (PPO, PASSES | {"normalize_advantage": False, "learning_rate": 0.3, "target_kl": 1e-4}),
        (A2C, {"use_rms_prop": False, "ent_coef": 0.01}),
    ],
)
def test_the_update_equals_stable_baselines_on_the_same_rollout(kind, options):
    """By plain gradient descent: Adam makes whole steps of the rounding error of a gradient near zero."""
    options = {"learning_rate": 0.1, "vf_coef": 0.7, "optimizer": torch.optim.SGD} | options
    ours, stock = build(kind, **options), build(kind, tensors=False, **options)
    stock.policy.load_state_dict(ours.policy.state_dict())
    rollout = collect(ours)
    _, callback = stock._setup_learn(10**6, None)
    callback.on_training_start({}, {})
    buffer = stock.rollout_buffer
    images = rollout.task.render_batch(
        rollout._integers["indices"].view(-1), rollout._integers["augment_seeds"].view(-1)
    ).view(4, 8, 1, 8, 8)
    for step in range(4):
        at = {name: value[step] for name, value in {**rollout._integers, **rollout._floats}.items()}
        columns = (at[name].numpy() for name in ("actions", "rewards", "episode_starts"))
        buffer.add(images[step].numpy(), *columns, at["values"], at["log_probs"])
    buffer.compute_returns_and_advantage(torch.zeros(8), np.ones(8))
    before = copy.deepcopy(stock.policy.state_dict())
    ours.train()
    stock.train()
    assert ours._n_updates == stock._n_updates
    assert "target_kl" not in options or ours._n_updates < 3
    moved = 0.0
    for name, value in ours.policy.state_dict().items():
        assert torch.allclose(value.float(), stock.policy.state_dict()[name].float(), atol=2e-6), name
        moved += float((value.float() - before[name].float()).abs().sum())
    assert moved > 0.1
    logged = {f"train/{name}": value for name, value in ours.statistics.flush().items()}
    logged = {**ours.logger.name_to_value, **logged}
    expected = {"train/value_loss", "train/explained_variance", "train/n_updates"}
    expected |= {"train/entropy_loss"} if options.get("ent_coef") else set()
    expected |= {"train/clip_fraction", "train/clip_range"} if kind is PPO else set()
    for name in expected:
        assert logged[name] == pytest.approx(stock.logger.name_to_value[name], abs=1e-5), name


@pytest.mark.slow
@pytest.mark.parametrize("network", ["normed", "cnn4", "cnn6"])
@pytest.mark.parametrize("exploration", [0.0, 0.2])
def test_the_ratio_of_the_first_update_is_one(network, exploration, normed, monkeypatch):
    env = sb3_env(random_images(40, (1, 8, 8)), num_envs=8, tensors=True, augmentation="paper")
    options = {"n_steps": 3, "batch_size": 6, "n_epochs": 1, "learning_rate": 0.0}
    model = build(env=env, network=network, exploration=exploration, **options)
    ratios = measured_ratios(model, monkeypatch)
    for _ in range(2):  # the second rollout begins with other running statistics
        collect(model)
        model.train()
    assert len(ratios) == 2 * 4
    assert max((ratio - 1).abs().max().item() for ratio in ratios) < 1e-5


def test_later_updates_move_the_ratio(normed, monkeypatch):
    model = build(network="normed", learning_rate=1e-2)
    ratios = measured_ratios(model, monkeypatch)
    collect(model)
    model.train()
    assert (ratios[0] - 1).abs().max() < 1e-5
    assert (ratios[-1] - 1).abs().max() > 1e-3


def measured_ratios(model, monkeypatch):
    """Record the probability ratio of every minibatch that the update evaluates."""
    ratios, old = [], []
    get, evaluate = model.rollout_buffer.get, model.policy.log_probs

    def watched_get(batch_size):
        for batch in get(batch_size):
            old.append(batch.old_log_prob)
            yield batch
        old.clear()

    def watched_evaluate(logits, actions):
        result = evaluate(logits, actions)
        if old:  # not while a rollout is collected
            ratios.append((result.detach() - old[-1]).exp())
        return result

    monkeypatch.setattr(model.rollout_buffer, "get", watched_get)
    monkeypatch.setattr(model.policy, "log_probs", watched_evaluate)
    return ratios


def test_batchnorm_statistics_follow_the_data_and_stay_during_an_update(normed):
    model = build(network="normed", learning_rate=1e-2)
    norm = model.policy.features_extractor.network[1]
    initial = norm.running_mean.clone()
    collect(model)
    held = norm.running_mean.clone()
    assert not torch.equal(initial, held)
    model.train()
    assert torch.equal(norm.running_mean, held)
    assert "train" not in norm.__dict__
    with frozen_batchnorm(model.policy):
        model.policy.set_training_mode(True)
        assert not norm.training


@pytest.mark.parametrize(("length", "extra"), [(1, 0), (2, 1)])
@pytest.mark.parametrize("kind", [PPO, A2C])
def test_bandits_need_no_bootstrap_forward(kind, length, extra):
    env = sb3_env(random_images(40, (1, 8, 8)), num_envs=8, tensors=True, length=length)
    model = build(kind, env=env)
    forwards = []
    model.policy.features_extractor.register_forward_hook(lambda *_: forwards.append(1))
    collect(model)
    assert len(forwards) == model.n_steps + extra


def test_a_direct_update_runs_one_forward_per_step():
    from agents import Reinforce

    env = sb3_env(random_images(40, (1, 8, 8)), num_envs=8, tensors=True)
    model = Reinforce(env=env, policy_kwargs={"network": "mlp"}, device="cpu")
    forwards = []
    model.policy.features_extractor.register_forward_hook(lambda *_: forwards.append(1))
    model.learn(5 * 8)
    assert len(forwards) == 5


def tensor_bytes():
    """Bytes of all tensors alive, every storage counted once."""
    gc.collect()
    storages = {}
    for found in gc.get_objects():
        if type(found) in (torch.Tensor, nn.Parameter):
            storage = found.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


@pytest.mark.slow
def test_a_rollout_of_50000_colour_images_takes_few_bytes(monkeypatch):
    """Stock SB3 takes 600 MB for the images alone."""
    data = random_images(100, (3, 32, 32))
    before = tensor_bytes()
    env = sb3_env(data, num_envs=500, tensors=True, augmentation="standard")
    model = build(env=env, n_steps=100, batch_size=500)
    monkeypatch.setattr(model.policy, "forward", lambda images: random_answers(len(images), 4))
    buffer = collect(model)
    assert buffer.buffer_size * buffer.n_envs == 50_000
    weights = sum(value.nbytes for value in model.policy.parameters())
    kept = sum(value.nbytes for value in (buffer._integers | buffer._floats).values())
    assert kept == 50_000 * (4 * 8 + 6 * 4)
    assert kept <= tensor_bytes() - before - weights < 10e6


def random_answers(count, classes):
    return torch.randint(classes, (count,)), torch.rand(count, 1), torch.rand(count)


def test_replayed_images_are_those_that_were_shown():
    env = sb3_env(random_images(40, (1, 8, 8)), num_envs=8, tensors=True, length=2, augmentation="paper")
    model = DQN(
        "CnnPolicy", env, buffer_size=24, learning_starts=10**6, device="cpu", policy_kwargs=EXTRACTOR
    )
    shown, step = [], env.step
    acted, paid, over = [], [], []

    def watched(actions):
        if not shown:
            shown.append(env.task.observe())
        result = step(actions)
        for kept, value in zip((acted, shown, paid, over), (actions, *result[:3]), strict=True):
            kept.append(value.clone())
        return result

    env.step = watched
    model.learn(8 * 5)
    assert torch.equal(model.replay_buffer.storage["actions"].roll(1, 0), torch.stack(acted[-3:]))
    transitions = {}
    for before, action, after, reward, done in zip(shown[:-1], acted, shown[1:], paid, over, strict=True):
        for row in range(8):
            key = before[row].numpy().tobytes(), after[row].numpy().tobytes()
            transitions.setdefault(key, set()).add((int(action[row]), float(reward[row]), float(done[row])))
    batch = model.replay_buffer.sample(200)
    columns = (batch.actions[:, 0], batch.rewards[:, 0], batch.dones[:, 0])
    for row, values in enumerate(zip(*(column.tolist() for column in columns), strict=True)):
        key = batch.observations[row].numpy().tobytes(), batch.next_observations[row].numpy().tobytes()
        assert values in transitions[key]


OWN = {"network": "mlp"}
EXTRACTOR = {"features_extractor_class": networks.ImageNetwork, "features_extractor_kwargs": OWN}


@pytest.mark.parametrize("kind", [PPO, A2C, DQN])
@pytest.mark.parametrize("tensors", [True, False])
def test_a_model_refuses_the_other_kind_of_environment(kind, tensors):
    data = random_images(40, (1, 8, 8))
    if kind is DQN:
        env = sb3_env(data, num_envs=8, tensors=tensors)
        model = DQN("CnnPolicy", env, buffer_size=24, device="cpu", policy_kwargs=EXTRACTOR)
    else:
        model = build(kind, tensors)
    model.set_env(sb3_env(data, num_envs=8, tensors=not tensors))
    with pytest.raises(InputError, match=rf"tensors={tensors}"):
        model.learn(32)
