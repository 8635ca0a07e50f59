"""CUDA graphs of the training step, on a pretended GPU: static memory, no waits, the weights of plain steps."""

import copy
import warnings

import pytest
import torch
from torch import nn

from agents import ExpectedPolicyGradient, Reinforce, Supervised
from agents.algorithms import step_graphs
from agents.models import image_network as networks
from agents.models.policy import ImagePolicy
from envs import sb3_env
from tests.support.env_toys import random_images

pytestmark = pytest.mark.slow

KINDS = {"reinforce": Reinforce, "epg": ExpectedPolicyGradient, "supervised": Supervised}


def build(kind, cuda_graphs, network="small", learning_rate=2**-10, **options):
    env = sb3_env(
        random_images(64, (1, 8, 8)), num_envs=8, tensors=True, device="cuda", order="epoch", seed=3
    )
    kwargs = {"network": network}
    return kind(
        ImagePolicy,
        env,
        learning_rate=learning_rate,
        seed=3,
        device="cuda",
        cuda_graphs=cuda_graphs,
        policy_kwargs=kwargs | {"optimizer_kwargs": {"fused": True}},
        **options,
    )


def learn(model, steps):
    return model.learn(8 * steps, log_interval=None, reset_num_timesteps=False)


def weights(model):
    return {name: value.cpu() for name, value in model.policy.state_dict().items()}


def recordings(model):
    return list(model._graphs._recordings.values())


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("reinforce", {}),
        ("reinforce", {"ent_coef": 0.1, "exploration_mode": "mixture"}),
        ("epg", {}),
        ("supervised", {}),
    ],
)
def test_replayed_steps_end_at_the_weights_of_plain_steps(gpu, name, options):
    plain, recorded = (learn(build(KINDS[name], graphs, **options), 12) for graphs in (False, True))
    assert recordings(recorded)
    for key, value in weights(plain).items():
        assert torch.equal(weights(recorded)[key], value), key
    means = recorded.statistics.flush()
    assert means == pytest.approx(plain.statistics.flush())


def test_replayed_steps_know_their_learning_rate_and_batchnorm(gpu, monkeypatch):
    monkeypatch.setattr(networks, "NETWORKS", dict(networks.NETWORKS))
    networks.register_network(
        "normed", lambda shape: nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16))
    )

    def falling(remaining):
        return 2**-6 * (remaining > 0.5) + 2**-9

    plain, recorded = (learn(build(Supervised, graphs, "normed", falling), 12) for graphs in (False, True))
    for key, value in weights(plain).items():
        assert torch.equal(weights(recorded)[key], value), key


def test_a_step_is_two_graphs_that_keep_their_memory_and_never_wait(gpu):
    model = learn(build(Reinforce, True, exploration=0.0), step_graphs.WARM_UP + 1)
    (recording,) = recordings(model)
    before = [value.data_ptr() for value in (*recording.outputs, *recording.results)]
    with gpu.waits_forbidden(), gpu.counting() as events:
        learn(model, 8)
    assert [value.data_ptr() for value in (*recording.outputs, *recording.results)] == before
    assert events.launches["CUDA graph"] == 16
    assert events.launch_count <= 8 * 22


def test_steps_are_recorded_again_after_weights_were_loaded(gpu):
    model = learn(build(Supervised, True), 6)
    first = recordings(model)
    state = model.training_state()
    other = build(Supervised, True)
    for each in (model, other):
        each.load_training_state(copy.deepcopy(state))
    learn(model, 4)
    assert recordings(model)[0] is not first[0]
    learn(other, 4)
    for key, value in weights(model).items():
        assert torch.equal(weights(other)[key], value), key


def test_what_cannot_be_recorded_goes_on_after_one_warning(gpu):
    class Asking(Supervised):
        def loss(self, logits, batch):
            return super().loss(logits, batch) * (1 + 0 * float(logits.detach().sum()))

    with pytest.warns(UserWarning, match="no CUDA graph of the training step.*capturing") as caught:
        asking = learn(build(Asking, True), 12)
    assert len(caught) == 1
    plain = learn(build(Supervised, False), 12)
    for key, value in weights(plain).items():
        assert torch.equal(weights(asking)[key], value), key


def test_nothing_is_recorded_without_a_gpu():
    env = sb3_env(random_images(64, (1, 8, 8)), num_envs=8, tensors=True, seed=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = Reinforce(ImagePolicy, env, device="cpu", cuda_graphs=True, seed=3)
        learn(model, 6)
    assert model._graphs is None
