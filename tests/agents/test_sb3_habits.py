"""What users of Stable-Baselines3 do with a model, done with ours: callbacks, evaluation, saving, logs."""

import numpy as np
import pytest
import torch
from stable_baselines3.common import callbacks as sb3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.vec_env import VecMonitor

from agents import A2C, DQN, PPO, ExpectedPolicyGradient, ImageNetwork, ImagePolicy, Reinforce, Supervised
from agents.algorithms.base import HostArray
from agents.config import PPOConfig, TrainConfig
from envs import sb3_env
from envs.errors import InputError
from tests.support.env_toys import random_images

DATA = random_images(60, (1, 8, 8))
DQN_NETWORK = {"features_extractor_class": ImageNetwork, "net_arch": []}
ALGORITHMS = {
    "ppo": (PPO, {"n_steps": 2, "batch_size": 8, "n_epochs": 1}),
    "a2c": (A2C, {"n_steps": 2}),
    "dqn": (DQN, {"learning_starts": 8, "train_freq": 1, "batch_size": 8, "buffer_size": 80}),
    "reinforce": (Reinforce, {}),
    "epg": (ExpectedPolicyGradient, {}),
    "supervised": (Supervised, {}),
}
KINDS = pytest.mark.parametrize("name", ALGORITHMS)
TENSORS = pytest.mark.parametrize("tensors", [True, False], ids=["tensors", "arrays"])


def environment(tensors=True, **options):
    return sb3_env(DATA, 4, tensors=tensors, seed=0, **options)


def new(name, env=None, **options):
    kind, own = ALGORITHMS[name]
    policy = "CnnPolicy" if name == "dqn" else ImagePolicy
    kwargs = DQN_NETWORK if name == "dqn" else {"network": "mlp"}
    return kind(policy, env or environment(), seed=0, device="cpu", policy_kwargs=kwargs, **own, **options)


class Nothing(sb3.BaseCallback):
    def _on_step(self):
        return True


def stop_after_steps(steps):
    """Return a callback as a function, which stops at a step by what it finds among the locals."""

    def function(scope, _):
        assert isinstance(scope["dones"], np.ndarray)
        assert isinstance(scope["rewards"], np.ndarray)
        assert len(scope["infos"]) == 4
        return scope["self"].num_timesteps < 4 * steps

    return function


def callbacks(folder, tensors):
    """Every callback of SB3, each with the images after which 64 images of four environments have stopped."""
    test = environment(tensors)
    judge = {"eval_freq": 2, "n_eval_episodes": 8, "verbose": 0}
    stop_at_any = sb3.StopTrainingOnRewardThreshold(-1.0)
    stale = sb3.StopTrainingOnNoModelImprovement(max_no_improvement_evals=1, min_evals=1)
    return {
        "StopTrainingOnMaxEpisodes": (sb3.StopTrainingOnMaxEpisodes(5), 40),
        "EvalCallback": (
            sb3.EvalCallback(test, log_path=str(folder), best_model_save_path=str(folder), **judge),
            64,
        ),
        "StopTrainingOnRewardThreshold": (
            sb3.EvalCallback(test, callback_on_new_best=stop_at_any, **judge),
            8,
        ),
        "StopTrainingOnNoModelImprovement": (
            sb3.EvalCallback(test, callback_after_eval=stale, **(judge | {"eval_freq": 1})),
            None,
        ),
        "CheckpointCallback": (sb3.CheckpointCallback(4, str(folder), save_replay_buffer=True), 64),
        "EveryNTimesteps": (sb3.EveryNTimesteps(16, sb3.ConvertCallback(lambda *_: False)), 16),
        "LogEveryNTimesteps": (sb3.LogEveryNTimesteps(16), 64),
        "ConvertCallback": (sb3.ConvertCallback(stop_after_steps(6)), 24),
        "CallbackList": (sb3.CallbackList([sb3.StopTrainingOnMaxEpisodes(3), Nothing()]), 24),
        "ProgressBarCallback": (sb3.ProgressBarCallback, 64),
        "EventCallback": (sb3.EventCallback(Nothing()), 64),
        "BaseCallback": (Nothing(), 64),
    }


NAMES = [
    name
    for name, kind in vars(sb3).items()
    if isinstance(kind, type) and issubclass(kind, sb3.BaseCallback) and kind.__module__ == sb3.__name__
]


