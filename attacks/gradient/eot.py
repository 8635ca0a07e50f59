"""Models and policies whose answers are random: expectation over their randomness, and the success to expect."""

from typing import Any, Literal

import torch
from torch import Tensor

from attacks.core import entry
from attacks.core.batching import Batches
from attacks.core.errors import unknown_name
from attacks.core.inputs import validate_inputs
from attacks.core.losses import misclassified
from attacks.core.model import Model, check_labels, forward
from attacks.core.result import AttackResult
from attacks.gradient.pgd import pgd

ACTIONS = ("sampled", "argmax")


@entry.attack
def eot(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    norm: str,
    eps: float | Tensor,
    action: Literal["sampled", "argmax"] = "sampled",
    exploration: float = 0.0,
    samples: int = 20,
    passes: int = 100,
    steps: int = 100,
    step_size: float | Tensor | None = None,
    loss: str = "ce",
    restarts: int = 1,
    random_start: bool = True,
    batch_size: int | None = None,
    seed: int = 0,
    sample_ids: Tensor | None = None,
) -> AttackResult:
    """PGD on the expected loss of a model with random outputs (EOT, Athalye et al. 2018), judged in expectation.

    Gradients are averaged over ``samples`` passes; for a policy whose only randomness is the sampled label one pass is
    exact, since cross-entropy falls as 1 - p(y|x) does. Samples never leave early: the iterate of highest loss is
    returned.

    Args:
        model, x, y, norm, eps, batch_size, seed, sample_ids: see `attacks`.
        action: what the policy answers: a label drawn from its softmax, or the largest logit of the pass.
        exploration: chance in [0, 1] that a sampled answer is drawn uniformly instead (epsilon-greedy).
        samples: passes per gradient; 1 suffices where logits are not random.
        passes: passes over which the expected success is averaged; not charged as queries.
        steps: gradient steps per restart.
        step_size: length of a step; default as in `attacks.gradient.pgd`.
        loss: what is raised: "ce", "margin", "dlr" or "mifpe".
        restarts: independent starts.
        random_start: False starts at ``x``.

    Returns:
        The result; its trace holds "expected_success" (N,), the chance of a wrong answer to ``adversarial``.
        ``success`` is the largest logit of one fresh pass, as for every attack.
    """
    options: dict[str, Any] = {"steps": steps, "step_size": step_size, "loss": loss, "restarts": restarts}
    options |= {"random_start": random_start, "keep": "loss", "eot_samples": samples}
    options |= {"batch_size": batch_size, "seed": seed, "sample_ids": sample_ids}
    result = pgd(model, x, y, norm=norm, eps=eps, **options)
    options = {"action": action, "exploration": exploration, "passes": passes, "batch_size": batch_size}
    chance = expected_success(model, result.adversarial, y, **options)
    result.trace["expected_success"] = chance
    return result


@entry.attack
def expected_success(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    action: Literal["sampled", "argmax"] = "sampled",
    exploration: float = 0.0,
    passes: int = 1,
    batch_size: int | None = None,
) -> Tensor:
    """The chance (N,) that a policy answers the images ``x`` wrongly, averaged over ``passes`` forward passes.

    A sampled answer is wrong with probability 1 - p(y|x), p = (1 - exploration) softmax + exploration / K; NaN logits
    count as wrong. One pass is exact for sampled answers of a model whose logits are not random.

    Raises:
        AttackError: wrong inputs, ``exploration`` outside [0, 1], or an unknown action.
    """
    if action not in ACTIONS:
        raise unknown_name("action", action, ACTIONS)
    problem = validate_inputs(x, y, norm="Linf", eps=0.0)

    def wrong(part: Tensor) -> Tensor:
        logits = forward(model, problem.x[part])
        check_labels(problem, logits.shape[1])
        labels = problem.y[part]
        if action == "argmax":
            return misclassified(logits, labels).to(logits.dtype)
        policy = (1 - exploration) * logits.softmax(1) + exploration / logits.shape[1]
        return 1 - policy.gather(1, labels[:, None]).squeeze(1).nan_to_num(0.0)

    batches = Batches(problem.x, batch_size)
    return torch.stack([torch.cat(batches.map(wrong)) for _ in range(passes)]).mean(0)
