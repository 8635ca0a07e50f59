import functools

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from torch import nn

from agents import ImagePolicy
from agents.models import image_network as networks
from agents.models.classifier_files import load_classifier, save_classifier
from agents.models.extraction import extract_classifier
from agents.models.image_network import ImageNetwork, image_space
from envs import load_dataset, sb3_env
from envs.errors import InputError

EXTRACTOR = {"features_extractor_class": ImageNetwork}


SMALL = {
    "PPO": {"n_steps": 8, "batch_size": 64, "n_epochs": 1},
    "A2C": {},
    "DQN": {"buffer_size": 300, "learning_starts": 64},
}


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits", "test")


def trained(algorithm, policy_kwargs, images=192):
    """Return a stock SB3 model after a short training, enough to move its weights."""
    model = algorithm(
        "CnnPolicy",
        sb3_env("digits", num_envs=32, seed=0),
        policy_kwargs=EXTRACTOR | policy_kwargs,
        learning_rate=1e-3,
        seed=0,
        device="cpu",
        **SMALL[algorithm.__name__],
    )
    return model.learn(images)


def balance(model, images):
    """Shift the logits so that different images get different actions, and spread them so that none tie."""
    classifier = extract_classifier(model.policy).eval()
    with torch.no_grad():
        classifier.head.weight *= 100
        classifier.head.bias -= classifier(images / 255).mean(0)


def actions(model, images):
    return torch.as_tensor(model.predict(images.numpy(), deterministic=True)[0])


CASES = [
    (PPO, {}),
    (PPO, {"net_arch": [], "features_extractor_kwargs": {"network": "small", "mean": [0.3], "std": [0.4]}}),
    (
        PPO,
        {"net_arch": {"pi": [32], "vf": [16, 8]}, "activation_fn": nn.ELU, "share_features_extractor": False},
    ),
    (A2C, {"net_arch": [], "features_extractor_kwargs": {"network": "cnn4", "mean": (0.3,), "std": (0.4,)}}),
    (A2C, {"activation_fn": nn.ReLU, "features_extractor_kwargs": {"network": "mlp"}}),
    (DQN, {}),
    (DQN, {"net_arch": [], "features_extractor_kwargs": {"network": "cnn4", "mean": [0.3], "std": [0.4]}}),
    (DQN, {"net_arch": [24, 16], "activation_fn": nn.Tanh}),
]


@pytest.mark.parametrize(("algorithm", "policy_kwargs"), CASES)
def test_argmax_is_the_policy_on_every_test_image(algorithm, policy_kwargs, digits, tmp_path):
    model = trained(algorithm, policy_kwargs)
    balance(model, digits.images)
    expected = actions(model, digits.images)
    assert len(expected.unique()) > 5
    pixels = digits.images.float() / 255
    live = extract_classifier(model.policy).eval()
    assert torch.equal(live(pixels).argmax(1), expected)

    model.save(tmp_path / "model.zip")
    loaded = load_classifier(tmp_path / "model.zip")
    assert not loaded.training
    assert torch.equal(loaded(pixels), live(pixels))
    assert (loaded.shape, loaded.num_classes, loaded.network) == ((1, 8, 8), 10, live.network)

    save_classifier(live, tmp_path / "model.safetensors")
    assert torch.equal(load_classifier(tmp_path)(pixels), live(pixels))


class Noise(gym.Env):
    observation_space = image_space((2, 40, 44))
    action_space = gym.spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), float(action == 1), True, False, {}


@pytest.mark.parametrize("algorithm", [PPO, DQN])
def test_stock_cnn_policies_load_too(algorithm, tmp_path):
    model = algorithm("CnnPolicy", Noise(), seed=0, device="cpu", **SMALL[algorithm.__name__])
    images = torch.randint(0, 256, (50, 2, 40, 44), dtype=torch.uint8)
    balance(model, images)
    expected = actions(model, images)
    model.save(tmp_path / "stock")
    live, loaded = extract_classifier(model.policy).eval(), load_classifier(tmp_path / "stock")
    assert live.network == loaded.network == "nature"
    assert torch.equal(loaded(images / 255).argmax(1), expected)
    assert torch.equal(live(images / 255), loaded(images / 255))
    save_classifier(live, tmp_path / "model.safetensors")
    assert torch.equal(load_classifier(tmp_path)(images / 255), live(images / 255))


class Pixels(Noise):
    """Random images of a given type and range, channels first."""

    def __init__(self, dtype, low=0, high=1):
        self.observation_space = gym.spaces.Box(low, high, (1, 8, 8), np.dtype(dtype).type)


def normalised(dtype):
    model = A2C(
        "CnnPolicy",
        VecNormalize(sb3_env("digits", 2) if dtype == "uint8" else DummyVecEnv([lambda: Pixels(dtype)])),
        policy_kwargs=EXTRACTOR,
        device="cpu",
    )
    return model.learn(10)


def in_range(policy_class, low, high, dtype="float32", **policy_kwargs):
    return PPO(policy_class, Pixels(dtype, low, high), policy_kwargs=policy_kwargs, device="cpu", seed=0)


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-1, 1), (0, 255)])
@pytest.mark.parametrize("policy_class", [ImagePolicy, "CnnPolicy"])
def test_policies_of_floats_answer_as_their_classifiers_do(policy_class, low, high, tmp_path):
    options = {"mean": [0.3], "std": [0.4]}
    options = options if policy_class is ImagePolicy else EXTRACTOR | {"features_extractor_kwargs": options}
    model = in_range(policy_class, low, high, **options)
    images = torch.rand(40, 1, 8, 8)
    shown = images * (high - low) + low
    expected = model.policy.get_distribution(shown).distribution.logits
    model.save(tmp_path / "model.zip")
    save_classifier(extract_classifier(model.policy), tmp_path / "model.safetensors")
    for path in ("model.zip", "model.safetensors"):
        found = load_classifier(tmp_path / path)(images).log_softmax(1)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    assert torch.equal(model.policy.get_distribution(shown).distribution.logits, expected)


