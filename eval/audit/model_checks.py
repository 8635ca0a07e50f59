"""Checks of the model before attacks: are its outputs logits, and do its gradients describe it?"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from agents.common.protocols import CLEVERHANS_BATCH
from attacks.core.batching import default_batch_size
from attacks.core.losses import get_loss
from attacks.core.model_state import frozen
from attacks.core.norms import get_norm
from attacks.core.pass_counts import repair
from attacks.core.rng import draws_for
from attacks.gradient.pgd import STEP_FLOOR
from envs.sampling import spread
from eval.audit import settings
from eval.audit.callables import own_errors
from eval.audit.findings import Finding
from eval.audit.record import logits_of
from eval.mechanism.gradients import cosines, in_double, lengths

# Where the checks come from.
_PASSES = "AutoAttack's check (Croce and Hein 2020): 5 passes, normalised logits"
_SIGMOIDS = "AutoAttack's check (Croce and Hein 2020); ours: one-against-all sigmoids as well"
_NEIGHBOURS = "ours: relative change of the logits in another batch"
_NO_ANSWER = "ours: NaN counts as an error of the model's, infinite outputs leave losses undefined"
_VANISHING = "Athalye et al. 2018: vanishing gradients; Carlini et al. 2019"
_FLOOR = f"cleverhans' L2 step: |grad| / batch under 1e-6, batch of {CLEVERHANS_BATCH}"
_QUANTISED = "ours: a quantised stage makes the output piecewise constant"
_CHANGE = "ours: gradient against central differences over half a grey level"
_NONFINITE = "ours: a root or logarithm at black pixels, or a broken backward pass"
_SATURATED = "IEEE 754: 1 - p rounds to 1 beyond a gap of log(2^24)"
_FIDELITY = (
    "correlation of nine in ten images up to {correlation:.2f}; halving the distance changes {rough:.0%}"
)
_IMAGES = 64  # whose outputs are looked at
_HUGE = 1e9  # what infinite outputs are measured as


@dataclass(frozen=True)
class GradientChecks:
    """What the model's gradients are like; by default those of an honest model."""

    zero: float = 0.0  #: share of the images where the gradient of the margin is exactly zero or missing
    constant: float = 0.0  #: share of pairs of close points with equal logits
    #: share of the margin's changes that the gradient does not explain, median over images
    unexplained: float = 0.0
    #: share of correctly classified images whose cross-entropy gradient is zero or under the floor of
    #: the cleverhans protocol
    vanished: float = 0.0
    #: share of the images whose logits differ by more than float32 can tell from a sure thing
    saturated: float = 0.0
    nonfinite: float = 0.0  #: share of the images whose gradient of the margin has infinite or NaN entries
    #: of the margin's changes with what the gradient says: what nine of ten images do not exceed, for
    #: shattered gradients have either sign by chance; -1 is a gradient turned round
    correlation: float = 1.0
    #: how far changes over one distance and over half of it disagree, as a share; about 0 is smooth
    rough: float = 0.0
    #: cosine between gradients half a grey level apart, median over images; ripples turn them
    steady: float = 1.0

    @property
    def missing(self) -> bool:
        """Most images have no gradient that attacks could follow."""
        return max(self.zero, self.nonfinite) > settings.ZERO_SHARE

    @property
    def piecewise_constant(self) -> bool:
        """Gradients are zero, and most close points have equal logits."""
        return self.zero > settings.ZERO_SHARE and self.constant > settings.CONSTANT_SHARE

    @property
    def misleading(self) -> bool:
        """There is none, or it does not describe the function."""
        return self.missing or self.wrong or self.unexplained > settings.UNEXPLAINED

    @property
    def wrong(self) -> bool:
        """It is another function's: margin and gradient are smooth, and do not fit."""
        smooth = self.rough < settings.ROUGHER * self.unexplained and self.steady > settings.STEADY
        return self.unexplained > settings.WRONG and smooth


def input_gradients(model: nn.Module, x: Tensor, y: Tensor, loss: str) -> Tensor:
    """Return each image's gradient of ``loss``, shaped like ``x``; zeros where the model passes none on."""
    grads, size = [], default_batch_size(x)
    with frozen(model), torch.enable_grad():
        for images, labels in zip(x.split(size), y.split(size), strict=True):
            leaf = images.detach().requires_grad_()
            logits = model(leaf)
            losses = get_loss(loss)(logits.float() if logits.element_size() < 4 else logits, labels, None)
            grad = None
            if losses.requires_grad:
                (grad,) = torch.autograd.grad(losses.sum(), leaf, allow_unused=True)
            grads.append(torch.zeros_like(images) if grad is None else grad)
    return torch.cat(grads)


