"""One door to foolbox for attacks that are not our trade: C&W, DeepFool, DDN, HopSkipJump, boundary.

foolbox (Rauber et al. 2020) is an extra: ``pip install "labelbandit[foolbox]"``. These attacks look for the nearest
adversarial image, whose distance the trace tells; one farther away than eps is projected into the ball and judged
there. HopSkipJump and boundary draw for the batch as a whole, so with these two the batch size matters.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from attacks.core import entry
from attacks.core.errors import AttackError
from attacks.core.inputs import Problem, validate_inputs
from attacks.core.losses import misclassified
from attacks.core.model import CountedModel, Model, checked_logits, forward
from attacks.core.norms import per_sample
from attacks.core.result import AttackResult, finish, in_batches

_CLASSES = {
    "carlini_wagner": {"L2": "L2CarliniWagnerAttack"},
    "deepfool": {"L2": "L2DeepFoolAttack", "Linf": "LinfDeepFoolAttack"},
    "ddn": {"L2": "DDNAttack"},
    "hopskipjump": {"L2": "HopSkipJumpAttack", "Linf": "HopSkipJumpAttack"},
    "boundary": {"L2": "BoundaryAttack"},
}
_NEED_START = ("hopskipjump", "boundary")
_START_TRIES = 50  # random images in which a misclassified start is looked for, per sample


@entry.attack
def carlini_wagner(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    norm: str,
    eps: float | Tensor,
    steps: int = 1000,
    binary_search_steps: int = 9,
    stepsize: float = 0.01,
    confidence: float = 0.0,
    initial_const: float = 1e-3,
    batch_size: int | None = None,
) -> AttackResult:
    """Carlini and Wagner (2017) at L2, by foolbox; `deepfool` explains arguments and result."""
    options: dict[str, Any] = {"steps": steps, "binary_search_steps": binary_search_steps}
    options |= {"stepsize": stepsize, "confidence": confidence, "initial_const": initial_const}
    return _run("carlini_wagner", model, validate_inputs(x, y, norm=norm, eps=eps), options, batch_size)


@entry.attack
def deepfool(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    norm: str,
    eps: float | Tensor,
    steps: int = 50,
    candidates: int = 10,
    overshoot: float = 0.02,
    batch_size: int | None = None,
) -> AttackResult:
    """DeepFool (Moosavi-Dezfooli et al. 2016) at L2 or Linf, by foolbox.

    Args:
        model, x, y, eps, batch_size: see `attacks`.
        norm: a norm that the attack knows.
        steps: as in foolbox, like the other options of the attack.
        candidates: likeliest classes considered.
        overshoot: how far beyond the boundary to go.

    Returns:
        The result; its trace holds "distance" (N,), that of the adversarial image foolbox found, however far: 0 for
        clean errors, infinite where it found none.

    Raises:
        AttackError: wrong inputs, a norm the attack does not know, or foolbox is missing or fails.
    """
    options = {"steps": steps, "candidates": candidates, "overshoot": overshoot}
    return _run("deepfool", model, validate_inputs(x, y, norm=norm, eps=eps), options, batch_size)


@entry.attack
def ddn(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    norm: str,
    eps: float | Tensor,
    steps: int = 100,
    init_epsilon: float = 1.0,
    gamma: float = 0.05,
    batch_size: int | None = None,
) -> AttackResult:
    """Decoupled direction and norm (Rony et al. 2019) at L2, by foolbox; `deepfool` explains arguments and result."""
    options = {"steps": steps, "init_epsilon": init_epsilon, "gamma": gamma}
    return _run("ddn", model, validate_inputs(x, y, norm=norm, eps=eps), options, batch_size)


@entry.attack
def hopskipjump(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    norm: str,
    eps: float | Tensor,
    steps: int = 64,
    initial_gradient_eval_steps: int = 100,
    max_gradient_eval_steps: int = 10000,
    batch_size: int | None = None,
    seed: int = 0,
    sample_ids: Tensor | None = None,
) -> AttackResult:
    """HopSkipJump (Chen et al. 2020) at L2 or Linf, labels alone, by foolbox; `deepfool` explains the rest."""
    problem = validate_inputs(x, y, norm=norm, eps=eps, sample_ids=sample_ids)
    options: dict[str, Any] = {"steps": steps, "constraint": norm.lower()}
    options["initial_gradient_eval_steps"] = initial_gradient_eval_steps
    options["max_gradient_eval_steps"] = max_gradient_eval_steps
    return _run("hopskipjump", model, problem, options, batch_size, seed)


@entry.attack
def boundary(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    norm: str,
    eps: float | Tensor,
    steps: int = 25000,
    spherical_step: float = 0.01,
    source_step: float = 0.01,
    batch_size: int | None = None,
    seed: int = 0,
    sample_ids: Tensor | None = None,
) -> AttackResult:
    """Boundary attack (Brendel et al. 2018) at L2, labels alone, by foolbox; `deepfool` explains the rest."""
    options = {"steps": steps, "spherical_step": spherical_step, "source_step": source_step}
    problem = validate_inputs(x, y, norm=norm, eps=eps, sample_ids=sample_ids)
    return _run("boundary", model, problem, options, batch_size, seed)


def _run(
    name: str, model: Model, problem: Problem, options: dict[str, Any], batch_size: int | None, seed: int = 0
) -> AttackResult:
    """Attack all samples; ``options`` are arguments of the class in foolbox."""
    if problem.norm.name not in _CLASSES[name]:
        raise AttackError(f"{name} knows the norm {' or '.join(_CLASSES[name])}, got {problem.norm.name}")
    try:
        import foolbox
    except ImportError:
        raise AttackError(f'{name} comes from foolbox: pip install "labelbandit[foolbox]"') from None
    attack = getattr(foolbox.attacks, _CLASSES[name][problem.norm.name])(**options)

    def find(model: Model, part: Problem, starts: dict[str, Tensor]) -> Tensor:
        """The images that foolbox returns; the caller's random state stays as it was."""
        with torch.random.fork_rng(devices=[part.x.device] if part.x.is_cuda else []):
            torch.manual_seed(seed)
            wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device=part.x.device)
            criterion = foolbox.criteria.Misclassification(part.y)
            try:
                return attack(wrapped, part.x, criterion, epsilons=None, **starts)[0].detach()
            except (AssertionError, ValueError) as error:
                reason = str(error) or "an assertion of its own"
                raise AttackError(f"foolbox's {name} failed: {reason}") from error

    def attack_batch(problem: Problem) -> AttackResult:
        counted, starts = CountedModel(model, problem), {}
        clean_wrong = misclassified(counted.clean_logits(), problem.y)
        nearest = problem.x.clone()
        distance = torch.where(clean_wrong, 0, torch.inf).to(problem.eps.dtype)
        rows = (~clean_wrong).nonzero().squeeze(1)
        if name in _NEED_START:
            rows, starts["starting_points"] = _starts(counted, rows, seed)
        if len(rows):
            part, seen = problem[rows], _Counted(model, lambda grad: counted.repaired(grad, rows))
            found = find(seen, part, starts)
            counted.queries[rows] += seen.passes
            counted.backwards[rows] += seen.backwards
            wrong = misclassified(forward(model, found), part.y)
            distance[rows] = torch.where(wrong, part.norm.length(found - part.x), torch.inf)
            nearest[rows] = part.norm.confine(found, part.x, part.eps)
        return finish(counted, problem, nearest, clean_wrong=clean_wrong, trace={"distance": distance})

    return in_batches(attack_batch, problem, batch_size)