def test_bytes_that_are_not_divided(digits, tmp_path):
    model = trained(PPO, {"normalize_images": False}, images=0)
    expected = model.policy.get_distribution(digits.images).distribution.logits
    model.save(tmp_path / "model.zip")
    for classifier in (extract_classifier(model.policy).eval(), load_classifier(tmp_path / "model.zip")):
        found = classifier(digits.images / 255).log_softmax(1)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("low", "high", "dtype"), [(-10, 10, "float32"), (0, 2, "float32"), (0, 1, "uint8")])
def test_unusual_ranges_of_pixels_are_refused(low, high, dtype, tmp_path):
    model = in_range(ImagePolicy, low, high, dtype)
    model.save(tmp_path / "model.zip")
    for extract in (
        lambda: extract_classifier(model.policy),
        lambda: load_classifier(tmp_path / "model.zip"),
    ):
        with pytest.raises(InputError, match=rf"{dtype} in {low}..{high}; expected uint8"):
            extract()


@pytest.mark.parametrize(
    ("activation", "text"),
    [
        (functools.partial(nn.LeakyReLU, 0.5), "LeakyReLU(0.5)"),
        (functools.partial(nn.ELU, alpha=3), "ELU(3.0)"),
        (functools.partial(nn.GELU, "tanh"), "GELU(tanh)"),
        (nn.LeakyReLU, "LeakyReLU"),
    ],
)
def test_arguments_of_activations_are_kept(activation, text, digits, tmp_path):
    model = trained(DQN, {"net_arch": [16], "activation_fn": activation}, images=0)
    expected = model.policy.q_net(digits.images)
    model.save(tmp_path / "model.zip")
    save_classifier(extract_classifier(model.policy), tmp_path / "model.safetensors")
    for path in ("model.zip", "model.safetensors"):
        loaded = load_classifier(tmp_path / path)
        assert loaded.spec.hidden == (16, text)
        torch.testing.assert_close(loaded(digits.images / 255), expected)


def test_policies_that_do_more_than_their_network_are_refused(tmp_path):
    class Contrary(ActorCriticPolicy):
        def _predict(self, observation, deterministic=False):
            return self.get_distribution(observation).distribution.logits.argmin(-1)

    model = A2C(Contrary, sb3_env("digits", 4), device="cpu", policy_kwargs=EXTRACTOR)
    with pytest.raises(InputError, match="a Contrary decides otherwise than its network"):
        extract_classifier(model.policy)
    model.save(tmp_path / "model.zip")
    with pytest.raises(
        InputError, match=r"code of its own, tests.agents.test_classifier; allow it by --trust"
    ):
        load_classifier(tmp_path / "model.zip")


def test_extraction_shares_modules_and_leaves_modes(digits):
    policy = trained(PPO, {}, images=0).policy
    policy.set_training_mode(True)
    classifier = extract_classifier(policy)
    assert classifier.body is policy.features_extractor
    assert classifier.head is policy.action_net
    assert all(part.training for part in classifier.modules())
    policy.set_training_mode(False)
    assert not any(part.training for part in extract_classifier(policy).modules())


def test_other_extractors_are_wrapped(digits):
    class Flat(networks.BaseFeaturesExtractor):
        def __init__(self, observation_space):
            super().__init__(observation_space, 64)
            self.flatten = nn.Flatten()

        def forward(self, images):
            return self.flatten(images)

    model = trained(A2C, {"features_extractor_class": Flat})
    expected = actions(model, digits.images)
    classifier = extract_classifier(model.policy).eval()
    assert torch.equal(classifier(digits.images / 255).argmax(1), expected)
    assert classifier.network.endswith("Flat")


def test_policies_without_a_classifier_are_refused():
    cart = PPO("MlpPolicy", "CartPole-v1", device="cpu").policy
    with pytest.raises(InputError, match=r"no image classifier|is not \(C, H, W\)"):
        extract_classifier(cart)
    pendulum = A2C("MlpPolicy", "Pendulum-v1", device="cpu").policy
    with pytest.raises(InputError, match="no image classifier"):
        extract_classifier(pendulum)
    with pytest.raises(InputError, match="no classifier inside"):
        extract_classifier(nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PPO("MlpPolicy", "CartPole-v1", device="cpu"), "neither ImageNetwork nor NatureCNN"),
        (lambda: trained(PPO, {"activation_fn": nn.Softsign}, images=0), "activation_fn is .*Softsign"),
        (lambda: trained(PPO, {"activation_fn": lambda: nn.ELU(3)}, images=0), "activation_fn is .*lambda"),
        (lambda: normalised("uint8"), "trained under VecNormalize"),
        (lambda: normalised("float32"), "trained under VecNormalize"),
    ],
)
def test_zips_without_a_classifier_are_refused(make, message, tmp_path):
    make().save(tmp_path / "model.zip")
    with pytest.raises(InputError, match=message) as caught:
        load_classifier(tmp_path / "model.zip")
    assert "\n" not in str(caught.value)