@KINDS
@TENSORS
@pytest.mark.parametrize("callback", NAMES)
def test_every_callback(callback, name, tensors, tmp_path):
    options = {"length": 2} if callback in ("StopTrainingOnMaxEpisodes", "CallbackList") else {}
    made, stopped = callbacks(tmp_path, tensors)[callback]
    if callback == "ProgressBarCallback":
        pytest.importorskip("tqdm")
        made = made()
    model = new(name, environment(tensors, **options)).learn(64, callback=made)
    if stopped is not None:
        assert model.num_timesteps == stopped
    else:
        assert model.num_timesteps < 64
    if callback == "CheckpointCallback":
        written = {path.name for path in tmp_path.iterdir()}
        assert {f"rl_model_{images}_steps.zip" for images in (16, 32, 48, 64)} <= written
        assert ("rl_model_replay_buffer_64_steps.pkl" in written) == (name == "dqn")
    if callback == "EvalCallback":
        assert np.load(tmp_path / "evaluations.npz")["results"].shape == (8, 8)
        assert (tmp_path / "best_model.zip").exists()


@KINDS
@TENSORS
def test_evaluate_policy_equals_counting(name, tensors):
    model = new(name)
    rewards, lengths = evaluate_policy(
        model,
        environment(tensors, length=3, monitor=True),
        8,
        return_episode_rewards=True,
        deterministic=True,
    )
    env = environment(tensors=False)
    images, right = env.reset(), []
    for _ in range(6):
        right.append(model.predict(images, deterministic=True)[0] == env.task.labels.numpy())
        images = env.step(np.zeros(4, dtype=int))[0]
    expected = np.stack(right).reshape(2, 3, 4).sum(1)
    assert lengths == [3] * 8
    assert sorted(rewards) == sorted(expected.reshape(-1))


@KINDS
@TENSORS
@pytest.mark.parametrize("length", [1, 3])
def test_sb3s_tags_are_logged(name, tensors, length):
    class Kept(KVWriter):
        def __init__(self):
            self.lines = []

        def write(self, key_values, key_excluded, step=0):
            self.lines.append(dict(key_values))

        def close(self):
            pass

    model, kept = new(name, environment(tensors, length=length, monitor=not tensors)), Kept()
    model.set_logger(Logger(None, [kept]))
    rewards = []
    model.learn(96, lambda scope, _: rewards.append(scope["rewards"].sum()) or True, log_interval=1)
    tags = {"rollout/ep_rew_mean", "rollout/ep_len_mean", "time/fps", "time/total_timesteps"}
    tags |= {"time/episodes"} if name == "dqn" else {"time/iterations"}
    lines = [line for line in kept.lines if "rollout/ep_rew_mean" in line]
    assert tags <= lines[-1].keys()
    assert {line["rollout/ep_len_mean"] for line in lines} == {length}
    if tensors and length == 1:
        mean = np.mean([line["rollout/ep_rew_mean"] for line in lines])
        assert mean == pytest.approx(np.sum(rewards) / 96)


@KINDS
def test_wrappers_that_need_arrays_are_refused(name):
    with pytest.raises(InputError, match=r"VecMonitor needs arrays; use sb3_env\(..., monitor=True\)"):
        new(name, VecMonitor(environment()))
    new(name, VecMonitor(environment(tensors=False))).learn(16)


def test_a_replay_memory_is_saved_without_images_and_goes_on(tmp_path):
    model = new("dqn").learn(64)
    model.save_replay_buffer(tmp_path / "memory")
    assert (tmp_path / "memory.pkl").stat().st_size < 20_000
    other = new("dqn")
    other.load_replay_buffer(tmp_path / "memory")
    for kept, loaded in zip(
        model.replay_buffer.storage.values(), other.replay_buffer.storage.values(), strict=True
    ):
        assert torch.equal(kept, loaded)
    torch.manual_seed(0)
    first = model.replay_buffer.sample(8)
    torch.manual_seed(0)
    assert all(
        torch.equal(one, two) for one, two in zip(first[:5], other.replay_buffer.sample(8)[:5], strict=True)
    )
    other.learn(16, reset_num_timesteps=False)
    for env, message in (
        (sb3_env(DATA, 2, tensors=True), "of 4 environments, not 2; set num_envs=4"),
        (sb3_env(random_images(3, (1, 8, 8)), 4, tensors=True), "and the data set has 3"),
    ):
        with pytest.raises(InputError, match=message):
            new("dqn", env).load_replay_buffer(tmp_path / "memory")


