"""Adversarial attacks as functions; needs PyTorch alone."""

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
