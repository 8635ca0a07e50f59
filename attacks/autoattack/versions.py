"""Which attacks AutoAttack runs, in which order and with which budgets."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from attacks.autoattack.successive_halving import run_successive_halving
from attacks.blackbox.square import run_square
from attacks.core.batching import default_batch_size
from attacks.core.errors import AttackError, unknown_name
from attacks.core.inputs import Problem
from attacks.core.losses import margin
from attacks.core.model import CountedModel, Model
from attacks.core.model_state import fast_layout
from attacks.core.result import AttackResult, finish
from attacks.gradient.apgd import run_apgd
from attacks.gradient.fab import run_fab
from attacks.gradient.target_order import by_distance

VERSIONS = ("standard", "plus", "rand", "fast")
STAGES = ("apgd-ce", "apgd-dlr", "apgd-mifpe", "fab", "square", "apgd-t", "fab-t")
_ORDER = {
    "standard": ("apgd-ce", "apgd-t", "fab-t", "square"),
    "plus": ("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"),
    "rand": ("apgd-ce", "apgd-dlr"),
}
# "fast" goes on where the untargeted DLR loss, 0 at an error, came this close (see the benchmark for what that is
# worth): with all of APGD-T, with all of FAB-T, at L1 with all of APGD, and with Square after 200 (not at L1) and after
# 1,000 queries.
_APGD_FROM = -0.25
_FAB_FROM, _ON_FROM_L1 = -0.05, -0.1
_SQUARE_FROM = (-0.5, -0.25)
# Where 200 queries of Square come this close to the best of the gradients, they may be masked.
_MASKED = 0.1
# For samples that an earlier attack has left.
_apgd_at_once = partial(partial, run_apgd, all_restarts_at_once=True)
_fab_at_once = partial(partial, run_fab, all_restarts_at_once=True)

Attack = Callable[[Model, Problem, int], AttackResult]


@dataclass(frozen=True)
class Stage:
    """One attack of a version, on the samples that no earlier one broke."""

    name: str  #: unique in the version
    attack: Attack  #: called with model, problem and seed
    #: picks samples (n,) by the untargeted DLR loss that each stage so far has reached (n, stages), -inf where a stage
    #: left the sample out; None takes all
    wants: Callable[[Tensor], Tensor] | None = None


def stages_of(version: str | Sequence[str], norm: str, classes: int) -> tuple[Stage, ...]:
    """The stages of a version, or of a list of names from `STAGES`, for a model of so many ``classes``; "clean" first.

    Budgets are those of the published code (Croce and Hein 2020; at L1 2021): 100 iterations, 9 targets (L1: 5), 5000
    queries of Square, one restart (L1: 5; "plus": 5), 20 passes per gradient in "rand". With fewer than 4 (3) classes,
    where the targeted (untargeted) DLR loss is undefined, cross-entropy (the margin) takes its place.

    Raises:
        AttackError: an unknown version or stage, or no stage at all.
    """
    if isinstance(version, str) and version not in VERSIONS:
        raise unknown_name("version", version, VERSIONS)
    clean = Stage("clean", no_attack)
    if version == "fast":
        return (clean, *_fast(norm, classes))
    names = _ORDER[version] if isinstance(version, str) else tuple(version)
    if not names:
        raise AttackError(f"a custom AutoAttack needs at least one of: {', '.join(STAGES)}")
    for name in names:
        if name not in STAGES:
            raise unknown_name("stage of AutoAttack", name, STAGES)
    attacks = _published(version, norm, classes)
    return (clean, *(Stage(name, attacks[name]) for name in names))


def _published(version: str | Sequence[str], norm: str, classes: int) -> dict[str, Attack]:
    rand = version == "rand"
    apgd = partial(
        run_apgd,
        restarts=5 if version == "plus" or (norm == "L1" and not rand) else 1,
        eot_samples=20 if rand else 1,
        early_stop=not rand,
    )
    targets = 5 if norm == "L1" and version == "standard" else 9
    return {
        "apgd-ce": partial(apgd, loss="ce"),
        "apgd-dlr": partial(apgd, loss="dlr" if classes > 2 else "margin"),
        "apgd-mifpe": partial(apgd, loss="mifpe"),
        "apgd-t": _apgd_at_once(loss=_targeted_loss(classes), num_targets=targets),
        "fab": _fab_at_once(restarts=5),
        "fab-t": _fab_at_once(num_targets=9),
        "square": run_square,
    }


def _targeted_loss(classes: int) -> str:
    return "dlr" if classes > 3 else "ce"


def _fast(norm: str, classes: int) -> tuple[Stage, ...]:
    """Cheap attacks first; then the full ones, each where the cheap ones came close or the gradient looks masked.

    At L1, where how close a short ascent comes says little, all samples that are left get half of APGD-T and FAB-T,
    which find there what CE does not.
    """
    loss, l1 = _targeted_loss(classes), norm == "L1"
    stages = [Stage("one-step", one_step), Stage("apgd-ce", partial(run_apgd, steps=10))]
    targeted = _apgd_at_once(loss=loss, num_targets=9, order=by_distance)
    boundary = _fab_at_once(num_targets=9, order=by_distance)
    if l1:
        stages.append(Stage("apgd-t", partial(targeted, steps=50)))
        stages.append(Stage("fab-t", partial(boundary, steps=40)))
    else:
        stages.append(Stage("successive-halving", partial(run_successive_halving, loss=loss)))
        stages.append(Stage("apgd-t", targeted, lambda scores: scores.amax(1) > _APGD_FROM))
    stages.append(Stage("square", partial(run_square, queries=200)))
    square = len(stages)  # its position in the version, which "clean" begins

    def lead(scores: Tensor) -> Tensor:
        """By how much Square came closer than the gradients."""
        return scores[:, square] - scores[:, :square].amax(1)

    def close(scores: Tensor) -> Tensor:
        return scores.amax(1) > (_ON_FROM_L1 if l1 else _FAB_FROM)

    def further(scores: Tensor) -> Tensor:
        came_close = scores[:, square] > _SQUARE_FROM[0]
        return (lead(scores) > -_MASKED) | close(scores) | (came_close & (not l1))

    def to_the_end(scores: Tensor) -> Tensor:
        return (scores[:, square_on] > _SQUARE_FROM[1]) | (lead(scores) > 0)

    if l1:
        stages.append(Stage("apgd-t-on", targeted, close))
        stages.append(Stage("apgd-ce-on", _apgd_at_once(restarts=2), close))
    else:
        masked = _fab_at_once(steps=50, num_targets=3, order=by_distance)
        stages.append(Stage("fab-t", masked, lambda scores: lead(scores) > -_MASKED))
    stages.append(Stage("square-on", partial(run_square, queries=1000), further))
    square_on = len(stages)
    if not l1:
        stages.append(Stage("fab-t-on", boundary, close))
        stages.append(Stage("apgd-ce-on", _apgd_at_once(restarts=5), close))
    stages.append(Stage("square-to-the-end", run_square, to_the_end))
    return tuple(stages)


def one_step(model: Model, problem: Problem, seed: int) -> AttackResult:
    """One steepest step to the edge of the ball, which breaks most samples of a fragile model for next to nothing."""
    counted = CountedModel(model, problem, max_batch=default_batch_size(problem.x))
    with fast_layout(model, problem.x):
        grad = counted.gradient(problem.x, margin, along=(problem.y,)).grad.contiguous()
    moved = problem.norm.ascend(problem.x, grad, problem.eps)
    return finish(counted, problem, problem.norm.confine(moved, problem.x, problem.eps))


def no_attack(model: Model, problem: Problem, seed: int) -> AttackResult:
    """Which samples are wrong as they are, for one query each."""
    counted = CountedModel(model, problem, max_batch=default_batch_size(problem.x))
    counted.queries.add_(1)
    return finish(counted, problem, problem.x)
