"""The door to foolbox: attacks of others under the same rules."""

import builtins

import pytest
import torch

from attacks import boundary, carlini_wagner, ddn, deepfool, hopskipjump
from attacks.core.errors import AttackError
from tests.support.attack_models import Linear, cnn_problem, linear_problem

pytest.importorskip("foolbox")

CASES = [
    (carlini_wagner, "L2", {"steps": 60, "binary_search_steps": 4, "initial_const": 1.0}),
    (deepfool, "L2", {}),
    (deepfool, "Linf", {}),
    (ddn, "L2", {}),
    (hopskipjump, "L2", {"steps": 6}),
    (hopskipjump, "Linf", {"steps": 6}),
    (boundary, "L2", {"steps": 300}),
]


def float32_linear(n=6):
    exact, x, _ = linear_problem(n)
    model = Linear(exact.weight.detach().float())
    model.bias = -model.margin(x.float()).mean().item()
    return model, x.float(), model(x.float()).argmax(1)


@pytest.mark.parametrize(("attack", "norm", "options"), CASES)
def test_finds_no_nearer_point_than_the_boundary(attack, norm, options):
    """On a linear model the distance is |f(x)| / (dual norm of w); these attacks come near it, from above."""
    model, x, y = float32_linear()
    dual = {"L2": model.weight.norm(), "Linf": model.weight.abs().sum()}[norm]
    exact = (model.margin(x).abs() / dual).detach()
    result = attack(model, x, y, norm=norm, eps=0.3, **options)
    found = result.trace["distance"]
    assert (found >= exact - 1e-5).all()
    blind = attack in (hopskipjump, boundary)
    assert ((found <= (6 if blind else 1.2) * exact + 0.02).double().mean()) >= (0.5 if blind else 1)
    assert torch.equal(result.success, model(result.adversarial).argmax(1) != y)
    assert (result.distance(x, norm) <= 0.3 + 1e-5).all()
    assert not result.trace["outside"].any()
    assert (result.queries >= 5).all()
    assert (result.backwards > 0).all() != blind


def test_counts_and_clean_errors():
    model, x, y = cnn_problem(10, dtype=torch.float32)
    wrong = model(x).argmax(1) != y
    model.train()
    state = torch.random.get_rng_state()
    result = ddn(model, x, y, norm="L2", eps=0.3, steps=7)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert model.training
    assert result.success[wrong].all()
    assert (result.queries[wrong] == 1).all()
    assert (result.backwards[~wrong] == 7).all()
    assert torch.equal(result.trace["distance"] == 0, wrong)


def test_random_attacks_follow_their_seed():
    model, x, y = cnn_problem(6, dtype=torch.float32)
    options = {"norm": "L2", "eps": 5.0, "steps": 60}
    first, again, other = (boundary(model, x, y, seed=seed, **options).adversarial for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_no_start_no_attack():
    """A model that knows one class only: no misclassified start exists, and nothing is broken."""
    x, y = torch.rand(3, 1, 3, 3), torch.zeros(3, dtype=torch.int64)
    constant = torch.tensor([[1.0, 0.0]])
    result = hopskipjump(lambda images: constant.expand(len(images), 2), x, y, norm="L2", eps=1.0, steps=2)
    assert not result.success.any()
    assert result.trace["distance"].isinf().all()


def test_errors(monkeypatch):
    model, x, y = float32_linear()
    with pytest.raises(AttackError, match="deepfool knows the norm L2 or Linf, got L1"):
        deepfool(model, x, y, norm="L1", eps=0.1)
    real = builtins.__import__

    def missing(name, *arguments, **options):
        if name == "foolbox":
            raise ImportError
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(
        AttackError, match=r'deepfool comes from foolbox: pip install "labelbandit\[foolbox\]"'
    ):
        deepfool(model, x, y, norm="L2", eps=0.1)
