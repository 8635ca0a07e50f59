"""What every attack returns, the final check that makes it trustworthy, and the splitting into batches."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from attacks.core.batching import Batches, patient_batch_size
from attacks.core.inputs import Problem, towards
from attacks.core.losses import misclassified
from attacks.core.model import CountedModel, forward
from attacks.core.norms import ball_and_box, get_norm, per_sample


@dataclass(frozen=True, repr=False)
class AttackResult:
    """The outcome per sample, verified by `finish`.

    Attributes:
        adversarial: (N, C, H, W), inside the ball and [0, 1].
        success: (N,) bool, the model misclassifies ``adversarial`` (errors on the clean image included).
        queries: (N,) int64, forward passes that the attack used on that image, the final verification apart. On a GPU
            broken samples leave gradient attacks after every tenth step, and their passes until then count.
        backwards: (N,) int64, backward passes.
        trace: what the attack recorded, samples in the last dimension. Always "nan" (N,) bool, the final logits held
            NaN (which counts as success), and "outside" (N,) bool, the attack's own point lay outside the threat model
            and was projected back, "nonfinite_gradient" (N,), the share of gradients with infinite or NaN entries, and
            "not_attacked" (N,) bool, the gradients had no finite entry and nothing broke the sample; of targeted
            attacks also "hit_target" (N,) bool.
        logits: (N, K), what the model says of ``adversarial``; None where samples were answered at different times.
    """

    adversarial: Tensor
    success: Tensor
    queries: Tensor
    backwards: Tensor
    trace: dict[str, Tensor] = field(default_factory=dict)
    logits: Tensor | None = None

    def __len__(self) -> int:
        return len(self.success)

    @property
    def robust_accuracy(self) -> float:
        """Share of the samples that the attack tried to break and did not."""
        broken = self.success
        if "not_attacked" in self.trace:
            broken = broken | self.trace["not_attacked"]
        return 1 - broken.double().mean().item()

    def _shown(self) -> dict[str, str]:
        shown = {"images": f"{len(self)}", "robust accuracy": f"{100 * self.robust_accuracy:.1f} %"}
        if len(self):
            shown["queries per image"] = f"{self.queries.double().mean().item():.1f}"
            shown["backward passes per image"] = f"{self.backwards.double().mean().item():.1f}"
        return shown

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}: {value}" for name, value in self._shown().items())
        return f"<{type(self).__name__} {shown}>"

    def _repr_html_(self) -> str:
        """Return a small table for notebooks."""
        rows = "".join(f"<tr><th>{name}</th><td>{value}</td></tr>" for name, value in self._shown().items())
        return f"<table><caption>{type(self).__name__}</caption>{rows}</table>"

    def distance(self, x: Tensor, norm: str) -> Tensor:
        """The size (N,) of each perturbation of the clean images ``x``."""
        return get_norm(norm).length(self.adversarial.double() - x.double()).to(x.dtype)


def finish(
    counted: CountedModel,
    problem: Problem,
    candidate: Tensor,
    *,
    clean_wrong: Tensor | None = None,
    batches: Batches | None = None,
    trace: dict[str, Tensor] | None = None,
) -> AttackResult:
    """Verify an attack's ``candidate`` images by the ball, by [0, 1] and by a fresh forward pass.

    Points outside are projected (those with NaN or infinite pixels become the clean image) and judged there, so a
    faulty attack can lose successes but never claim false ones. Rounding is allowed for: 1e-6 + 1e-5 eps.

    Args:
        counted, problem: the model with the counts to report; images, labels and radii.
        candidate: (N, C, H, W).
        clean_wrong: (N,) bool, clean errors; where the candidate fails, such a sample's clean image is the answer.
        batches: how to split the verifying forward pass; default all at once.
        trace: what the attack recorded.
    """
    x = problem.x
    valid = candidate.flatten(1).isfinite().all(1)
    inside = (candidate.flatten(1) >= 0).all(1) & (candidate.flatten(1) <= 1).all(1)
    near = problem.norm.length((candidate - x).double()) <= problem.eps * (1 + 1e-5) + 1e-6
    outside = ~(valid & (inside | (not problem.box)) & near)
    final = candidate
    if outside.any():
        final = torch.where(per_sample(valid, x), candidate, x)
        within = ball_and_box(final, x, problem.eps, problem.norm)
        final = torch.where(per_sample(outside, x), within, final)
    if problem.grid:
        final = towards(x, final, problem.grid)
    if batches is None:
        logits = torch.cat([counted.verdict(part) for part in final.split(counted.max_batch or len(final))])
    else:
        logits = torch.cat(batches.map(lambda part: forward(counted.model, final[part])))
    success = misclassified(logits, problem.y)
    answered: Tensor | None = logits
    if clean_wrong is not None and (undone := clean_wrong & ~success).any():
        final = torch.where(per_sample(undone, x), x, final)
        success = success | clean_wrong
        answered = None
    gradients = counted.trace()
    blind = gradients.pop("no_gradient")
    checks = {"nan": logits.isnan().any(1), "outside": outside, **gradients, "not_attacked": blind & ~success}
    if not problem.box:
        checks["left_box"] = ((final < 0) | (final > 1)).flatten(1).any(1)
    if problem.targets is not None:
        checks["hit_target"] = logits.argmax(1) == problem.targets
    return AttackResult(
        final.detach(), success, counted.queries, counted.backwards, {**(trace or {}), **checks}, answered
    )


def in_batches(
    attack: Callable[[Problem], AttackResult],
    problem: Problem,
    batch_size: int | None = None,
    patient: bool = False,
) -> AttackResult:
    """Run ``attack`` on consecutive batches of the problem and join the results.

    A batch that runs out of memory is tried again in halves, and the smaller size is kept; results do not depend on
    it, because each sample's random numbers are its own. Without ``batch_size`` one is chosen by the size of the images
    and the device: `patient_batch_size` if the attack is ``patient``, that is if samples leave it one by one.

    Raises:
        AttackError: ``batch_size`` is not positive, or one image alone does not fit in memory.
    """
    if batch_size is None and patient:
        batch_size = patient_batch_size(problem.x)
    return join(Batches(problem.x, batch_size).map(lambda part: attack(problem[part])))


def join(results: Sequence[AttackResult]) -> AttackResult:
    """The results of consecutive batches as one."""
    if len(results) == 1:
        return results[0]
    trace = {key: torch.cat([result.trace[key] for result in results], dim=-1) for key in results[0].trace}

    def joined(name: str) -> Tensor:
        return torch.cat([getattr(result, name) for result in results])

    whole = (joined("adversarial"), joined("success"), joined("queries"), joined("backwards"))
    return AttackResult(*whole, trace)
