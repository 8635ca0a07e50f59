"""What holds for every attack, whatever it is: one table, the same questions to each."""

import inspect

import pytest
import torch

import attacks
from attacks.core.errors import AttackError
from attacks.core.norms import get_norm
from tests.support.attack_models import cnn_problem

EPS = {"Linf": 0.05, "L2": 0.4, "L1": 2.0}
ALL = ("Linf", "L2", "L1")

# name: (options that keep it quick, norms it knows)
TABLE = {
    "fgsm": ({}, ALL),
    "pgd": ({"steps": 5}, ALL),
    "multitargeted": ({"steps": 3, "num_targets": 2}, ALL),
    "eot": ({"steps": 3, "samples": 2, "passes": 1}, ALL),
    "spsa": ({"samples": 4, "queries": 30}, ALL),
    "nes": ({"samples": 4, "queries": 30}, ALL),
    "rays": ({"queries": 30}, ("Linf",)),
    "apgd": ({"steps": 8}, ALL),
    "apgd_targeted": ({"steps": 5, "num_targets": 2}, ALL),
    "fab": ({"steps": 5}, ALL),
    "fab_targeted": ({"steps": 5, "num_targets": 2}, ALL),
    "square": ({"queries": 20}, ALL),
    "autoattack": ({"version": ["apgd-ce", "square"]}, ALL),
    "carlini_wagner": ({"steps": 10, "binary_search_steps": 2}, ("L2",)),
    "deepfool": ({"steps": 5}, ("L2", "Linf")),
    "ddn": ({"steps": 5}, ("L2",)),
    "hopskipjump": ({"steps": 1}, ("L2", "Linf")),
    "boundary": ({"steps": 10}, ("L2",)),
}
FOOLBOX = ("carlini_wagner", "deepfool", "ddn", "hopskipjump", "boundary")
BATCH_MATTERS = (
    "hopskipjump",
    "boundary",
    "carlini_wagner",
)  # foolbox draws, or stops, for the batch as a whole
EXPORTED = [name for name in TABLE if name in attacks.__all__]
CASES = [pytest.param(name, norm, id=f"{name}-{norm}") for name in EXPORTED for norm in TABLE[name][1]]


def run(name, norm, model, x, y, **changed):
    if name in FOOLBOX:
        pytest.importorskip("foolbox")
    options = {"norm": norm, "eps": EPS[norm], **TABLE[name][0], **changed}
    return getattr(attacks, name)(model, x, y, **options)


def is_attack(function):
    """The mark of an attack: ``(model, x, y, *, norm, eps, ...)`` and nothing else that must be given."""
    if not inspect.isfunction(function):
        return False
    parameters = inspect.signature(function).parameters
    needed = [
        key
        for key, item in parameters.items()
        if item.default is item.empty and item.kind != item.VAR_KEYWORD
    ]
    return needed == ["model", "x", "y", "norm", "eps"]


def test_the_table_is_complete():
    assert {name for name in attacks.__all__ if is_attack(getattr(attacks, name))} == set(EXPORTED)


@pytest.mark.parametrize(("name", "norm"), CASES)
class TestEveryAttack:
    @pytest.mark.slow
    def test_result_holds_what_it_says(self, name, norm):
        model, x, y = cnn_problem(dtype=torch.float32)
        before = [(p.requires_grad, p.detach().clone()) for p in model.parameters()]
        eps = EPS[norm] * torch.linspace(0.2, 1.5, len(x))
        result = run(name, norm, model, x, y, eps=eps)
        adversarial = result.adversarial
        assert adversarial.shape == x.shape
        assert adversarial.dtype == x.dtype
        assert not adversarial.requires_grad
        assert ((adversarial >= 0) & (adversarial <= 1)).all()
        assert (get_norm(norm).length(adversarial - x) <= eps * (1 + 1e-5) + 1e-6).all()
        assert torch.equal(result.success, model(adversarial).argmax(1) != y)
        assert result.success[model(x).argmax(1) != y].all()
        assert result.success.dtype == torch.bool
        assert result.queries.dtype == result.backwards.dtype == torch.int64
        assert (result.queries >= 1).all()
        assert not result.trace["nan"].any()
        assert not result.trace["outside"].any()
        assert all(values.shape[-1] == len(x) for values in result.trace.values())
        for parameter, (needed, value) in zip(model.parameters(), before, strict=True):
            assert parameter.requires_grad == needed
            assert parameter.grad is None
            assert torch.equal(parameter, value)

    @pytest.mark.slow
    def test_same_again_and_in_other_batches(self, name, norm):
        model, x, y = cnn_problem(13)
        if name in FOOLBOX:
            model, x = model.float(), x.float()
        torch.manual_seed(1)
        first = run(name, norm, model, x, y)
        torch.manual_seed(2)
        state = torch.random.get_rng_state()
        again = run(name, norm, model, x, y)
        assert torch.equal(torch.random.get_rng_state(), state)
        assert torch.equal(first.adversarial, again.adversarial)
        assert torch.equal(first.queries, again.queries)
        if name in BATCH_MATTERS:
            return
        split = run(name, norm, model, x, y, batch_size=5)
        assert torch.equal(first.success, split.success)
        assert name in FOOLBOX or torch.equal(
            first.queries, split.queries
        )  # its passes go on for the whole batch
        torch.testing.assert_close(first.adversarial, split.adversarial, rtol=0, atol=1e-6)

    @pytest.mark.slow
    def test_zero_radius_leaves_clean_errors_only(self, name, norm):
        model, x, y = cnn_problem(20, dtype=torch.float32)
        result = run(name, norm, model, x, y, eps=0.0)
        assert torch.equal(result.success, model(x).argmax(1) != y)
        assert torch.equal(result.adversarial, x)

    def test_wrong_inputs_end_before_the_attack(self, name, norm):
        model, x, y = cnn_problem(4)
        with pytest.raises(AttackError, match=r"must lie in \[0, 1\]"):
            run(name, norm, model, 255 * x, y)
        with pytest.raises(AttackError, match="out of range for a model of 5 classes"):
            run(name, norm, model, x, y + 5)
        with pytest.raises(AttackError, match="finite number >= 0"):
            run(name, norm, model, x, y, eps=-1.0)
