"""Bit by bit against pyautoattack, the published AutoAttack, under ``random="original"``."""

import logging

import pytest
import torch

import attacks
from tests.support.attack_models import random_cnn

autopgd = pytest.importorskip("pyautoattack.autopgd_base")
fab_pt = pytest.importorskip("pyautoattack.fab_pt")
square_attack = pytest.importorskip("pyautoattack.square")
peer = pytest.importorskip("pyautoattack.autoattack")

# Radii that float32 holds exactly at L1, where the original computes with Python's float64.
EPS = {"Linf": 0.1, "L2": 0.75, "L1": 3.0}
NORMS = pytest.mark.parametrize("norm", EPS)
SEED = 3
_SILENT = logging.getLogger("silent")
_SILENT.disabled = True


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def problem():
    """A float32 network of ten classes; some labels are wrong, some samples near the boundary, some far."""
    model = random_cnn(10, dtype=torch.float32)
    x = torch.rand(24, 1, 8, 8, generator=torch.Generator().manual_seed(5))
    y = model(x).argmax(1)
    y[::8] = (y[::8] + 1) % 10
    return model, x, y


def same(result, model, y, theirs):
    """Broken samples agree, and so does every bit of their images; some are broken and some are not."""
    broken = model(theirs).argmax(1) != y
    assert torch.equal(result.success, broken)
    assert torch.equal(result.adversarial[broken], theirs[broken])
    right = result.queries > 1
    assert broken[right].any()


def apgd_peer(kind, norm, **options):
    large = norm == "L1"
    return kind(
        None,
        norm=norm,
        eps=EPS[norm],
        seed=SEED,
        use_largereps=large,
        device="cpu",
        logger=_SILENT,
        **options,
    )


@NORMS
@pytest.mark.parametrize("loss", ["ce", "dlr"])
def test_apgd(problem, norm, loss):
    model, x, y = problem
    theirs = apgd_peer(autopgd.APGDAttack, norm, n_iter=50, n_restarts=2, loss=loss)
    theirs.model = model
    ours = attacks.apgd(
        model, x, y, norm=norm, eps=EPS[norm], loss=loss, steps=50, restarts=2, seed=SEED, random="original"
    )
    same(ours, model, y, theirs.perturb(x, y))


@NORMS
def test_apgd_targeted(problem, norm):
    model, x, y = problem
    theirs = apgd_peer(autopgd.APGDAttack_targeted, norm, n_iter=40, n_target_classes=4)
    theirs.model = model
    ours = attacks.apgd_targeted(
        model, x, y, norm=norm, eps=EPS[norm], steps=40, num_targets=4, seed=SEED, random="original"
    )
    same(ours, model, y, theirs.perturb(x, y))


@NORMS
@pytest.mark.parametrize("targeted", [True, False])
def test_fab(problem, norm, targeted):
    model, x, y = problem
    theirs = fab_pt.FABAttack_PT(
        model,
        norm=norm,
        n_restarts=2,
        n_iter=15,
        eps=EPS[norm],
        seed=SEED,
        targeted=targeted,
        device="cpu",
        n_target_classes=3,
    )
    options = {"norm": norm, "eps": EPS[norm], "steps": 15, "restarts": 2, "seed": SEED, "random": "original"}
    if targeted:
        ours = attacks.fab_targeted(model, x, y, num_targets=3, **options)
    else:
        ours = attacks.fab(model, x, y, **options)
    same(ours, model, y, theirs.perturb(x, y))


@NORMS
def test_square(problem, norm):
    model, x, y = problem
    eps = 2 * EPS[norm]
    theirs = square_attack.SquareAttack(
        model, norm=norm, n_queries=80, eps=eps, seed=SEED, resc_schedule=False, device="cpu"
    )
    ours = attacks.square(model, x, y, norm=norm, eps=eps, queries=80, seed=SEED, random="original")
    same(ours, model, y, theirs.perturb(x, y))


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_autoattack_in_batches(problem, norm):
    """The original reseeds in every batch and regroups the survivors before every attack."""
    model, x, y = problem
    theirs = peer.AutoAttack(
        model, norm=norm, eps=EPS[norm], seed=SEED, version="custom", attacks=["apgd-ce", "apgd-dlr"]
    )
    theirs.apgd.n_restarts = 1
    theirs.logger.disabled = True
    expected, _ = theirs.run_standard_evaluation(x, y, batch_size=7)
    ours = attacks.autoattack(
        model,
        x,
        y,
        norm=norm,
        eps=EPS[norm],
        version=["apgd-ce", "apgd-dlr"],
        batch_size=7,
        seed=SEED,
        random="original",
    )
    right = ours.trace["broken_by"] != 0
    assert torch.equal(ours.adversarial[right], expected[right])


@pytest.mark.parametrize("random", ["sample", "original"])
def test_the_callers_random_state_is_left_alone(problem, random):
    model, x, y = problem
    before = torch.random.get_rng_state()
    options = {"norm": "Linf", "eps": 0.02, "random": random}
    attacks.apgd(model, x, y, steps=3, **options)
    attacks.fab(model, x, y, steps=2, restarts=2, **options)
    attacks.square(model, x, y, queries=3, **options)
    assert torch.equal(torch.random.get_rng_state(), before)
