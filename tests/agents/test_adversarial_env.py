"""The environment that shows the learning policy attacked images."""

import numpy as np
import pytest
import stable_baselines3
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.vec_env import DummyVecEnv

from agents import A2C, PPO, ImageNetwork
from agents.algorithms.adversarial_env import AdversarialObservation, quantise
from agents.algorithms.buffers import ShownImagesBuffer
from agents.models.policy import ImagePolicy
from attacks.core.norms import get_norm
from envs import sb3_env
from envs.errors import InputError
from tests.support.env_toys import grey_levels, quadrants

EPS = 0.1


def attacked_env(num_envs=16, tensors=True, dataset=None, **options):
    venv = sb3_env(dataset or quadrants(), num_envs, tensors=tensors, seed=5)
    return AdversarialObservation(venv, **{"eps": EPS, "steps": 3} | options)


def learner(env, kind=PPO, **options):
    defaults = {"n_steps": 2} if kind is A2C else {"n_steps": 2, "batch_size": 16, "n_epochs": 2}
    model = kind(ImagePolicy, env, seed=0, policy_kwargs={"network": "mlp"}, **defaults | options)
    env.watch(model)
    return model


def clean_images(env):
    task = env.venv.task
    return task.render_batch(task.indices, task.augment_seeds)


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
@pytest.mark.parametrize("tensors", [True, False])
def test_images_are_attacked_within_the_ball(norm, tensors):
    eps = {"Linf": EPS, "L2": 1.0, "L1": 6.0}[norm]
    env = attacked_env(tensors=tensors, norm=norm, eps=eps, dataset=grey_levels())
    model = learner(env) if tensors else stock(env)
    for step in range(3):
        shown = torch.as_tensor(env.reset() if step == 0 else env.step(actions(env, tensors))[0])
        clean = clean_images(env)
        assert shown.dtype == torch.uint8
        assert shown.shape == clean.shape
        change = (shown.float() - clean.float()) / 255
        assert (get_norm(norm).length(change) <= eps * (1 + 1e-5)).all()
        assert (get_norm(norm).length(change) > eps / 2).all()
    assert model.num_timesteps == 0


def stock(env, **options):
    """SB3's own PPO over an image network."""
    kwargs = {"features_extractor_class": ImageNetwork, "features_extractor_kwargs": {"network": "mlp"}}
    model = stable_baselines3.PPO("CnnPolicy", env, seed=0, n_steps=4, batch_size=16, n_epochs=1, gamma=0,
                                  policy_kwargs=kwargs, **options)  # fmt: skip
    env.watch(model)
    return model


def actions(env, tensors):
    zeros = torch.zeros(env.num_envs, dtype=torch.int64)
    return zeros if tensors else zeros.numpy()


@pytest.mark.slow
def test_attacked_images_are_harder_and_follow_the_policy():
    env = attacked_env(64, eps=0.3, steps=5)
    model = learner(env)
    model.learn(4_000)
    policy, task = model.policy, env.venv.task

    def loss(images):
        return F.cross_entropy(policy.logits(policy.pixels(images)), task.labels).item()

    clean, shown = clean_images(env), env.observe()
    assert loss(shown) > 2 * loss(clean)
    torch.manual_seed(1)
    before = env.observe()
    torch.manual_seed(1)
    assert torch.equal(env.observe(), before)  # the start is the global generator's
    with torch.no_grad():
        policy.action_net.weight.neg_()
    torch.manual_seed(1)
    assert not torch.equal(env.observe(), before)  # the policy is the present one


def test_a_rollout_keeps_the_images_that_were_shown():
    env = attacked_env()
    model = learner(env)
    assert type(model.rollout_buffer) is ShownImagesBuffer
    shown = []
    show = env._show
    env._show = lambda observations: shown.append(show(observations)) or shown[-1]
    model.learn(32)
    acted_on = torch.cat(shown[:2])  # the third is answered by the next rollout
    stored = torch.cat([batch.observations for batch in model.rollout_buffer.get(16)])
    assert stored.shape == acted_on.shape
    assert {image.numpy().tobytes() for image in stored} == {image.numpy().tobytes() for image in acted_on}
    assert {image.numpy().tobytes() for image in stored} != {
        image.numpy().tobytes() for image in clean_images(env)
    }


