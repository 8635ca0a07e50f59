"""Attacks on a pretended GPU: they break what they break on the CPU, and no device is mixed."""

import copy

import pytest
import torch

import attacks
from agents.models.classifier import new_classifier
from envs import load_dataset
from tests.support.pretend_cuda import PretendCuda

pytestmark = pytest.mark.slow

NORMS = {"Linf": 0.1, "L2": 0.7, "L1": 4.0}
QUICK = {
    "fgsm": {},
    "pgd": {"steps": 10, "restarts": 2},
    "multitargeted": {"steps": 10},
    "apgd": {"steps": 10, "restarts": 2},
    "apgd_targeted": {"steps": 10, "num_targets": 3},
    "fab": {"steps": 10, "restarts": 2},
    "fab_targeted": {"steps": 10, "num_targets": 3},
    "square": {"queries": 40},
    "spsa": {"queries": 300, "samples": 16},
    "nes": {"queries": 300, "samples": 16},
    "rays": {"queries": 60},
}


@pytest.fixture(scope="module")
def problem():
    """A network that knows nothing much, and images that it classifies "right"."""
    data = load_dataset("digits", "test")
    torch.manual_seed(0)
    model = new_classifier((1, 8, 8), 10, "mlp").eval()
    x = data.images[:12].float() / 255
    return model, x, model(x).argmax(1)


def on_both(problem, run):
    """Run on the CPU and on the pretended GPU; return both results, tensors of the second checked to lie there."""
    model, x, y = problem
    expected = run(model, x, y)
    with PretendCuda():
        found = run(model.to("cuda"), x.to("cuda"), y.to("cuda"))
        assert found.adversarial.is_cuda
        assert found.success.is_cuda
        model.to("cpu")
    return expected, found


def check_same(expected, found):
    assert torch.equal(found.success.cpu(), expected.success)
    torch.testing.assert_close(found.adversarial.cpu(), expected.adversarial, rtol=0, atol=1e-4)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", QUICK)
def test_an_attack_finds_on_the_gpu_what_it_finds_on_the_cpu(problem, name, norm):
    attack = getattr(attacks, name)
    if name == "rays" and norm != "Linf":
        pytest.skip("RayS is Linf")

    def run(model, x, y):
        return attack(model, x, y, norm=norm, eps=NORMS[norm], **QUICK[name])

    expected, found = on_both(problem, run)
    check_same(expected, found)
    if name in ("square", "spsa", "nes", "rays"):  # not the passes of samples that wait for others to leave
        assert torch.equal(found.queries.cpu(), expected.queries)


VERSIONS = [(version, norm) for version in ("standard", "plus", "fast", ["fab-t"]) for norm in NORMS]


@pytest.mark.parametrize(("version", "norm"), [*VERSIONS, (["square"], "Linf")], ids=str)
def test_autoattack(problem, version, norm):
    model, x, y = problem

    def run(model, x, y):
        return attacks.autoattack(model, x, y, norm=norm, eps=NORMS[norm], version=version)

    images = 1 if version == ["square"] else 4  # it takes many passes
    expected, found = on_both((model, x[:images], y[:images]), run)
    check_same(expected, found)
    assert found.accuracies() == expected.accuracies()


@pytest.mark.parametrize("action", ["sampled", "argmax"])
def test_expectation_over_randomness(problem, action):
    def run(model, x, y):
        return attacks.eot(model, x, y, norm="Linf", eps=0.1, action=action, samples=2, passes=3, steps=4)

    check_same(*on_both(problem, run))


def test_gradients_over_several_passes(problem):
    """What AutoAttack's version for random models asks of APGD."""

    def run(model, x, y):
        return attacks.apgd(model, x, y, norm="L2", eps=0.7, steps=5, eot_samples=3, early_stop=False)

    check_same(*on_both(problem, run))


def test_transfer(problem):
    surrogate = copy.deepcopy(problem[0])

    def run(model, x, y):
        return attacks.transfer(model, x, y, sources=[surrogate.to(x.device)], norm="Linf", eps=0.1, steps=4)

    check_same(*on_both(problem, run))


@pytest.mark.parametrize("name", ["deepfool", "carlini_wagner", "ddn", "boundary"])
def test_foolboxs_attacks(problem, name):
    pytest.importorskip("foolbox")

    def run(model, x, y):
        return getattr(attacks, name)(model, x, y, norm="L2", eps=1.0, steps=5)

    on_both(problem, run)