def check_gradients(
    raw: nn.Module, model: nn.Module, x: Tensor, y: Tensor, norm: str, eps: float, seed: int
) -> tuple[GradientChecks, list[Finding]]:
    """Measure gradients at the images ``x`` (N, C, H, W) and at random points of the ball around them.

    ``raw``: the audited model, whose float64 copy is asked too; ``model``: the view of it that attacks use, with logits
    for outputs; ``y``: labels (N,); ``seed``: of the random points.
    """
    stream = draws_for(seed, torch.arange(len(x), device=x.device))
    start = (x + get_norm(norm).random(stream.fork(0), x.shape[1:], x.new_full((len(x),), eps))).clamp(0, 1)
    found, findings = _vanishing(model, {"the images": x, "random points": start}, y)
    findings.append(_in_float64(raw, x, y))
    found["constant"] = _constant(model, x, stream.fork(1).normal((8, *x.shape[1:])))
    fidelity = _fidelity(model, x, y, stream.fork(2).normal((8, *x.shape[1:])))
    top = logits_of(model, x).topk(2, dim=1).values
    saturated = float((top[:, 0] - top[:, 1] > settings.SATURATED_GAP).double().mean())
    gradients = GradientChecks(**found, **fidelity, saturated=saturated)
    note, change = _FIDELITY.format(**fidelity) if fidelity else "", fidelity.get("unexplained")
    equal, odd = "equal logits at points 1e-5 per pixel apart", "gradients with infinite or NaN entries"
    unlike = "change of the margin that the gradient does not explain"
    apart = "logits too far apart for float32's cross-entropy"
    constant = gradients.constant
    findings += [
        Finding(equal, constant, settings.CONSTANT_SHARE, gradients.piecewise_constant, _QUANTISED),
        Finding.above(unlike, change, settings.UNEXPLAINED, _CHANGE, note),
        Finding.above(odd, gradients.nonfinite, settings.NONFINITE_SHARE, _NONFINITE),
        Finding.above(apart, saturated, settings.ZERO_SHARE, _SATURATED),
    ]
    return gradients, findings


def _finite(grad: Tensor) -> Tensor:
    repaired = repair(grad)
    return grad if repaired is None else repaired.grad


def _vanishing(
    model: nn.Module, places: dict[str, Tensor], y: Tensor
) -> tuple[dict[str, float], list[Finding]]:
    """Where gradients are zero, not finite or, for the cross-entropy, under the floor of the cleverhans protocol."""
    shares: dict[tuple[str, str], float] = {}
    findings, odd = [], torch.zeros_like(y, dtype=torch.bool)
    for place, points in places.items():
        for loss in ("margin", "ce"):
            grad = input_gradients(model, points, y, loss)
            odd |= ~grad.flatten(1).isfinite().all(1)
            norms = lengths(_finite(grad))
            looked_for = {f"zero gradients of the {loss}, {place}": (norms == 0, _VANISHING)}
            if loss == "ce":
                floored = norms / CLEVERHANS_BATCH < STEP_FLOOR
                looked_for[f"cross-entropy gradients under the step floor, {place}"] = (floored, _FLOOR)
            for check, (holds, source) in looked_for.items():
                shares[place, loss] = float(holds.double().mean())
                findings.append(Finding.above(check, shares[place, loss], settings.ZERO_SHARE, source))
    zero = max(share for (_, loss), share in shares.items() if loss == "margin")
    found = {"zero": zero, "vanished": shares["the images", "ce"], "nonfinite": float(odd.double().mean())}
    return found, findings


def _in_float64(model: nn.Module, x: Tensor, y: Tensor) -> Finding:
    """Whether rounding made the cross-entropy gradients zero."""
    share, note = None, ""
    with torch.no_grad(), own_errors() as failed:
        norms = lengths(input_gradients(in_double(model), x.double(), y, "ce"))
        share = float((norms == 0).double().mean())
    if failed:
        note = f"the model does not run in float64: {failed[0]}"
    return Finding("zero gradients of the ce, the images, float64", share, source="informs only", note=note)


def _constant(model: nn.Module, x: Tensor, directions: Tensor) -> float:
    """Share of (image, direction) pairs whose logits do not change at all over a tiny step."""
    here, equal = logits_of(model, x), []
    for move in directions.unbind(1):  # with its sign turned where it would leave [0, 1]
        over = x + settings.CONSTANT_RADIUS * move > 1
        inwards = torch.where(over, -move.abs(), torch.where(x <= 0, move.abs(), move))
        moved = (x + settings.CONSTANT_RADIUS * inwards).clamp(0, 1)
        equal.append((logits_of(model, moved) == here).all(1))
    return float(torch.stack(equal).double().mean())