@KINDS
@TENSORS
def test_learning_goes_on_without_a_reset(name, tensors, tmp_path):
    env = environment(tensors, length=5)
    model = new(name, env).learn(12)
    model.save(tmp_path / "model")
    shown = env.task.observe()
    model.set_env(model.get_env(), force_reset=False)
    loaded = type(model).load(tmp_path / "model", env=env, device="cpu", force_reset=False)
    for each in (model, loaded):
        assert isinstance(each._last_obs, torch.Tensor) == tensors
        assert np.array_equal(each._last_obs, shown)
        assert len(each._last_episode_starts) == 4
    before = env.task.state_dict()["time"]
    loaded.learn(4, reset_num_timesteps=False)
    assert env.task.state_dict()["time"] == before + getattr(loaded, "n_steps", 1)
    model.set_env(env)
    assert model._last_obs is None


@KINDS
def test_policies_are_saved_alone(name, tmp_path):
    model = new(name).learn(16)
    model.policy.save(tmp_path / "policy")
    loaded = type(model.policy).load(tmp_path / "policy")
    images = DATA.images.numpy()
    np.testing.assert_array_equal(
        loaded.predict(images, deterministic=True)[0], model.predict(images, deterministic=True)[0]
    )


def test_an_array_on_the_host_is_read_once_and_acts_like_one():
    values = torch.tensor([1.0, 0.0, 3.0])
    array = HostArray(values)
    assert np.sum(array) == 4
    values.fill_(9)  # what was read stays, where reading copies
    assert (array + 1).shape == (3,)
    assert array.dtype == np.float32
    assert len(array) == len(list(array)) == 3
    assert array[array > 0].mean() == np.asarray(array)[np.asarray(array) > 0].mean()
    assert bool(HostArray(torch.tensor([True])).any())
    assert np.concatenate([array, array]).shape == (6,)


@KINDS
def test_a_model_joins_its_environments_or_says_how(name, monkeypatch):
    """SB3's device "auto" is a GPU on a machine with one; here another device stands for it."""
    kind, own = ALGORITHMS[name]
    policy = "CnnPolicy" if name == "dqn" else ImagePolicy
    kwargs = DQN_NETWORK if name == "dqn" else {"network": "mlp"}
    with pytest.warns(UserWarning, match=r"joins its environments on cpu; for meta, .*device='meta'"):
        model = kind(policy, environment(), device="meta", policy_kwargs=kwargs, **own)
    assert {parameter.device.type for parameter in model.policy.parameters()} == {"cpu"}
    model.learn(16)
    elsewhere = environment()
    monkeypatch.setattr(elsewhere.task, "device", torch.device("meta"))
    with pytest.raises(InputError, match="the environments are on meta and the model is on cpu"):
        new(name, elsewhere)
    with pytest.raises(InputError, match="the environments are on meta and the model is on cpu"):
        model.set_env(elsewhere)


@KINDS
def test_seeding_leaves_cudnn_as_it_was(name, monkeypatch):
    def seed(self, value):
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False

    monkeypatch.setattr(BaseAlgorithm, "set_random_seed", seed)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    new(name)
    assert torch.backends.cudnn.benchmark
    assert not torch.backends.cudnn.deterministic


NUMBERS = pytest.mark.parametrize(
    "number", [np.int64, torch.tensor, np.array], ids=["numpy", "tensor", "array"]
)


@KINDS
@NUMBERS
def test_numbers_of_numpy_and_torch_count_as_pythons(name, number):
    kind, own = ALGORITHMS[name]
    policy = "CnnPolicy" if name == "dqn" else ImagePolicy
    kwargs = DQN_NETWORK if name == "dqn" else {"network": "mlp"}
    env = sb3_env(DATA, number(4), tensors=True, seed=number(0), length=number(1))
    share = {np.int64: np.float32}.get(number, number)
    options = {option: number(value) for option, value in own.items()}
    options |= {"gamma": share(0.5), "learning_rate": share(0.125), "max_grad_norm": share(0.5)}
    options = options if name == "dqn" else options | {"ent_coef": share(0.25)}
    model = kind(policy, env, seed=number(0), device="cpu", policy_kwargs=kwargs, **options).learn(number(16))
    own = {key: value.item() for key, value in options.items()}
    env = sb3_env(DATA, 4, tensors=True, seed=0)
    expected = (
        kind(policy, env, seed=0, device="cpu", policy_kwargs=kwargs, **own).learn(16).policy.state_dict()
    )
    assert all(torch.equal(value, expected[key]) for key, value in model.policy.state_dict().items())


@NUMBERS
def test_options_of_numpy_and_torch_are_kept_as_pythons(number):
    given = TrainConfig(seed=number(3), batch_size=number(8), ppo=PPOConfig(epochs=number(2)))
    assert given == TrainConfig(seed=3, batch_size=8, ppo=PPOConfig(epochs=2))
    assert TrainConfig.from_dict(given.to_dict()) == given
