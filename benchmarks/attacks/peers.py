"""The published attacks that ours are measured against, each called as its documentation shows."""

import importlib
import logging
from collections.abc import Callable, Iterable
from types import ModuleType

import torch
from torch import Tensor, nn

from envs.errors import InputError

Attack = Callable[[], Tensor]

# Module and distribution of each; none of them is needed by the packages.
PEERS = {
    "torchattacks": ("torchattacks", "torchattacks --no-deps"),
    "foolbox": ("foolbox", "foolbox"),
    # visdom, which adv-lib needs, builds with an older setuptools alone.
    "adv-lib": (
        "adv_lib.attacks",
        '"setuptools<81" wheel && pip install --no-build-isolation adv-lib',
    ),
    "pyautoattack": ("pyautoattack.autoattack", "pyautoattack"),
}


def load_peer(name: str) -> ModuleType:
    """Import a peer.

    Raises:
        InputError: it is not installed; the message says how to install it.
    """
    module, distribution = PEERS[name]
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(
            f"the benchmark needs {name} ({error}); pip install {distribution}, or leave {name} out of --peers"
        ) from error


def load_peers(names: Iterable[str]) -> None:
    """Import all peers, so that what is missing is said before anything is measured.

    Raises:
        InputError: some are not installed; the message says of each how to install it.
    """
    lacking = []
    for name in names:
        try:
            load_peer(name)
        except InputError as error:
            lacking.append(str(error))
    if lacking:
        raise InputError("\n".join(lacking))


def pgd_peer(
    name: str, model: nn.Module, x: Tensor, y: Tensor, eps: float, step: float, steps: int
) -> Attack:
    """Linf PGD on cross-entropy from a random start, all images in one batch, as a function without arguments."""
    peer = load_peer(name)
    if name == "torchattacks":
        attack = peer.PGD(model, eps=eps, alpha=step, steps=steps)
        return lambda: attack(x, y)
    if name == "foolbox":
        wrapped = peer.PyTorchModel(model, bounds=(0, 1), device=x.device)
        descent = peer.attacks.LinfPGD(abs_stepsize=step, steps=steps)
        return lambda: descent(wrapped, x, y, epsilons=eps)[1]
    return lambda: peer.pgd_linf(model, x, y, eps, steps=steps, absolute_step_size=step)


def published_autoattack(
    model: nn.Module, x: Tensor, y: Tensor, norm: str, eps: float, seed: int = 0, batch_size: int = 250
) -> Attack:
    """The standard AutoAttack of the original authors' code."""
    peer = load_peer("pyautoattack")

    def run() -> Tensor:
        logging.disable(logging.CRITICAL)
        try:
            with torch.random.fork_rng(devices=[]):
                attack = peer.AutoAttack(model, norm=norm, eps=eps, seed=seed)
                return attack.run_standard_evaluation(x, y, batch_size=batch_size)[0]
        finally:
            logging.disable(logging.NOTSET)

    return run
