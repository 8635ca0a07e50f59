"""Training on a pretended GPU: no device is mixed, no step waits, and the weights are those of the CPU."""

import pytest
import torch

from agents import Reinforce
from agents.adversarial_config import AdversarialConfig
from agents.config import DQNConfig, ExplorationConfig, PPOConfig, TrainConfig
from agents.training.factory import build_algorithm, build_env
from agents.training.resolve import resolve
from envs import load_dataset
from tests.support.pretend_cuda import DeviceError, PretendCuda

pytestmark = pytest.mark.slow

ALGORITHMS = ("reinforce", "epg", "supervised", "ppo", "a2c", "dqn")
OWN = {
    "ppo": {"ppo": PPOConfig(rollout=64, epochs=2)},
    "dqn": {"dqn": DQNConfig(learning_starts=0, target_update_interval=64)},
}


def learn(device, images=192, algo="reinforce", **options):
    """Train on 8x8 digits and return the algorithm."""
    options = {"network": "mlp", "batch_size": 32, "total_images": 1024} | OWN.get(algo, {}) | options
    config = TrainConfig(algo=algo, **options)
    torch.manual_seed(0)
    data = load_dataset("digits").to(device)
    settings = resolve(config, data)
    model = build_algorithm(settings, build_env(settings, data), data)
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


def test_a_planted_wait_is_found(gpu, monkeypatch):
    model = learn("cuda")
    monkeypatch.setattr(
        Reinforce, "loss", lambda self, logits, batch: logits.mean() * batch.returns.mean().item()
    )
    with gpu.waits_forbidden(), pytest.raises(AssertionError, match="item"):
        model.learn(32, log_interval=None, reset_num_timesteps=False)


def test_a_planted_tensor_on_the_host_is_found(gpu, monkeypatch):
    model = learn("cuda")
    monkeypatch.setattr(
        Reinforce, "loss", lambda self, logits, batch: (logits * torch.ones(logits.shape)).mean()
    )
    with pytest.raises(DeviceError):
        model.learn(32, log_interval=None, reset_num_timesteps=False)


@pytest.mark.parametrize("algo", ["reinforce", "epg", "supervised", "ppo", "a2c"])
@pytest.mark.parametrize(
    "ball",
    [
        AdversarialConfig("fgsm"),
        AdversarialConfig("pgd", steps=2),
        AdversarialConfig("pgd", steps=2, norm="L2", share=0.5),
        AdversarialConfig("pgd", steps=2, norm="L1", eps=3.0),
        AdversarialConfig("pgd", steps=2, mix="add", objective="own"),
        AdversarialConfig("trades", steps=2),
    ],
    ids=["fgsm", "pgd", "L2", "L1", "add", "trades"],
)
def test_adversarial_training(algo, ball):
    if algo in ("ppo", "a2c") and (ball.rule == "trades" or ball.mix == "add"):
        pytest.skip("not offered")
    check_same_as_cpu(algo=algo, images=64, adversarial=ball)


@pytest.mark.parametrize("ball", ["fgsm", "pgd", "trades"])
@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_no_step_of_adversarial_training_waits(gpu, ball, norm):
    model = learn("cuda", algo="reinforce", images=64, adversarial=AdversarialConfig(ball, norm=norm))
    with gpu.waits_forbidden():
        model.learn(64, log_interval=None, reset_num_timesteps=False)


@pytest.mark.parametrize("algo", ["ppo", "a2c"])
def test_no_step_in_an_adversarial_environment_waits(gpu, algo):
    model = learn(
        "cuda", algo=algo, images=64, adversarial=AdversarialConfig("pgd", steps=2, norm="L1", share=0.5)
    )
    with gpu.waits_forbidden():
        model.learn(64, log_interval=None, reset_num_timesteps=False)


OPTIONS = {
    "augmentation": {"augmentation": "paper"},
    "episodes": {
        "episode_length": 3,
        "stop_on_error": True,
        "ppo": PPOConfig(rollout=64, epochs=1, gamma=0.9),
    },
    "label noise": {"label_noise": 0.2},
    "signed": {"reward": "signed"},
    "exploration": {"exploration": ExplorationConfig(eps=0.3, mode="mixture")},
    "batch exploration": {"exploration": ExplorationConfig(eps=0.3, mode="batch")},
    "convolutions": {"network": "small"},
    "dropout": {"network": "cnn4", "images": 32, "ppo": PPOConfig(rollout=32, epochs=1)},
    "no clipping": {"max_grad_norm": 0.0, "lr_schedule": "cosine", "lr_warmup": 0.01},
    "entropy": {"ppo": PPOConfig(rollout=64, epochs=1, ent_coef=0.1)},
}


@pytest.mark.parametrize("algo", ALGORITHMS)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_options_of_environment_policy_and_loss(algo, options):
    check_same_as_cpu(**({"algo": algo, "images": 64} | options))


@pytest.mark.parametrize("algo", [name for name in ALGORITHMS if name != "dqn"])
def test_bf16(algo):
    check_same_as_cpu(algo=algo, images=64, precision="bf16", network="small")


def test_target_kl_stops_on_the_device_where_the_cpu_stops(gpu):
    options = {"algo": "ppo", "ppo": PPOConfig(rollout=64, epochs=4, target_kl=1e-6)}
    model = learn("cuda", **options)
    passes = model._n_updates
    with gpu.counting() as events:
        model.learn(192, log_interval=None, reset_num_timesteps=False)
    assert events.wait_count == model._n_updates - passes  # once a pass, not once a minibatch
    assert model._n_updates < 6 * 4  # and it did stop early


def test_target_kl_learns_what_it_learns_on_the_cpu():
    check_same_as_cpu(algo="ppo", ppo=PPOConfig(rollout=64, epochs=4, target_kl=1e-6))
