"""Checks of the model before attacks: are its outputs logits, and do its gradients describe it?"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from agents.common.protocols import CLEVERHANS_BATCH
from attacks.core.batching import default_batch_size
from attacks.core.losses import get_loss
from attacks.core.model import frozen
from attacks.core.norms import get_norm
from attacks.core.repair import repair
from attacks.core.rng import draws_for
from attacks.gradient.pgd import STEP_FLOOR
from envs.sampling import spread
from eval.audit import settings
from eval.audit.callables import first_line, models_own
from eval.audit.findings import Finding
from eval.audit.record import logits_of
from eval.mechanism.gradients import cosines, in_double, lengths

_NONFINITE = "ours: a root or logarithm at black pixels, or a broken backward pass"
_SATURATED = "IEEE 754: 1 - p rounds to 1 beyond a gap of log(2^24)"


@dataclass(frozen=True)
class GradientChecks:
    """What the model's gradients are like.

    Attributes:
        zero: share of the images where the gradient of the margin is exactly zero or missing.
        constant: share of pairs of close points with equal logits.
        unexplained: share of the margin's changes that the gradient does not explain, median over images.
        vanished: share of correctly classified images whose cross-entropy gradient is zero or under the floor
            of the cleverhans protocol.
        saturated: share of the images whose logits differ by more than float32 can tell from a sure thing.
        nonfinite: share of the images whose gradient of the margin has infinite or NaN entries.
        correlation: of the margin's changes with what the gradient says: what nine of ten images do not exceed, for
            shattered gradients have either sign by chance; -1 is a gradient turned round.
        rough: how far changes over one distance and over half of it disagree, as a share; about 0 is smooth.
        steady: cosine between gradients half a grey level apart, median over images; ripples turn them.
    """

    zero: float
    constant: float
    unexplained: float
    vanished: float
    saturated: float
    nonfinite: float = 0.0
    correlation: float = 1.0
    rough: float = 0.0
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
            losses = get_loss(loss)(_upcast(model(leaf)), labels, None)
            grad = None
            if losses.requires_grad:
                (grad,) = torch.autograd.grad(losses.sum(), leaf, allow_unused=True)
            grads.append(torch.zeros_like(images) if grad is None else grad)
    return torch.cat(grads)


def _upcast(logits: Tensor) -> Tensor:
    return logits.float() if logits.element_size() < 4 else logits


def check_gradients(
    raw: nn.Module, model: nn.Module, x: Tensor, y: Tensor, norm: str, eps: float, seed: int
) -> tuple[GradientChecks, list[Finding]]:
    """Measure gradients at the images and at random points of the ball around them.

    Args:
        raw: the audited model, whose float64 copy is asked too.
        model: the view of it that attacks use, with logits for outputs.
        x: images (N, C, H, W).
        y: labels (N,).
        norm: of the ball.
        eps: its radius.
        seed: of the random points.
    """
    stream = draws_for(seed, torch.arange(len(x), device=x.device))
    radius = x.new_full((len(x),), eps)
    start = (x + get_norm(norm).random(stream.fork(0), x.shape[1:], radius)).clamp(0, 1)
    findings: list[Finding] = []
    shares, odd = {}, torch.zeros_like(y, dtype=torch.bool)
    for place, points in (("the images", x), ("random points", start)):
        for loss in ("margin", "ce"):
            grad = input_gradients(model, points, y, loss)
            odd |= ~grad.flatten(1).isfinite().all(1)
            shares[place, loss] = _vanishing(lengths(_finite(grad)), loss, place, findings)
    findings.append(_in_float64(raw, x, y))
    nonfinite = float(odd.double().mean())
    zero = max(shares["the images", "margin"], shares["random points", "margin"])
    constant = _constant(model, x, stream.fork(1).normal((8, *x.shape[1:])))
    fidelity = _fidelity(model, x, y, stream.fork(2).normal((8, *x.shape[1:])))
    unexplained = None if fidelity is None else fidelity[0]
    top = logits_of(model, x).topk(2, dim=1).values
    saturated = float((top[:, 0] - top[:, 1] > settings.SATURATED_GAP).double().mean())
    words = "correlation of nine in ten images up to {1:.2f}; halving the distance changes {2:.0%}"
    note = "" if fidelity is None else words.format(*fidelity)
    findings += [
        Finding(
            "equal logits at points 1e-5 per pixel apart",
            constant,
            settings.CONSTANT_SHARE,
            constant > settings.CONSTANT_SHARE and zero > settings.ZERO_SHARE,
            "ours: a quantised stage makes the output piecewise constant",
        ),
        Finding.above(
            "change of the margin that the gradient does not explain",
            unexplained,
            settings.UNEXPLAINED,
            "ours: gradient against central differences over half a grey level",
            note,
        ),
        Finding.above(
            "gradients with infinite or NaN entries", nonfinite, settings.NONFINITE_SHARE, _NONFINITE
        ),
        Finding.above(
            "logits too far apart for float32's cross-entropy", saturated, settings.ZERO_SHARE, _SATURATED
        ),
    ]
    vanished, more = shares["the images", "ce"], (fidelity or ())[1:]
    return GradientChecks(zero, constant, unexplained or 0.0, vanished, saturated, nonfinite, *more), findings


def _finite(grad: Tensor) -> Tensor:
    repaired = repair(grad)
    return grad if repaired is None else repaired.grad


def _vanishing(norms: Tensor, loss: str, place: str, findings: list[Finding]) -> float:
    """The share of gradients that are zero or, for the cross-entropy, under the floor of the cleverhans protocol."""
    zero = float((norms == 0).double().mean())
    source = "Athalye et al. 2018: vanishing gradients; Carlini et al. 2019"
    findings.append(
        Finding.above(f"zero gradients of the {loss}, {place}", zero, settings.ZERO_SHARE, source)
    )
    if loss != "ce":
        return zero
    floored = float((norms / CLEVERHANS_BATCH < STEP_FLOOR).double().mean())
    source = f"cleverhans' L2 step: |grad| / batch under 1e-6, batch of {CLEVERHANS_BATCH}"
    check = f"cross-entropy gradients under the step floor, {place}"
    findings.append(Finding.above(check, floored, settings.ZERO_SHARE, source))
    return floored


def _in_float64(model: nn.Module, x: Tensor, y: Tensor) -> Finding:
    """Whether rounding made the cross-entropy gradients zero."""
    share, note = None, ""
    try:
        with torch.no_grad():
            double = in_double(model)
        norms = lengths(input_gradients(double, x.double(), y, "ce"))
        share = float((norms == 0).double().mean())
    except Exception as error:
        if not models_own(error):
            raise
        note = f"the model does not run in float64: {first_line(error)}"
    return Finding("zero gradients of the ce, the images, float64", share, source="informs only", note=note)


def _inwards(x: Tensor, move: Tensor) -> Tensor:
    """The move with its sign turned where it would leave [0, 1]."""
    return torch.where(
        x + settings.CONSTANT_RADIUS * move > 1, -move.abs(), torch.where(x <= 0, move.abs(), move)
    )


def _constant(model: nn.Module, x: Tensor, directions: Tensor) -> float:
    """Share of (image, direction) pairs whose logits do not change at all over a tiny step."""
    here = logits_of(model, x)
    moves = (settings.CONSTANT_RADIUS * _inwards(x, move) for move in directions.unbind(1))
    moved = [logits_of(model, (x + move).clamp(0, 1)) for move in moves]
    return float(torch.stack([(logits == here).all(1) for logits in moved]).double().mean())


def _fidelity(model: nn.Module, x: Tensor, y: Tensor, directions: Tensor) -> tuple[float, ...] | None:
    """How well the gradient describes the margin nearby; None where nothing changes.

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
        return None
    correlation = both / (change * expected).sqrt().clamp_min(1e-30)
    near = (x + settings.FIDELITY_RADIUS * directions[:, 0]).clamp(0, 1)
    steady = cosines(_finite(input_gradients(model, near, y, "margin")), grad).nan_to_num().float().cpu()
    medians = [float(share[moving].median()) for share in (error / change, rough / change, steady)]
    return medians[0], float(correlation[moving].quantile(0.9)), *medians[1:]


