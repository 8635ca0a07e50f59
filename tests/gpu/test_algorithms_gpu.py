"""Training on a pretended GPU: no device is mixed, no step waits, and the weights are those of the CPU."""

import pytest
import torch

from agents.adversarial_config import AdversarialConfig
from agents.config import DQNConfig, ExplorationConfig, PPOConfig, TrainConfig
from agents.training.factory import build_algorithm, build_env
from envs import load_dataset
from tests.support.pretend_cuda import PretendCuda

ALGORITHMS = ("reinforce", "epg", "supervised", "ppo", "a2c", "dqn")
OWN = {
    "ppo": {"ppo": PPOConfig(rollout=64, epochs=2)},
    "dqn": {"dqn": DQNConfig(learning_starts=0, target_update_interval=64)},
}


def learn(device, images=192, algo="reinforce", **options):
    """Train on 8x8 digits and return the algorithm."""
    config = TrainConfig(algo=algo, network="mlp", batch_size=32, total_images=1024, **(OWN.get(algo, {}) | options))
    torch.manual_seed(0)
    data = load_dataset("digits").to(device)
    env = build_env(config, data)
    model = build_algorithm(algo, config, env, data)
    model.learn(images, log_interval=None)
    return model


def weights(model):
    return torch.cat([parameter.detach().cpu().flatten() for parameter in model.policy.parameters()])


def check_same_as_cpu(**options):
    expected = weights(learn("cpu", **options))
    with PretendCuda():
        model = learn("cuda", **options)
        assert all(parameter.is_cuda for parameter in model.policy.parameters())
        found = weights(model)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_an_algorithm_learns_on_the_gpu_what_it_learns_on_the_cpu(algo):
    check_same_as_cpu(algo=algo)


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_no_training_step_waits(gpu, algo):
    model = learn("cuda", algo=algo)
    with gpu.counting() as events:
        model.learn(192, log_interval=None, reset_num_timesteps=False)
    assert events.wait_count == 0, events.report()