def test_the_first_update_of_a_rollout_has_ratio_one():
    model = learner(attacked_env(), n_steps=1, n_epochs=1)
    model.learn(16)
    assert model.logger.name_to_value["train/approx_kl"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("make", [learner, lambda env: learner(env, kind=A2C), stock])
def test_algorithms_train_unchanged(make):
    env = attacked_env(tensors=make is not stock)
    model = make(env)
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    model.learn(64)
    assert any(not torch.equal(value, before[name]) for name, value in model.policy.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.policy.parameters())


def test_dqn_of_stable_baselines_trains_on_attacked_images():
    env = attacked_env(4, tensors=False)
    kwargs = {
        "features_extractor_class": ImageNetwork,
        "features_extractor_kwargs": {"network": "mlp"},
        "net_arch": [],
    }
    model = stable_baselines3.DQN("CnnPolicy", env, seed=0, buffer_size=64, learning_starts=8, batch_size=8,
                                  policy_kwargs=kwargs)  # fmt: skip
    env.watch(model)
    model.learn(32)
    clean = {image.numpy().tobytes() for image in quadrants().images}
    assert not any(image.tobytes() in clean for image in model.replay_buffer.observations[:8, 0])


def test_a_share_of_the_images_is_attacked_from_a_number_of_images_on():
    env = attacked_env(64, share=0.25, begins=100)
    model = learner(env)
    assert torch.equal(env.reset(), clean_images(env))
    model.num_timesteps = 100
    shares = [(env.observe() != clean_images(env)).flatten(1).any(1).float().mean() for _ in range(20)]
    assert sum(shares) / 20 == pytest.approx(0.25, abs=0.06)


def test_terminal_observations_are_the_images_that_were_answered():
    venv = sb3_env(quadrants(), 4, seed=5, length=2)
    env = AdversarialObservation(venv, eps=EPS, steps=1)
    stock(env)
    env.reset()
    answered = env.step(np.zeros(4, dtype=np.int64))[0]
    *_, dones, infos = env.step(np.zeros(4, dtype=np.int64))
    assert dones.all()
    for index, info in enumerate(infos):
        assert np.array_equal(info["terminal_observation"], answered[index])


@settings(max_examples=60, deadline=None)
@given(
    norm=st.sampled_from(["Linf", "L2", "L1"]),
    levels=st.floats(0.2, 60),
    seed=st.integers(0, 2**20),
    spread=st.sampled_from([0.1, 1.0, 100.0]),
)
def test_whole_levels_stay_in_the_ball(norm, levels, seed, spread):
    generator = torch.Generator().manual_seed(seed)
    clean = torch.randint(0, 256, (6, 1, 4, 4), dtype=torch.uint8, generator=generator)
    eps = torch.tensor(levels / 255)
    chosen, pixels = get_norm(norm), clean.float() / 255
    moved = pixels + spread * eps * torch.randn(clean.shape, generator=generator)
    attacked = chosen.confine(moved, pixels, eps.expand(6))
    images = quantise(attacked, clean, chosen, eps.item())
    change = images.float() - clean.float()
    assert (chosen.length(change / 255) <= eps * (1 + 1e-5)).all()
    assert (change / 255 - (attacked - pixels)).abs().max() <= 1 / 255 + 1e-5


def test_whole_levels_lose_nothing_where_the_radius_is_whole_levels():
    clean = torch.full((1, 1, 2, 2), 100, dtype=torch.uint8)
    attacked = (clean.float() / 255 + torch.tensor([[[[8 / 255, -8 / 255], [3.4 / 255, 0.0]]]])).clamp(0, 1)
    images = quantise(attacked, clean, get_norm("Linf"), 8 / 255)
    assert images.flatten().tolist() == [108, 92, 103, 100]
    tenth = (clean.float() / 255 + 0.1).clamp(0, 1)
    assert quantise(tenth, clean, get_norm("Linf"), 0.1).unique().tolist() == [125]  # 25.5 levels


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: attacked_env().reset(), "no policy to attack; call watch"),
        (lambda: attacked_env(eps=8), "eps is 8; .*divide by 255"),
        (lambda: attacked_env(share=0.0), "share is 0.0; expected above 0"),
        (lambda: attacked_env(steps=0), "steps is 0"),
        (
            lambda: AdversarialObservation(DummyVecEnv([lambda: __import__("gymnasium").make("CartPole-v1")]), eps=EPS),
            "a DummyVecEnv has no labels to attack; wrap an environment from envs.sb3_env",
        ),
    ],
)  # fmt: skip
def test_mistakes_are_told_in_one_line(make, message):
    with pytest.raises(InputError, match=message):
        make()
