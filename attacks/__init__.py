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

import importlib
from typing import TYPE_CHECKING, Any

import attacks.autoattack  # noqa: F401 - the folder, before its name becomes the attack's
import attacks.starting as _starting  # noqa: F401 - before what takes long

if TYPE_CHECKING:
    from attacks.autoattack.autoattack import AutoAttackResult as AutoAttackResult
    from attacks.autoattack.autoattack import autoattack as autoattack
    from attacks.blackbox.rays import rays as rays
    from attacks.blackbox.spsa import nes as nes
    from attacks.blackbox.spsa import spsa as spsa
    from attacks.blackbox.square import square as square
    from attacks.core.errors import AttackError as AttackError
    from attacks.core.result import AttackResult as AttackResult
    from attacks.foolbox_adapter import boundary as boundary
    from attacks.foolbox_adapter import carlini_wagner as carlini_wagner
    from attacks.foolbox_adapter import ddn as ddn
    from attacks.foolbox_adapter import deepfool as deepfool
    from attacks.foolbox_adapter import hopskipjump as hopskipjump
    from attacks.gradient.apgd import apgd as apgd
    from attacks.gradient.apgd import apgd_targeted as apgd_targeted
    from attacks.gradient.bpda import BPDA as BPDA
    from attacks.gradient.eot import eot as eot
    from attacks.gradient.eot import expected_success as expected_success
    from attacks.gradient.fab import fab as fab
    from attacks.gradient.fab import fab_targeted as fab_targeted
    from attacks.gradient.fgsm import fgsm as fgsm
    from attacks.gradient.multitargeted import multitargeted as multitargeted
    from attacks.gradient.pgd import pgd as pgd
    from attacks.gradient.transfer import judge as judge
    from attacks.gradient.transfer import transfer as transfer
    from attacks.gradient.transfer import transfer_images as transfer_images

# Imported when first asked for, so that command lines answer before PyTorch is there.
_HOMES = {
    "attacks.autoattack.autoattack": ("AutoAttackResult", "autoattack"),
    "attacks.blackbox.rays": ("rays",),
    "attacks.blackbox.spsa": ("nes", "spsa"),
    "attacks.blackbox.square": ("square",),
    "attacks.core.errors": ("AttackError",),
    "attacks.core.result": ("AttackResult",),
    "attacks.foolbox_adapter": ("boundary", "carlini_wagner", "ddn", "deepfool", "hopskipjump"),
    "attacks.gradient.apgd": ("apgd", "apgd_targeted"),
    "attacks.gradient.bpda": ("BPDA",),
    "attacks.gradient.eot": ("eot", "expected_success"),
    "attacks.gradient.fab": ("fab", "fab_targeted"),
    "attacks.gradient.fgsm": ("fgsm",),
    "attacks.gradient.multitargeted": ("multitargeted",),
    "attacks.gradient.pgd": ("pgd",),
    "attacks.gradient.transfer": ("judge", "transfer", "transfer_images"),
}
__all__ = sorted(name for names in _HOMES.values() for name in names)

del globals()["autoattack"]


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
