"""Our attacks against pyautoattack, the published AutoAttack, step by step: given its random numbers, in float64.

Both attack the samples one by one and are asked for the points at which they take gradients. Restarts after the first
and further targets are compared by their outcome, because ours go on together, where the last bit of a loss may differ.
"""

import logging

import pytest
import torch

import attacks
from tests.support.attack_models import random_cnn
from tests.support.published import PublishedDraws, Recording, float64

autopgd = pytest.importorskip("pyautoattack.autopgd_base")
fab_pt = pytest.importorskip("pyautoattack.fab_pt")
square_attack = pytest.importorskip("pyautoattack.square")

EPS = {"Linf": 0.05, "L2": 0.4, "L1": 1.5}
NORMS = pytest.mark.parametrize("norm", EPS)
SEED = 3
SAMPLES = 4
CLOSE = 1e-6
_SILENT = logging.getLogger("silent")
_SILENT.disabled = True


@pytest.fixture(scope="module")
def problem():
    """A float64 network of ten classes, images, and its own answers as labels, of which the last is wrong."""
    model = random_cnn(10)
    x = torch.rand(SAMPLES, 1, 8, 8, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    y = model(x).argmax(1)
    y[-1] = (y[-1] + 1) % 10
    return model, x, y


def fooled(model, image, label):
    return bool(model(image).argmax(1) != label)


def run_apgd(norm, loss, model, x, y):
    """The points of the first start of both, and whether they break the sample; ``loss`` "t" is APGD-T."""
    theirs, ours = Recording(model), Recording(model)
    options = {"norm": norm, "eps": EPS[norm], "seed": SEED, "n_iter": 30, "use_largereps": norm == "L1"}
    if loss == "t":
        attack = autopgd.APGDAttack_targeted(theirs, n_target_classes=4, logger=_SILENT, **options)
    else:
        attack = autopgd.APGDAttack(theirs, loss=loss, n_restarts=3, logger=_SILENT, **options)
    with float64():
        broken = fooled(model, attack.perturb(x, y), y)
    # At L1 a try draws four times, three of which are not used.
    draws = PublishedDraws(SEED, lambda attempt: attempt * (4 if norm == "L1" else 1))
    options = {"norm": norm, "eps": EPS[norm], "steps": 30, "random_source": draws}
    if loss == "t":
        result = attacks.apgd_targeted(ours, x, y, num_targets=4, **options)
    else:
        result = attacks.apgd(ours, x, y, loss=loss, restarts=3, **options)
    assert bool(result.success) == broken
    return theirs, ours, broken


@pytest.mark.slow
@NORMS
@pytest.mark.parametrize("loss", ["ce", "dlr", "t"])
def test_apgd(problem, norm, loss, monkeypatch):
    # The published code counts as changed what x + delta - delta leaves of an unchanged pixel; ours projects exactly.
    monkeypatch.setattr(autopgd, "L0_norm", lambda delta: (delta.abs() > 1e-12).flatten(1).sum(1))
    model, x, y = problem
    outcomes, parted = [], 0
    for i in range(SAMPLES):
        theirs, ours, broken = run_apgd(norm, loss, model, x[i : i + 1], y[i : i + 1])
        outcomes.append(broken)
        # As far as both went with the first start: ours leaves at the first misclassified point.
        length = 31 if norm != "L1" else 33  # a step more for each of three radii
        alone = [point for point in ours.points if len(point) == 1][:length]
        pairs = list(zip(alone, theirs.points, strict=False))
        assert len(pairs) == length or broken
        parted += any(not torch.allclose(ours, theirs, rtol=0, atol=CLOSE) for ours, theirs in pairs)
        for mine, published in pairs[: 3 if norm == "L1" else 6]:  # before losses are compared
            torch.testing.assert_close(mine, published, rtol=0, atol=CLOSE)
    assert parted <= 1  # where two losses are equal up to rounding, either may be the best so far
    assert any(outcomes[:-1])
    assert not all(outcomes)


@pytest.mark.slow
@NORMS
@pytest.mark.parametrize("targeted", [True, False])
def test_fab(problem, norm, targeted):
    model, x, y = problem
    steps, outcomes = 15, []
    for i in range(SAMPLES):
        image, label = x[i : i + 1], y[i : i + 1]
        theirs, ours = Recording(model), Recording(model)
        options = {"norm": norm, "eps": EPS[norm], "seed": SEED, "device": "cpu"}
        published = fab_pt.FABAttack_PT(
            theirs, n_restarts=2, n_iter=steps, targeted=targeted, n_target_classes=3, **options
        )
        with float64():
            outcomes.append(fooled(model, published.perturb(image, label), label))
        # Every second try draws: the first restart starts at the image.
        options = {"norm": norm, "eps": EPS[norm], "steps": steps, "restarts": 2, "early_stop": False}
        options["random_source"] = PublishedDraws(SEED, lambda attempt: attempt // 2)
        if targeted:
            result = attacks.fab_targeted(ours, image, label, num_targets=3, **options)
        else:
            result = attacks.fab(ours, image, label, **options)
        assert bool(result.success) == outcomes[-1]
        for mine, other in zip(ours.points[:steps], theirs.points[:steps], strict=True):
            torch.testing.assert_close(mine, other, rtol=0, atol=CLOSE)
    assert any(outcomes[:-1])
    assert not all(outcomes)


@pytest.mark.slow
@NORMS
def test_square(problem, norm):
    """The best image after so many windows, each of which was kept or dropped as by the published code."""
    model, x, y = problem
    eps = {"Linf": 0.25, "L2": 0.8, "L1": 3.0}[norm]
    # At L1 ours leave 1e-6 of the radius unused, so that rounding leaves nothing to project.
    close = 2 * CLOSE * eps if norm == "L1" else CLOSE
    for i in range(SAMPLES - 1):
        image, label = x[i : i + 1], y[i : i + 1]
        for queries in (1, 20, 80):
            published = square_attack.SquareAttack(
                model, norm=norm, n_queries=queries, eps=eps, seed=SEED, resc_schedule=False, device="cpu"
            )
            with float64():
                published.init_hyperparam(image)
                torch.manual_seed(SEED)
                _, best = published.attack_single_run(image, label)
            draws = PublishedDraws(SEED)
            result = attacks.square(
                model, image, label, norm=norm, eps=eps, queries=queries, random_source=draws
            )
            assert bool(result.success) == fooled(model, best, label)
            torch.testing.assert_close(result.adversarial, best, rtol=0, atol=close)


def test_the_callers_random_state_is_left_alone(problem):
    model, x, y = problem
    before = torch.random.get_rng_state()
    options = {"norm": "Linf", "eps": 0.02}
    attacks.apgd(model, x, y, steps=3, **options)
    attacks.fab(model, x, y, steps=2, restarts=2, **options)
    attacks.square(model, x, y, queries=3, **options)
    assert torch.equal(torch.random.get_rng_state(), before)
