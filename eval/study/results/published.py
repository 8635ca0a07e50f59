"""Numbers of Zou et al. 2026 (arXiv 2606.12251) that a study can be compared with."""

from eval.core.threats import Threat
from eval.study.plan.cells import Cell

SOURCE = "arXiv 2606.12251"
# PGD accuracy, 6-layer network, L2, by data set and regime; as the paper gives them.
_PGD = {
    ("cifar10", "SL"): "about 5 %",
    ("cifar10", "RL"): "55-56 %",
    ("cifar100", "SL"): "about 2 %",
    ("cifar100", "RL"): "about 25 %",
    ("imagenet100", "SL"): "about 5 %",
    ("imagenet100", "RL"): "about 18 %",
}
# Accuracy on CIFAR-10 images made on another model, by (source, target).
_TRANSFER = {
    ("RL", "SL"): "about 43 %",
    ("RL", "RL"): "about 43 %",
    ("SL", "SL"): "about 8 %",
    ("SL", "RL"): "about 8 %",
    ("SL", "RL-adv"): "about 30 %",
}
_NETWORK = "cnn6"


def paper_pgd(cell: Cell, threat: Threat) -> str | None:
    """Return the paper's PGD accuracy for this data set, network, regime and norm; None where it has none."""
    if cell.network != _NETWORK or threat.norm != "L2":
        return None
    return _PGD.get((cell.dataset, cell.regime))


def paper_transfer(source: str, target: Cell, threat: Threat) -> str | None:
    """Return the paper's accuracy on images made on a regime's model; None where it has none."""
    if (target.dataset, target.network, threat.norm) != ("cifar10", _NETWORK, "L2"):
        return None
    return _TRANSFER.get((source, target.regime))
