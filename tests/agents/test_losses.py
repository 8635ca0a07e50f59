import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.algorithms import losses
from agents.algorithms.reinforce import ExpectedPolicyGradient, Reinforce
from agents.algorithms.single_pass import Batch
from agents.models import action_distribution as distribution
from envs import sb3_env
from envs.errors import InputError
from tests.support.env_toys import random_images

LOGITS = torch.tensor([[1.0, -0.5, 0.3], [0.0, 2.0, -1.0], [4.0, 4.0, 4.0], [-30.0, 0.0, 60.0]])


def softmax(row):
    exponentials = [math.exp(value - max(row)) for value in row]
    return [value / sum(exponentials) for value in exponentials]


def floored_log_probs(logits):
    """The paper's policy: a softmax with a floor under every probability."""
    return ((logits.softmax(-1) + 1e-6) / (1 + logits.shape[-1] * 1e-6)).log()


def test_the_floor_takes_the_gradient_from_saturated_samples():
    logits = torch.tensor([[0.0, 40.0]], requires_grad=True)
    probs, actions = distribution.softmax(logits), torch.tensor([0])
    loss = losses.floored_policy_gradient(logits, probs, actions, torch.ones(1))
    assert loss.item() == pytest.approx(-math.log(1e-6), abs=1e-3)  # where softmax gives e^-40
    loss.backward()
    assert logits.grad.abs().max() < 1e-9
    logits.grad = None
    logits.log_softmax(-1)[0, 0].backward()
    assert logits.grad[0, 0] == pytest.approx(1)


@pytest.mark.parametrize("exploration", [0.0, 0.1, 1.0])
def test_mixture_log_probs_follow_the_formula(exploration):
    expected = [[(1 - exploration) * p + exploration / 3 for p in softmax(row)] for row in LOGITS.tolist()]
    found = distribution.mixture_log_probs(LOGITS, exploration).exp()
    assert torch.allclose(found, torch.tensor(expected), atol=1e-6)


def test_mixture_without_exploration_keeps_the_gradient_of_saturated_samples():
    logits = torch.tensor([[0.0, 200.0]], requires_grad=True)
    distribution.mixture_log_probs(logits, 0.0)[0, 0].backward()
    assert logits.grad[0, 0] == pytest.approx(1)


def test_cross_entropy_entropy_and_sampled_gradient_have_their_closed_forms():
    assert losses.cross_entropy(torch.zeros(5, 10), torch.arange(5)).item() == pytest.approx(math.log(10))
    assert distribution.entropy(torch.zeros(2, 8).log_softmax(-1)).item() == pytest.approx(math.log(8))
    assert distribution.entropy(torch.tensor([[0.25, 0.75]]).log()).item() == pytest.approx(0.5623351446)
    found = losses.sampled_policy_gradient(torch.tensor([0.75, 0.5]).log(), torch.tensor([2.0, -1.0]))
    assert found.item() == pytest.approx(-(2 * math.log(0.75) - math.log(0.5)) / 2)


def test_the_expected_gradient_is_the_weighted_cross_entropy_gradient():
    """With reward [a = y], log p = log softmax: each image's gradient is w(x) (p - onehot y), eq. in its docstring."""
    logits = LOGITS[:3].clone().requires_grad_()
    labels = torch.tensor([2, 1, 0])
    log_probs = logits.log_softmax(-1)
    eps = 0.1
    weight = (1 - eps) * log_probs.detach().exp() + eps / 3
    losses.expected_policy_gradient(log_probs, torch.eye(3)[labels], weight).backward()
    p = LOGITS[:3].softmax(-1)
    at_label = weight.gather(1, labels[:, None])
    assert torch.allclose(logits.grad, at_label * (p - F.one_hot(labels, 3)) / 3, atol=1e-7)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-20, 20), min_size=2, max_size=6), st.floats(0, 1))
def test_every_policy_is_a_distribution(row, exploration):
    logits = torch.tensor([row])
    log_probs = distribution.mixture_log_probs(logits, exploration)
    assert torch.allclose(log_probs.exp().sum(), torch.tensor(1.0), atol=1e-5)
    assert 0 <= distribution.entropy(log_probs) <= math.log(len(row)) + 1e-5


