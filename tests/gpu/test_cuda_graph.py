"""Steps of PGD recorded and replayed, as CUDA graphs are: same results, nothing asked; else steps as they are."""

import pytest
import torch

import attacks
from attacks.core import cuda_graph
from tests.support.fake_graph import FakeGraphs
from tests.support.gpu_counts import NORMS, problem
from tests.support.pretend_cuda import PretendCuda


@pytest.fixture
def graphs(monkeypatch):
    fake = FakeGraphs()
    monkeypatch.setenv("LABELBANDIT_CUDA_GRAPHS", "1")
    monkeypatch.setattr(cuda_graph, "record", fake.record)
    monkeypatch.setattr(cuda_graph, "warm_up", lambda step: step())
    return fake


def attacked(norm, monkeypatch=None, model=None, **options):
    """PGD on the pretended GPU, as it is where ``monkeypatch`` turns graphs off."""
    given, x, y = problem(robust=False)
    with PretendCuda():
        if monkeypatch:
            monkeypatch.delenv("LABELBANDIT_CUDA_GRAPHS")
        model = (model or given).cuda()
        return attacks.pgd(model, x.cuda(), y.cuda(), norm=norm, eps=NORMS[norm] / 4, **options)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("options", [{"steps": 30}, {"steps": 12, "keep": "loss", "restarts": 2}], ids=str)
def test_replayed_steps_are_the_steps(graphs, monkeypatch, norm, options):
    replayed = attacked(norm, **options)
    assert graphs.made
    assert graphs.replays >= 5 * len(graphs.made)
    eager = attacked(norm, monkeypatch, **options)
    assert torch.equal(replayed.adversarial.cpu(), eager.adversarial.cpu())
    assert torch.equal(replayed.queries.cpu(), eager.queries.cpu())
    assert torch.equal(replayed.trace["loss"].cpu(), eager.trace["loss"].cpu())


class Asking(torch.nn.Module):
    """Looks at a value, which no graph can hold; or answers at random."""

    def __init__(self, random: bool) -> None:
        super().__init__()
        self.network, self.random = problem(robust=False)[0], random

    def forward(self, x):
        if self.random:
            return self.network(x) + torch.rand(10, device=x.device)
        return self.network(x) if x.sum().item() > 0 else self.network(x * 1)


@pytest.mark.parametrize("random", [False, True])
def test_what_cannot_be_replayed_runs_as_it_is(graphs, monkeypatch, random):
    options = {"steps": 12, "keep": "last", "model": Asking(random)}
    assert attacked("Linf", **options).queries.unique().tolist() == [14]
    assert graphs.replays <= 1  # the trial alone


def test_hooks_are_not_recorded(graphs):
    model, calls = problem(robust=False)[0], []
    model.register_forward_hook(lambda *_: calls.append(1))
    attacked("Linf", steps=12, keep="last", model=model)
    assert not graphs.made
    assert len(calls) >= 13


def test_off_unless_asked_for(graphs, monkeypatch):
    attacked("Linf", monkeypatch, steps=12, keep="last")
    assert not graphs.made