_IMAGES = 64
_HUGE = 1e9  # what infinite outputs are measured as


@dataclass(frozen=True)
class Outputs:
    """What kind of outputs the model gives.

    Attributes:
        random: they differ from pass to pass.
        batch_dependent: an image's output depends on its neighbours.
        probabilities: rows lie in [0, 1], whether they sum to 1 or not.
        normalised: no row of probabilities fails to sum to 1.
        inner_steps: gradients are taken inside the forward pass.
    """

    random: bool
    batch_dependent: bool
    probabilities: bool
    normalised: bool = True
    inner_steps: bool = False


def check_outputs(model: nn.Module, x: Tensor) -> tuple[Outputs, list[Finding]]:
    """Pass ``x`` (N, C, H, W) several times, and in other batches."""
    x = x[spread(len(x), _IMAGES)]
    with torch.no_grad():
        passes = torch.stack([model(x).double() for _ in range(settings.RANDOM_PASSES)])
        finite = passes.isfinite().all(2)
        passes = passes.nan_to_num(0.0, _HUGE, -_HUGE)
        units = passes / passes.norm(dim=2, keepdim=True).clamp_min(1e-12)
        largest = float((units - units[:1]).norm(dim=2).sum(1).max())
        random = largest > settings.RANDOM_DIFFERENCE
        influence = None if random or len(x) < 4 else _influence(model, x, passes[0])
    off = float((passes.sum(2) - 1).abs().max())
    within = (passes >= 0) & (passes <= 1 + settings.PROBABILITY_TOLERANCE)
    probabilities = bool(within.all() and (passes > 0).any(2).all())
    normalised = not probabilities or off < settings.PROBABILITY_TOLERANCE
    batch_dependent = influence is not None and influence > settings.BATCH_DIFFERENCE
    findings = [
        Finding.above(
            "outputs differ from pass to pass",
            largest,
            settings.RANDOM_DIFFERENCE,
            "AutoAttack's check (Croce and Hein 2020): 5 passes, normalised logits",
        ),
        Finding.above(
            "outputs depend on the other images of the batch",
            influence,
            settings.BATCH_DIFFERENCE,
            "ours: relative change of the logits in another batch",
            "not measurable on random outputs" if random else "",
        ),
        Finding(
            "outputs lie in [0, 1]: how far from summing to 1",
            off,
            settings.PROBABILITY_TOLERANCE,
            probabilities,
            "AutoAttack's check (Croce and Hein 2020); ours: one-against-all sigmoids as well",
        ),
        Finding.above(
            "answers that are not finite",
            1 - float(finite.double().mean()),
            0.0,
            "ours: NaN counts as an error of the model's, infinite outputs leave losses undefined",
        ),
    ]
    return Outputs(random, batch_dependent, probabilities, normalised), findings


def _influence(model: nn.Module, x: Tensor, together: Tensor) -> float:
    """The largest relative change of an image's logits when every second image is missing."""
    apart = model(x[::2]).double().nan_to_num(0.0, _HUGE, -_HUGE)
    reference = together[::2]
    return float(((apart - reference).norm(dim=1) / reference.norm(dim=1).clamp_min(1e-12)).max())