@pytest.mark.parametrize("mixture", [0.0, 0.3])
def test_the_log_probability_of_one_action_is_that_of_all(mixture):
    actions = torch.arange(len(LOGITS)) % LOGITS.shape[1]
    every = distribution.mixture_log_probs(LOGITS, mixture)
    found = distribution.action_log_probs(LOGITS, actions, mixture)
    assert torch.allclose(found, every.gather(1, actions[:, None])[:, 0], atol=1e-6)


def test_actions_are_drawn_by_their_probabilities():
    log_probs = torch.tensor([[0.5, 0.3, 0.2, 0.0]]).log().expand(40_000, 4)
    shares = distribution.sample_actions(log_probs).bincount(minlength=4) / 40_000
    assert torch.allclose(shares, torch.tensor([0.5, 0.3, 0.2, 0.0]), atol=4 * 0.5 / 200)
    assert shares[3] == 0


def test_impossible_actions_are_never_drawn(monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda *shape, **_: torch.zeros(shape))  # the least that can be drawn
    log_probs = torch.tensor([[-torch.inf, -torch.inf, 0.0, -torch.inf]])
    assert distribution.sample_actions(log_probs).tolist() == [2]


def test_whole_batches_explore_at_the_given_rate():
    rate = sum(distribution.explores(0.25) for _ in range(4_000)) / 4_000
    assert rate == pytest.approx(0.25, abs=4 * math.sqrt(0.25 * 0.75 / 4_000))
    assert distribution.explores(1.0)
    assert not distribution.explores(0.0)
    shares = distribution.uniform_actions(torch.zeros(40_000, 4)).bincount(minlength=4) / 40_000
    assert torch.allclose(shares, torch.full((4,), 0.25), atol=0.01)


REWARDS = {"accuracy": torch.eye(3), "matrix": torch.tensor([[1.0, -0.5, 0.0], [0.2, 2.0, 0.1], [0, 0, 1]])}


def gradient(model, logits, batch):
    leaf = logits.clone().requires_grad_()
    model.loss(leaf, batch).backward()
    return leaf.grad


def model_of(kind, mode, reward):
    env = sb3_env(random_images(12, (1, 3, 3), 3), num_envs=4, tensors=True, reward=reward)
    return kind(
        env=env, exploration=0.3, exploration_mode=mode, policy_kwargs={"network": "mlp"}, device="cpu"
    )