def _fidelity(model: nn.Module, x: Tensor, y: Tensor, directions: Tensor) -> dict[str, float]:
    """How well the gradient describes the margin nearby; empty where nothing changes.

    Over images the median of sum (actual - predicted)^2 / sum actual^2, the 90 % quantile of the correlation of the
    two, the medians of sum (actual - 2 * actual over half the distance)^2 / sum actual^2 and of the cosine of gradients
    nearby.
    """
    grad = _finite(input_gradients(model, x, y, "margin"))
    error, change, both, expected, rough = torch.zeros(5, len(x))
    measure = get_loss("margin")

    def difference(move: Tensor) -> tuple[Tensor, Tensor]:
        after, before = (x + move).clamp(0, 1), (x - move).clamp(0, 1)
        actual = measure(logits_of(model, after), y, None) - measure(logits_of(model, before), y, None)
        return actual.float().cpu(), (grad * (after - before)).flatten(1).sum(1).float().cpu()

    for direction in directions.unbind(1):
        actual, predicted = difference(settings.FIDELITY_RADIUS * direction)
        half, _ = difference(settings.FIDELITY_RADIUS / 2 * direction)
        error += (actual - predicted).square()
        change += actual.square()
        both += actual * predicted
        expected += predicted.square()
        rough += (actual - 2 * half).square()
    moving = (change > 0) & (error / change).isfinite()
    if not moving.any():
        return {}
    correlation = both / (change * expected).sqrt().clamp_min(1e-30)
    near = (x + settings.FIDELITY_RADIUS * directions[:, 0]).clamp(0, 1)
    steady = cosines(_finite(input_gradients(model, near, y, "margin")), grad).nan_to_num().float().cpu()
    shares = {"unexplained": error / change, "rough": rough / change, "steady": steady}
    medians = {name: float(values[moving].median()) for name, values in shares.items()}
    return medians | {"correlation": float(correlation[moving].quantile(0.9))}


@dataclass(frozen=True)
class Outputs:
    """What kind of outputs the model gives."""

    random: bool  #: they differ from pass to pass
    batch_dependent: bool  #: an image's output depends on its neighbours
    probabilities: bool  #: rows lie in [0, 1], whether they sum to 1 or not
    normalised: bool = True  #: no row of probabilities fails to sum to 1
    inner_steps: bool = False  #: gradients are taken inside the forward pass


def check_outputs(model: nn.Module, x: Tensor) -> tuple[Outputs, list[Finding]]:
    """Pass ``x`` (N, C, H, W) several times, and in other batches."""
    x = x[spread(len(x), _IMAGES)]
    influence = None  # largest relative change of an image's logits when every second image is missing
    with torch.no_grad():
        passes = torch.stack([model(x).double() for _ in range(settings.RANDOM_PASSES)])
        infinite = 1 - float(passes.isfinite().all(2).double().mean())
        passes = passes.nan_to_num(0.0, _HUGE, -_HUGE)
        units = passes / passes.norm(dim=2, keepdim=True).clamp_min(1e-12)
        largest = float((units - units[:1]).norm(dim=2).sum(1).max())
        random = largest > settings.RANDOM_DIFFERENCE
        if not random and len(x) >= 4:
            apart, together = model(x[::2]).double().nan_to_num(0.0, _HUGE, -_HUGE), passes[0, ::2]
            influence = float(((apart - together).norm(dim=1) / together.norm(dim=1).clamp_min(1e-12)).max())
    off, tolerance = float((passes.sum(2) - 1).abs().max()), settings.PROBABILITY_TOLERANCE
    within = (passes >= 0) & (passes <= 1 + tolerance)
    probabilities = bool(within.all() and (passes > 0).any(2).all())
    normalised = not probabilities or off < tolerance
    batch_dependent = influence is not None and influence > settings.BATCH_DIFFERENCE
    note = "not measurable on random outputs" if random else ""
    batch = "outputs depend on the other images of the batch"
    sums = "outputs lie in [0, 1]: how far from summing to 1"
    findings = [
        Finding.above("outputs differ from pass to pass", largest, settings.RANDOM_DIFFERENCE, _PASSES),
        Finding.above(batch, influence, settings.BATCH_DIFFERENCE, _NEIGHBOURS, note),
        Finding(sums, off, tolerance, probabilities, _SIGMOIDS),
        Finding.above("answers that are not finite", infinite, 0.0, _NO_ANSWER),
    ]
    return Outputs(random, batch_dependent, probabilities, normalised), findings
