"""Adversarial attacks as functions ``attack(model, x, y, *, norm, eps, ...)``; needs PyTorch alone.

They return an `AttackResult`, whose points were verified, and share these arguments:

- ``model``: any callable from images (n, C, H, W) in [0, 1] to logits (n, K), with K >= 2. A module is put into eval
  mode meanwhile. It needs gradients but for square, spsa, nes, rays, hopskipjump and boundary.
- ``x``: images (N, C, H, W), floats in [0, 1]. Those narrower than float32 are attacked in float32.
- ``y``: labels (N,), integers 0..K-1.
- ``norm``: "Linf", "L2" or "L1".
- ``eps``: the radius of the ball in units of pixels, one for all or per sample (N,).
- ``batch_size``: the most images at once; None chooses. Out of memory halves it. It changes no result but foolbox's.
- ``seed``: seeds everything random.
- ``sample_ids``: integers (N,) that each sample's random numbers depend on, whatever else is attacked; default 0..N-1.

A point counts as inside the ball up to 1e-6 + 1e-5 eps, for which its length is summed in float64; while they step,
attacks know lengths to 1e-5 of them. All raise an `AttackError` for wrong arguments before they begin, and for a model
without the gradients they need.
"""

import attacks.starting as _starting  # noqa: F401 - before what takes long
from attacks.autoattack.autoattack import AutoAttackResult, autoattack
from attacks.blackbox.rays import rays
from attacks.blackbox.spsa import nes, spsa
from attacks.blackbox.square import square
from attacks.core.errors import AttackError
from attacks.core.result import AttackResult
from attacks.foolbox_adapter import boundary, carlini_wagner, ddn, deepfool, hopskipjump
from attacks.gradient.apgd import apgd, apgd_targeted
from attacks.gradient.bpda import BPDA
from attacks.gradient.eot import eot, expected_success
from attacks.gradient.fab import fab, fab_targeted
from attacks.gradient.fgsm import fgsm
from attacks.gradient.multitargeted import multitargeted
from attacks.gradient.pgd import pgd
from attacks.gradient.transfer import judge, transfer, transfer_images

__all__ = [
    "BPDA",
    "AttackError",
    "AttackResult",
    "AutoAttackResult",
    "apgd",
    "apgd_targeted",
    "autoattack",
    "boundary",
    "carlini_wagner",
    "ddn",
    "deepfool",
    "eot",
    "expected_success",
    "fab",
    "fab_targeted",
    "fgsm",
    "hopskipjump",
    "judge",
    "multitargeted",
    "nes",
    "pgd",
    "rays",
    "spsa",
    "square",
    "transfer",
    "transfer_images",
]