def plain(logits, actions, returns, action_rewards, exploration):
    """REINFORCE's loss and its expectation, written with autograd's own operations."""
    log_probs = ((logits.softmax(-1) + 1e-6) / (1 + logits.shape[1] * 1e-6)).log()
    taken = log_probs.gather(1, actions[:, None])[:, 0]
    drawn_by = (1 - exploration) * log_probs.exp() + exploration / logits.shape[1]
    return (
        losses.sampled_policy_gradient(taken, returns),
        losses.expected_policy_gradient(log_probs, action_rewards, drawn_by),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("exploration", [0.0, 0.3])
def test_closed_forms_are_the_formulas_with_the_gradients_of_autograd(dtype, exploration):
    """Through a layer that makes the logits from an input, as attacks on images need it; all at a scale of 5."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(40, 6, generator=generator, dtype=dtype)
    layer = 5 * torch.randn(6, 4, generator=generator, dtype=dtype)
    actions = torch.randint(4, (40,), generator=generator)
    returns, action_rewards = (torch.randn(size, generator=generator, dtype=dtype) for size in (40, (40, 4)))

    def found(logits):
        probs = distribution.softmax(logits)
        yield losses.floored_policy_gradient(logits, probs, actions, returns)
        yield losses.floored_expected_policy_gradient(logits, probs, action_rewards, exploration)

    first, second = (inputs.clone().requires_grad_() for _ in range(2))
    expected = plain(second @ layer, actions, returns, action_rewards, exploration)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    for ours, theirs in zip(found(first @ layer), expected, strict=True):
        assert ours.item() == pytest.approx(theirs.item(), rel=tolerance)
        (mine,) = torch.autograd.grad(3 * ours, first, retain_graph=True)
        (other,) = torch.autograd.grad(3 * theirs, second, retain_graph=True)
        torch.testing.assert_close(mine, other, rtol=tolerance, atol=tolerance)


def test_the_closed_form_passes_gradcheck_and_refuses_a_second_derivative():
    logits = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    actions, returns = torch.tensor([0, 1, 2, 3, 0]), torch.randn(5, dtype=torch.float64)

    def loss(logits):
        return losses.floored_policy_gradient(logits, distribution.softmax(logits), actions, returns)

    assert torch.autograd.gradcheck(loss, logits)
    with pytest.raises(RuntimeError, match="first derivatives only"):
        torch.autograd.grad(loss(logits), logits, create_graph=True)


def test_a_loss_on_other_logits_does_not_reuse_the_probabilities_of_the_first():
    model = model_of(Reinforce, "batch", "accuracy")
    actions = model.choose_actions(LOGITS)
    batch = Batch(LOGITS, LOGITS, actions, torch.ones(4))
    expected = -floored_log_probs(2 * LOGITS).gather(1, actions[:, None]).mean()
    assert model.loss(2 * LOGITS, batch).item() == pytest.approx(expected.item(), rel=1e-5)
    assert torch.equal(gradient(model, LOGITS, batch), gradient(model, LOGITS, batch))


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["batch", "mixture"])
@pytest.mark.parametrize("reward", list(REWARDS))
def test_the_mean_of_reinforce_converges_to_the_expected_policy_gradient(mode, reward):
    """Two-sided z-tests of every component over 2,000 draws; the other mode's expectation must be refused."""
    logits = LOGITS[:3]
    action_rewards = REWARDS[reward][torch.tensor([2, 1, 0])]
    reinforce = model_of(Reinforce, mode, "accuracy")
    draws = []
    for _ in range(2_000):
        actions = reinforce.choose_actions(logits)
        returns = action_rewards.gather(1, actions[:, None])[:, 0]
        draws.append(gradient(reinforce, logits, Batch(logits, logits, actions, returns)))
    draws = torch.stack(draws)
    mean, error = draws.mean(0), draws.std(0) / math.sqrt(len(draws))

    def scores(mode):
        batch = Batch(logits, logits, actions, returns, action_rewards=action_rewards)
        expected = gradient(model_of(ExpectedPolicyGradient, mode, "accuracy"), logits, batch)
        return ((mean - expected) / error.clamp(min=1e-9)).abs()

    assert scores(mode).max() < 4.5
    assert scores({"batch": "mixture", "mixture": "batch"}[mode]).max() > 6


def test_the_expectation_has_no_variance_and_needs_the_rewards_of_all_actions():
    model = model_of(ExpectedPolicyGradient, "batch", "accuracy")
    rewards = torch.eye(3)
    batches = [Batch(LOGITS[:3], LOGITS[:3], model.choose_actions(LOGITS[:3]), torch.rand(3), None, rewards)]
    batches.append(
        Batch(LOGITS[:3], LOGITS[:3], torch.zeros(3, dtype=torch.int64), torch.rand(3), None, rewards)
    )
    first, second = (gradient(model, LOGITS[:3], batch) for batch in batches)
    assert torch.equal(first, second)
    with pytest.raises(InputError, match=r"reward of every action.*sb3_env"):
        model.loss(LOGITS[:3], Batch(LOGITS, LOGITS, torch.zeros(3, dtype=torch.int64), torch.zeros(3)))


@pytest.mark.parametrize("max_norm", [0.1, 100.0, float("inf")])
def test_descend_is_clipping_and_stepping_bit_for_bit(max_norm):
    from agents.algorithms.base import optimizer_step

    images = torch.randn(16, 5, generator=torch.Generator().manual_seed(0))
    networks = []
    for ours in (True, False):
        torch.manual_seed(0)
        network = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.ReLU(), torch.nn.Linear(7, 3))
        unused = torch.nn.Parameter(torch.ones(2))
        parameters = [*network.parameters(), unused]
        optimizer = torch.optim.AdamW(parameters, 0.1)
        for _ in range(3):
            loss = network(images).square().sum()
            if ours:
                norm = optimizer_step(loss, optimizer, parameters, max_norm)
            else:
                optimizer.zero_grad()
                loss.backward()
                norm = torch.nn.utils.clip_grad_norm_(parameters, max_norm, foreach=True)
                optimizer.step()
        networks.append((norm, parameters))
    (our_norm, ours), (norm, theirs) = networks
    assert our_norm == norm > 1
    assert all(torch.equal(mine, other) for mine, other in zip(ours, theirs, strict=True))
