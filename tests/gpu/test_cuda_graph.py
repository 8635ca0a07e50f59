"""Steps of PGD and APGD recorded and replayed, as CUDA graphs are: same results; else steps as they are."""

import pytest
import torch

import attacks
from attacks.core import recording
from attacks.gradient.apgd_steps import radii_schedule
from tests.support.fake_graph import FakeGraph, FakeGraphs
from tests.support.gpu_counts import NORMS, problem
from tests.support.pretend_cuda import PretendCuda

pytestmark = pytest.mark.slow


@pytest.fixture
def graphs(monkeypatch):
    fake = FakeGraphs()
    monkeypatch.setenv("LABELBANDIT_CUDA_GRAPHS", "1")
    monkeypatch.setattr(recording, "record", fake.record)
    monkeypatch.setattr(recording, "warm_up", lambda step: step())
    # A replay knows no autograd, which refuses views of what was written again.
    monkeypatch.setattr(FakeGraph, "replay", torch.no_grad()(FakeGraph.replay))
    return fake


def attacked(norm, monkeypatch=None, model=None, attack="pgd", **options):
    """An attack on the pretended GPU, as it is where ``monkeypatch`` turns graphs off."""
    given, x, y = problem(robust=False)
    with PretendCuda():
        if monkeypatch:
            monkeypatch.delenv("LABELBANDIT_CUDA_GRAPHS")
        model = (model or given).cuda()
        return getattr(attacks, attack)(model, x.cuda(), y.cuda(), norm=norm, eps=NORMS[norm] / 4, **options)


def assert_equal(replayed, eager):
    assert torch.equal(replayed.adversarial.cpu(), eager.adversarial.cpu())
    assert torch.equal(replayed.queries.cpu(), eager.queries.cpu())
    assert torch.equal(replayed.backwards.cpu(), eager.backwards.cpu())
    assert torch.equal(replayed.trace["loss"].cpu(), eager.trace["loss"].cpu())


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("options", [{"steps": 30}, {"steps": 12, "keep": "loss", "restarts": 2}], ids=str)
def test_replayed_steps_are_the_steps(graphs, monkeypatch, norm, options):
    replayed = attacked(norm, **options)
    assert graphs.made
    assert graphs.replays >= 5 * len(graphs.made)
    assert_equal(replayed, attacked(norm, monkeypatch, **options))


APGD = [
    {"attack": "apgd", "steps": 45, "loss": "ce"},
    {"attack": "apgd", "steps": 45, "loss": "dlr", "early_stop": False},
    {"attack": "apgd_targeted", "steps": 45, "num_targets": 2},
]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("options", APGD, ids=str)
def test_replayed_steps_of_apgd_are_the_steps(graphs, monkeypatch, norm, options):
    replayed = attacked(norm, **options)
    stages = len(radii_schedule(norm, options["steps"]))
    if options.get("early_stop", True):  # others are needed when runs have left
        assert len(graphs.made) > stages
    else:
        assert len(graphs.made) == stages
    assert graphs.replays >= 5 * len(graphs.made)
    assert_equal(replayed, attacked(norm, monkeypatch, **options))


class Asking(torch.nn.Module):
    """Looks at a value, which no graph can hold; or answers at random."""

    def __init__(self, random: bool) -> None:
        super().__init__()
        self.network, self.random = problem(robust=False)[0], random

    def forward(self, x):
        if self.random:
            return self.network(x) + 0.01 * torch.rand(10, device=x.device)
        return self.network(x) if x.sum().item() > 0 else self.network(x * 1)


ALL_STEPS = pytest.mark.parametrize(
    "options", [{"attack": "pgd", "keep": "last"}, {"attack": "apgd", "early_stop": False}], ids=str
)


@ALL_STEPS
@pytest.mark.parametrize("random", [False, True])
def test_what_cannot_be_replayed_runs_as_it_is(graphs, options, random):
    found = attacked("Linf", steps=12, model=Asking(random), **options)
    assert found.queries.max() == 14
    assert graphs.replays == random  # the trial alone


@ALL_STEPS
def test_hooks_are_not_recorded(graphs, options):
    model, calls = problem(robust=False)[0], []
    model.register_forward_hook(lambda *_: calls.append(1))
    attacked("Linf", steps=12, model=model, **options)
    assert not graphs.made
    assert len(calls) >= 13


@ALL_STEPS
def test_off_unless_asked_for(graphs, monkeypatch, options):
    attacked("Linf", monkeypatch, steps=12, **options)
    assert not graphs.made


@ALL_STEPS
def test_few_steps_are_not_recorded(graphs, options):
    attacked("Linf", steps=5, **options)
    assert not graphs.made
