"""Multi-targeted PGD: one attack towards each of the likeliest wrong classes."""

from dataclasses import replace
from typing import Literal

from torch import Tensor

from attacks.core import entry
from attacks.core.errors import unknown_name
from attacks.core.inputs import validate_inputs
from attacks.core.model import Model
from attacks.core.result import AttackResult
from attacks.gradient.pgd import Settings, run_pgd
from attacks.gradient.target_order import by_distance, by_logit


@entry.attack
def multitargeted(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    norm: str,
    eps: float | Tensor,
    steps: int = 100,
    step_size: float | Tensor | None = None,
    loss: str = "margin",
    num_targets: int = 9,
    target_order: Literal["distance", "logit"] = "distance",
    restarts: int = 1,
    random_start: bool | Literal["odi"] = True,
    batch_size: int | None = None,
    seed: int = 0,
    sample_ids: Tensor | None = None,
) -> AttackResult:
    """Run PGD towards each target class in turn, z_t - z_y by default (Gowal et al. 2019); any error is a success.

    Targets are ``num_targets`` wrong classes, the most promising first; samples leave once misclassified. It finds what
    an untargeted loss misses where another class than the runner-up is nearer.

    Args:
        model, x, y, norm, eps, batch_size, seed, sample_ids: see `attacks`.
        steps: gradient steps per target.
        step_size: length of a step; default as in `attacks.gradient.pgd`.
        loss: the targeted loss: "margin", "ce", "dlr" (4 classes or more) or "mifpe".
        num_targets: classes aimed at, at most all wrong ones.
        target_order: "distance" chooses among more wrong classes than targets as MALT does, for 20 more passes
            (see `attacks.gradient.target_order`); "logit" takes those of largest clean logit.
        restarts: runs per target, each from its own start.
        random_start: False starts at ``x``; "odi" moves the random start to a diverse output.

    Returns:
        The result, traced as by `attacks.gradient.pgd`.
    """
    orders = {"distance": by_distance, "logit": by_logit}
    if target_order not in orders:
        raise unknown_name("target order", target_order, orders)
    problem = validate_inputs(x, y, norm=norm, eps=eps, sample_ids=sample_ids)
    settings = Settings(loss, steps, step_size, num_targets * restarts, random_start, batch_size)
    settings = replace(settings, num_targets=num_targets, order=orders[target_order])
    return run_pgd(model, problem, seed, settings)
