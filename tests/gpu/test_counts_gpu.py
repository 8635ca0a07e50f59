"""What steps cost the host: attacks wait once a wave of steps at most, and launch few operators of their own."""

import pytest

from tests.support.gpu_counts import ATTACKS, NORMS, attack_counts, training_counts

pytestmark = pytest.mark.slow

ROUNDS = ("square",)  # a round is a wave of windows decided ahead
LENGTHS = {"square": (410, 610), "spsa": (171, 443), "nes": (171, 443)}  # shorter than those of the table
CASES = [(name, norm) for name in ATTACKS for norm in NORMS if name != "rays" or norm == "Linf"]


def counts(name, norm, robust=True):
    return attack_counts(name, norm, robust, LENGTHS.get(name))


@pytest.mark.parametrize(("name", "norm"), CASES)
def test_an_attack_waits_once_a_wave(name, norm):
    assert counts(name, norm).waits <= (1.01 if name in ROUNDS else 0.125)


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_waits_no_more_where_samples_break(name):
    assert counts(name, "Linf", robust=False).waits <= (2.0 if name in ROUNDS else 0.125)


# Operators of a step beyond the network's passes (its loss included); Square's round makes many windows.
OPERATORS = {
    "pgd": (25, 33, 70),
    "multitargeted": (28, 36, 73),
    "apgd": (22, 35, 88),
    "apgd_targeted": (38, 51, 104),
    "fab_targeted": (89, 92, 80),
    "fab": (168, 171, 159),
    "square": (265, 275, 250),
    "spsa": (132, 134, 162),
    "nes": (134, 139, 176),
    "rays": (64,),
}


@pytest.mark.parametrize(("name", "norm"), CASES)
def test_an_attack_launches_few_operators(name, norm):
    assert counts(name, norm).operators <= OPERATORS[name][list(NORMS).index(norm)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "most"),
    [
        ("reinforce", 82),
        ("reinforce, augmentation", 89),
        ("reinforce, augmentation, CUDA graphs", 24),
        ("epg", 87),
        ("supervised", 77),
        ("ppo", 240),
        ("a2c", 240),
        ("dqn", 124),
    ],
)
def test_an_update_launches_few_operators_and_never_waits(case, most):
    found = training_counts(case)
    assert found.operators <= most
    assert found.waits == 0
