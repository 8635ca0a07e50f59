"""Projected gradient descent, with the step rule of the literature or, to the letter, that of cleverhans."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from attacks.core.batching import Batches
from attacks.core.errors import AttackError, unknown_name
from attacks.core.inputs import Problem, at_least_one, validate_inputs
from attacks.core.losses import get_loss
from attacks.core.model import CountedModel, Model, frozen
from attacks.core.result import AttackResult
from attacks.gradient.walk import Step, Walk, WalkOptions

PROTOCOLS = ("normalized", "cleverhans")


def pgd(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    norm: str,
    eps: float | Tensor,
    steps: int = 100,
    step_size: float | Tensor | None = None,
    loss: str = "ce",
    restarts: int = 1,
    random_start: bool | Literal["odi"] = True,
    protocol: Literal["normalized", "cleverhans"] = "normalized",
    averaged_over: int | None = None,
    labels: Literal["true", "predicted"] = "true",
    targets: Tensor | None = None,
    keep: Literal["best", "loss", "last"] = "best",
    early_stop: bool = True,
    eot_samples: int = 1,
    batch_size: int | None = None,
    seed: int = 0,
    sample_ids: Tensor | None = None,
    on_step: Callable[[Step], None] | None = None,
) -> AttackResult:
    """Projected gradient descent (Madry et al. 2018): ascend the loss in small steps inside ball and [0, 1].

    Protocol "normalized": each sample's own gradient; steps of length ``step_size`` (sign at Linf, unit length at
    L2, largest gradients first at L1); start uniform in the ball. Protocol "cleverhans", for results published
    with that library: the gradient of the loss *averaged* over the batch, L2 steps of
    grad / sqrt(max(1e-12, sum grad^2)), which shrink where the gradient vanishes, and a start uniform per pixel in
    +-eps, then projected.

    Args:
        model: images (n, C, H, W) in [0, 1] to logits (n, K).
        x: images (N, C, H, W), floats in [0, 1].
        y: labels (N,) int64.
        norm: "Linf", "L2" or "L1" (the latter not under cleverhans).
        eps: radius in units of pixels, one for all or per sample (N,).
        steps: gradient steps per restart.
        step_size: length of a step like ``eps``; default eps * max(1/8, 2.5 / steps).
        loss: what is raised: "ce", "margin", "dlr" or "mifpe".
        restarts: independent starts; later ones attack the samples that are still unbroken.
        random_start: False starts at ``x``; "odi" moves the random start to a diverse output (Tashiro et al.
            2020).
        protocol: "normalized" or "cleverhans".
        averaged_over: batch size over which cleverhans' loss is averaged, and which its floor is counted for;
            default N. It stays the same however the work is split and whichever samples have left.
        labels: "predicted" climbs away from the model's own clean predictions; ``y`` still judges success.
        targets: classes (N,) to reach: a sample is done when it gets there, which the trace "hit_target" (N,) bool
            tells; ``success`` stays any misclassification.
        keep: "best" returns a misclassified iterate if there was one, else that of highest loss; "loss" that of
            highest loss, right or wrong; "last" the last one, as cleverhans does. With the latter two all samples
            walk to the end, and a clean error may end up classified correctly.
        early_stop: broken samples leave the batch (with ``keep="best"``); False goes on to raise their loss.
        eot_samples: gradients are averaged over this many passes, for models with random outputs.
        batch_size: the most images at once; None chooses. It changes no result.
        seed: seeds the starts.
        sample_ids: integers (N,) that the random numbers of each sample hang on; default 0..N-1.
        on_step: called with a `Step` before every step.

    Returns:
        The result; its trace holds "shortened" (N,), the share of the sample's steps that cleverhans' floor
        shortens (at Linf and L1: whose gradient is exactly 0), and "loss" (N,), the loss of ``adversarial``.

    Raises:
        AttackError: wrong inputs, or a model without gradients.
    """
    problem = validate_inputs(x, y, norm=norm, eps=eps, targets=targets, sample_ids=sample_ids)
    _check_choices(protocol=protocol, labels=labels, keep=keep)
    if protocol == "cleverhans" and norm == "L1":
        raise AttackError("cleverhans has no PGD at L1; use protocol='normalized'")
    options = WalkOptions(
        loss=get_loss(loss),
        steps=at_least_one("steps", steps),
        step_size=step_lengths(step_size, problem, steps),
        averaged_over=at_least_one("averaged_over", len(problem) if averaged_over is None else averaged_over),
        restarts=at_least_one("restarts", restarts),
        start="odi" if random_start == "odi" else "random" if random_start else "clean",
        cleverhans=protocol == "cleverhans",
        predicted_labels=labels == "predicted",
        keep=keep,
        early_stop=early_stop,
        seed=seed,
        on_step=on_step,
    )
    with frozen(model):
        counted = CountedModel(model, problem, samples=at_least_one("eot_samples", eot_samples))
        return Walk(counted, options, Batches(problem.x, batch_size)).run()


def step_lengths(step_size: float | Tensor | None, problem: Problem, steps: int) -> Tensor:
    """Step length per sample (N,); the default, eps * max(1/8, 2.5 / steps), can reach any point of the ball.

    Raises:
        AttackError: a length is not positive.
    """
    if step_size is None:
        return problem.eps * max(1 / 8, 2.5 / steps)
    lengths = torch.as_tensor(step_size, dtype=problem.x.dtype, device=problem.x.device)
    if lengths.ndim > 1 or lengths.numel() not in (1, len(problem)) or not (lengths > 0).all():
        raise AttackError(f"step_size must be positive, one number or ({len(problem)},), got {step_size}")
    return lengths.expand(len(problem))


def _check_choices(**chosen: str) -> None:
    valid = {"protocol": PROTOCOLS, "labels": ("true", "predicted"), "keep": ("best", "loss", "last")}
    for kind, value in chosen.items():
        if value not in valid[kind]:
            raise unknown_name(kind, value, valid[kind])
