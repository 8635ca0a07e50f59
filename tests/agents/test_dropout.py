import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from agents.models.classifier import new_classifier
from agents.models.layers import ConsistentDropout, frozen_batchnorm, refresh_batchnorm, sample_seeds
from envs.errors import InputError

SEEDS = torch.arange(24) * 7919 + 2**40


def masks(seeds, p=0.25, layer=0, shape=(8, 5, 5)):
    with sample_seeds(seeds):
        return ConsistentDropout(p, layer)(torch.ones(len(seeds), *shape))


def test_without_seeds_it_is_dropout():
    layer = ConsistentDropout(0.25, 0)
    assert isinstance(layer, nn.Dropout)
    x = torch.rand(10, 100)
    torch.manual_seed(3)
    ours = layer(x)
    torch.manual_seed(3)
    assert torch.equal(ours, nn.Dropout(0.25)(x))
    assert torch.equal(layer.eval()(x), x)
    with sample_seeds(torch.arange(10)):
        assert torch.equal(layer(x), x)
        assert torch.equal(ConsistentDropout(0.0, 0)(x), x)


@settings(max_examples=25, deadline=None)
@given(order=st.permutations(range(24)), cut=st.integers(1, 23))
def test_masks_belong_to_seeds_not_to_minibatches(order, cut):
    order = torch.tensor(order)
    parts = torch.cat([masks(SEEDS[order[:cut]]), masks(SEEDS[order[cut:]])])
    assert torch.equal(parts, masks(SEEDS)[order])


def test_masks_do_not_depend_on_the_memory_layout():
    x = torch.rand(24, 8, 5, 5)
    layer = ConsistentDropout(0.5, 1)
    with sample_seeds(SEEDS):
        fast = layer(x.contiguous(memory_format=torch.channels_last))
        assert torch.equal(fast, layer(x))
    assert fast.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("p", [0.02, 0.25, 0.5, 0.9])
def test_rate_and_scale(p):
    y = masks(torch.arange(400), p, shape=(2500,))
    kept = y > 0
    torch.testing.assert_close(y[kept], torch.full_like(y[kept], 1 / (1 - p)))
    sigma = math.sqrt(p * (1 - p))
    assert abs(kept.float().mean() - (1 - p)) < 5 * sigma / 1000
    # Rates of single images and single positions spread as those of independent draws do.
    assert kept.float().mean(1).std() == pytest.approx(sigma / 50, rel=0.2)
    assert kept.float().mean(0).std() == pytest.approx(sigma / 20, rel=0.2)


def test_masks_of_seeds_layers_and_positions_are_independent():
    kept = (masks(torch.arange(300), 0.5, shape=(1000,)) > 0).float()
    other = (masks(torch.arange(300), 0.5, layer=1, shape=(1000,)) > 0).float()
    for rows in (torch.cat([kept, other]), kept.T):
        correlations = torch.corrcoef(rows).triu(1)
        assert correlations.abs().max() < 6 / math.sqrt(rows.shape[1])


def test_gradient_flows_through_kept_elements_only():
    x = torch.ones(24, 8, 5, 5, requires_grad=True)
    with sample_seeds(SEEDS):
        y = ConsistentDropout(0.25, 0)(x)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())


def test_seeds_end_with_their_context():
    with sample_seeds(SEEDS):
        with sample_seeds(SEEDS + 1):
            inner = ConsistentDropout(0.5, 0)(torch.ones(24, 50))
        outer = ConsistentDropout(0.5, 0)(torch.ones(24, 50))
    assert not torch.equal(inner, outer)
    layer = ConsistentDropout(0.5, 0)
    assert not torch.equal(layer(torch.ones(24, 50)), layer(torch.ones(24, 50)))


def test_wrong_arguments():
    with pytest.raises(InputError, match="3 sample seeds for a batch of 4 images"), sample_seeds(SEEDS[:3]):
        ConsistentDropout(0.5, 0)(torch.ones(4, 2))
    for p in (-0.1, 1.0, math.nan):
        with pytest.raises(InputError, match="outside"):
            ConsistentDropout(p, 0)


def log_probs(classifier, images, seeds):
    with sample_seeds(seeds), torch.no_grad():
        return classifier(images).log_softmax(1)


@pytest.mark.slow
def test_updates_see_the_policy_of_the_rollout():
    torch.manual_seed(0)
    classifier = new_classifier((1, 8, 8), 10, "cnn6")
    images = torch.rand(24, 1, 8, 8)
    refresh_batchnorm(classifier, [images])
    with frozen_batchnorm(classifier):
        classifier.train()
        rollout = log_probs(classifier, images, SEEDS)
        for size in (1, 7, 24):
            order = torch.randperm(24)
            update = [log_probs(classifier, images[part], SEEDS[part]) for part in order.split(size)]
            assert (torch.cat(update) - rollout[order]).abs().max() < 1e-5
        # The same with other masks, and with statistics of the minibatch, are other policies.
        assert (log_probs(classifier, images, SEEDS + 1) - rollout).abs().max() > 1e-2
    first_half = log_probs(classifier, images[:12], SEEDS[:12])
    assert (first_half - rollout[:12]).abs().max() > 1e-2


def test_frozen_statistics_survive_train_mode():
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
    network.eval()
    with frozen_batchnorm(network):
        with frozen_batchnorm(network):
            pass
        network.train()
        assert [part.training for part in network] == [True, False, True]
        network(torch.rand(8, 3)).sum().backward()
    assert int(network[1].num_batches_tracked) == 0
    assert network[1].weight.grad is not None
    assert not network[1].training
    network.train()
    assert network[1].training


@pytest.mark.parametrize("frozen", [False, True])
def test_refreshed_statistics_are_those_of_the_batches(frozen):
    network = nn.Sequential(nn.BatchNorm1d(4, momentum=0.3), nn.Dropout(0.5)).eval()
    network[0].running_mean.fill_(100.0)
    batches = [torch.randn(16, 4), torch.randn(16, 4) * 2 + 1]
    if frozen:
        with frozen_batchnorm(network):
            refresh_batchnorm(network, batches)
    else:
        refresh_batchnorm(network, batches)
    torch.testing.assert_close(network[0].running_mean, torch.stack([b.mean(0) for b in batches]).mean(0))
    torch.testing.assert_close(network[0].running_var, torch.stack([b.var(0) for b in batches]).mean(0))
    assert network[0].momentum == 0.3
    assert not network[0].training
    assert not network[1].training


def test_refreshing_without_batchnorm_runs_nothing():
    refresh_batchnorm(nn.Linear(3, 4), iter([pytest.fail]))
