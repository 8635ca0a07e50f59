"""Two and three classes: every attack works, ranks no target that is not there, and AutoAttack's stages fit."""

from functools import partial

import pytest
import torch

import attacks
from attacks.autoattack.successive_halving import ROUNDS
from attacks.autoattack.versions import VERSIONS, stages_of
from attacks.core.errors import AttackError
from attacks.core.inputs import validate_inputs
from attacks.core.model_state import frozen
from tests.support.attack_models import cnn_problem, linear_problem

NORMS = ("Linf", "L2", "L1")
EPS = {"Linf": 0.05, "L2": 0.4, "L1": 2.0}
# More targets than there are wrong classes.
FEW = {
    "fgsm": {},
    "pgd": {"steps": 5, "loss": "margin"},
    "multitargeted": {"steps": 4, "num_targets": 9},
    "spsa": {"samples": 4, "queries": 30},
    "nes": {"samples": 4, "queries": 30},
    "apgd": {"steps": 8},
    "apgd_targeted": {"steps": 6, "num_targets": 9, "loss": "ce"},
    "fab": {"steps": 5},
    "fab_targeted": {"steps": 5, "num_targets": 9},
    "square": {"queries": 20},
}


def balanced(n, classes):
    """A random model that answers every class about as often, and its own predictions, some of them wrong."""
    model, x, y = cnn_problem(n, classes=classes)
    model[-1].bias.data -= model(x).detach().mean(0)
    y = model(x).argmax(1)
    y[::10] = (y[::10] + 1) % classes
    return model, x, y


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", FEW)
def test_every_attack_finds_something(name, norm, classes):
    model, x, y = balanced(20, classes)
    result = getattr(attacks, name)(model, x, y, norm=norm, eps=4 * EPS[norm], **FEW[name])
    wrong = model(x).argmax(1) != y
    assert result.success[wrong].all()
    assert result.success.sum() > wrong.sum()
    assert (model(result.adversarial).argmax(1) != y)[result.success].all()


@pytest.mark.parametrize("classes", [2, 3])
def test_no_more_targets_than_wrong_classes(classes):
    model, x, y = balanced(20, classes)
    options = {"norm": "Linf", "eps": 1e-4, "steps": 3, "loss": "ce"}
    passes = [
        attacks.apgd_targeted(model, x, y, num_targets=targets, **options).queries
        for targets in (classes - 1, 9)
    ]
    assert torch.equal(*passes)


@pytest.mark.parametrize("attack", [attacks.apgd_targeted, attacks.multitargeted])
def test_targeted_dlr_is_refused_with_a_remedy(attack):
    model, x, y = cnn_problem(4, classes=3)
    with pytest.raises(AttackError, match="use loss='ce'"):
        attack(model, x, y, norm="Linf", eps=0.1, loss="dlr")


SHORT = {
    "clean": {},
    "one-step": {},
    "square": {"queries": 10},
    "successive-halving": {"rounds": tuple(one._replace(steps=3) for one in ROUNDS)},
}


@pytest.mark.slow
@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("norm", NORMS)
def test_every_stage_of_autoattack_runs(version, norm, classes):
    model, x, y = balanced(8, classes)
    problem = validate_inputs(x, y, norm=norm, eps=EPS[norm])
    wrong = model(x).argmax(1) != y
    for stage in stages_of(version, norm, classes):
        name = "square" if stage.name.startswith("square") else stage.name
        with frozen(model):
            attack = partial(stage.attack, **SHORT.get(name, {"steps": 4, "restarts": 1}))
            result = attack(model, problem, 0)
        assert (result.success >= wrong).all(), stage.name
        assert not result.trace["outside"].any(), stage.name


@pytest.mark.parametrize("version", ["standard", "fast"])
def test_two_classes_break_exactly_where_a_linear_model_can_be_broken(version):
    model, x, _ = linear_problem(16)
    model.bias = -model.margin(x).median().item()
    y = model(x).argmax(1)
    distance = model.margin(x).abs() / model.weight.abs().sum()
    eps = distance.sort().values[-4:-2].mean().item()  # three survive
    result = attacks.autoattack(model, x, y, norm="Linf", eps=eps, version=version)
    assert torch.equal(result.success, distance < eps)


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_scale_of_the_logits_hides_nothing_from_fast(scale):
    options = {"norm": "Linf", "eps": 0.03, "version": "fast"}
    x, y = cnn_problem(8)[1:]
    plain = attacks.autoattack(cnn_problem(8)[0], x, y, **options)
    scaled = attacks.autoattack(cnn_problem(8, scale=scale)[0], x, y, **options)
    assert torch.equal(plain.success, scaled.success)
