"""Files of rl_zoo3: which entry is taken, where its values go, and what is said of those without a counterpart."""

import pytest

from agents.config import TrainConfig
from agents.hyperparameters import start_from
from agents.train import run
from envs.errors import InputError

ATARI = """
atari:
  env_wrapper:
    - stable_baselines3.common.atari_wrappers.AtariWrapper
  frame_stack: 4
  policy: 'CnnPolicy'
  n_envs: 8
  n_steps: 128
  n_epochs: 4
  batch_size: 256
  n_timesteps: !!float 1e7
  learning_rate: lin_2.5e-4
  clip_range: lin_0.1
  vf_coef: 0.5
  ent_coef: 0.01
"""
OURS = """
ImageBandit-v0:
  normalize: true
  n_timesteps: 1e3
  policy: 'CnnPolicy'
  policy_kwargs: "dict(net_arch=[__import__('os').abort()])"
  learning_rate: 0.003
  target_kl: null
  normalize_advantage: false
default:
  n_timesteps: 5
"""


@pytest.fixture
def zoo(tmp_path):
    (tmp_path / "ppo.yml").write_text(ATARI)
    (tmp_path / "ours.yml").write_text(OURS)
    return tmp_path


def test_values_go_to_the_options_that_mean_the_same(zoo, capsys):
    config = start_from(["--algo", "ppo", "--hyperparameters", f"{zoo}/ppo.yml:atari"])
    assert (config.total_images, config.batch_size) == (10_000_000, 256)
    assert (config.learning_rate, config.lr_schedule, config.lr_end) == (2.5e-4, "linear", 0.0)
    assert config.ppo.rollout == 8 * 128
    assert (config.ppo.epochs, config.ppo.vf_coef, config.ppo.ent_coef) == (4, 0.5, 0.01)
    assert config.ppo.clip_range == TrainConfig().ppo.clip_range
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert line.endswith("no counterpart: env_wrapper, frame_stack, policy, clip_range (falling)\n")
    config.validate()


def test_the_entry_of_the_environment_comes_before_default_and_nothing_is_executed(zoo, capsys):
    config = start_from([f"--hyperparameters={zoo}/ours.yml"])
    assert config.total_images == 1_000
    assert (config.learning_rate, config.lr_schedule) == (0.003, "constant")
    assert config.ppo.target_kl is None
    assert config.ppo.normalize_advantage is False
    assert "no counterpart: normalize, policy, policy_kwargs" in capsys.readouterr().err
    assert start_from(["--hyperparameters", f"{zoo}/ours.yml:default"]).total_images == 5
    assert start_from(["--hyperparameters", f"{zoo}/ours.yml", "--passes", "1"]).total_images is None
    assert start_from(["--preset", "digits-ppo", "--hyperparameters", f"{zoo}/ours.yml"]).passes is None
    assert start_from(["--algo", "ppo"]) is None


def test_a_batch_of_a2c_and_the_memory_of_dqn(tmp_path, capsys):
    path = tmp_path / "mine.yml"
    path.write_text("default: {n_envs: 16, ent_coef: 0.02}")
    config = start_from(["--algo", "a2c", "--hyperparameters", str(path)])
    assert (config.batch_size, config.ppo.ent_coef) == (80, 0.02)
    path.write_text("default: {buffer_size: 1e4, exploration_final_eps: 0.01, train_freq: 4}")
    config = start_from(["--algo", "dqn", "--hyperparameters", str(path)])
    assert (config.dqn.buffer_size, config.exploration.eps) == (10_000, 0.01)
    assert capsys.readouterr().err.endswith("no counterpart: train_freq\n")


def test_a_run_takes_them_and_other_options_override_them(zoo, tmp_path, capsys):
    where = ["--run-dir", str(tmp_path / "run"), "--network", "mlp", "--no-attack", "--no-progress"]
    assert run(["--hyperparameters", f"{zoo}/ours.yml", *where, "--learning-rate", "0.001"]) == 0
    text = (tmp_path / "run" / "config.json").read_text()
    for part in ('"learning_rate": 0.001', '"total_images": 1000', 'ours.yml"'):
        assert part in text, part


FAULTS = {
    "absent.yml": "No such file",
    "CartPole-v1: {n_steps: 8}": "no entry ImageBandit-v0, ImageEpisode-v0 or default; .*yml:CartPole-v1",
    "": "has no entries",
    "[": "is not YAML",
    "default: 3": "default: 3; expected hyperparameters",
    "default: {n_epochs: many}": "n_epochs: 'many'; expected a number",
    "default: {n_timesteps: .nan}": "n_timesteps: nan; expected a number",
    "default: {gamma: true}": "gamma: True; expected a number",
    "default: {normalize_advantage: 1}": "normalize_advantage: 1; expected true or false",
    "default: !!python/object/apply:os.abort []": "is not YAML",
}


@pytest.mark.parametrize("text", FAULTS)
def test_faults_are_named(text, tmp_path):
    path = tmp_path / "mine.yml"
    if text != "absent.yml":
        path.write_text(text)
    with pytest.raises((InputError, OSError), match=FAULTS[text]):
        start_from(["--hyperparameters", str(path)])


def test_an_unknown_entry_names_the_nearest(zoo):
    with pytest.raises(InputError, match=r"unknown entry of .*'atary'.*Did you mean 'atari'"):
        start_from(["--hyperparameters", f"{zoo}/ppo.yml:atary"])
