"""Adversarial attacks as functions; needs PyTorch alone."""

import attacks.starting as _starting  # noqa: F401 - before what takes long
from attacks.apgd import apgd, apgd_targeted
from attacks.autoattack import AutoAttackResult, autoattack
from attacks.bpda import BPDA
from attacks.eot import eot, expected_success
from attacks.errors import AttackError
from attacks.fab import fab, fab_targeted
from attacks.fgsm import fgsm
from attacks.foolbox_adapter import boundary, carlini_wagner, ddn, deepfool, hopskipjump
from attacks.multitargeted import multitargeted
from attacks.pgd import pgd
from attacks.rays import rays
from attacks.result import AttackResult
from attacks.spsa import nes, spsa
from attacks.square import square
from attacks.transfer import judge, transfer, transfer_images

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
