"""The fast gradient sign method and its L2 and L1 forms: one steepest step of length eps."""

from torch import Tensor

from attacks.core import entry
from attacks.core.inputs import Problem, validate_inputs
from attacks.core.losses import get_loss, misclassified
from attacks.core.model import CountedModel, Model, check_labels
from attacks.core.result import AttackResult, finish, in_batches


@entry.attack
def fgsm(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    norm: str,
    eps: float | Tensor,
    loss: str = "ce",
    targets: Tensor | None = None,
    batch_size: int | None = None,
) -> AttackResult:
    """One step to the edge of the ball, then clipped to [0, 1] (Goodfellow et al. 2015).

    At Linf the step is ``eps * sign(grad)``; at L2 ``eps * grad / norm(grad)``; at L1 it is spent on the pixels of
    largest gradient.

    Args:
        model, x, y, norm, eps, batch_size: see `attacks`.
        loss: what is raised: "ce", "margin", "dlr" or "mifpe".
        targets: classes (N,) to move towards; success stays any misclassification.

    Returns:
        The result; one query and one backward pass per image.
    """
    raised = get_loss(loss)

    def attack(batch: Problem) -> AttackResult:
        counted = CountedModel(model, batch)

        def objective(logits: Tensor) -> Tensor:
            check_labels(batch, logits.shape[1])
            return raised(logits, batch.y, batch.targets)

        clean = counted.gradient(batch.x, objective)
        moved = batch.norm.ascend(batch.x, clean.grad, batch.eps)
        candidate = batch.norm.confine(moved, batch.x, batch.eps)
        return finish(counted, batch, candidate, clean_wrong=misclassified(clean.logits, batch.y))

    return in_batches(attack, validate_inputs(x, y, norm=norm, eps=eps, targets=targets), batch_size)
