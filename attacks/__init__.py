"""Adversarial attacks as functions; needs PyTorch alone."""

from attacks.errors import AttackError
from attacks.fgsm import fgsm
from attacks.pgd import pgd
from attacks.result import AttackResult

__all__ = ["AttackError", "AttackResult", "fgsm", "pgd"]