class _Counted(nn.Module):
    """The model as foolbox sees it: every pass is over the whole batch, and counted."""

    def __init__(self, model: Model, repaired: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.repaired = model, repaired
        self.training = False  # of the wrapper alone, for which foolbox looks
        self.passes = self.backwards = 0

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        if x.requires_grad:
            x = x.view_as(x)
            x.register_hook(self.repaired)
        logits = checked_logits(self.model, x).to(x.dtype)  # foolbox mixes them with the images
        if logits.requires_grad:
            logits.register_hook(self._count_backward)
        return logits

    def _count_backward(self, grad: Tensor) -> None:
        self.backwards += 1


def _starts(counted: CountedModel, rows: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Those of the samples ``rows`` for which a misclassified image of random pixels was found, and these images."""
    shape = tuple(counted.problem.x.shape[1:])
    starts = counted.problem.x.clone()
    found = torch.zeros_like(counted.problem.y, dtype=torch.bool)
    draws = counted.problem.draws(seed)
    for attempt in range(_START_TRIES):
        left = rows[~found[rows]]
        if not len(left):
            break
        noise = draws[left].fork(attempt).uniform(shape).to(starts.dtype)
        wrong = misclassified(counted.logits(noise, left), counted.problem.y[left])
        starts[left] = torch.where(per_sample(wrong, noise), noise, starts[left])
        found[left] = wrong
    ready = rows[found[rows]]
    return ready, starts[ready]
