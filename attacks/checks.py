"""What is odd about a model, found before the attack on a few images rather than after it in the figures."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attacks.core.errors import AttackError, is_machine_error
from attacks.core.inputs import Problem, validate_inputs
from attacks.core.losses import cross_entropy, get_loss, margin, misclassified
from attacks.core.model import CountedModel, Model, check_labels, forward
from attacks.core.model_state import IN_TRAINING, frozen, in_eval_mode, layers_in_training

# As in AutoAttack's own checks: L2 distance of normalised logits, and range and sum of a softmax.
_RANDOM = 1e-4
_SOFTMAX = 1e-5
_SATURATED = 0.05  # share from which a warning is due; our choice


@dataclass(frozen=True)
class ModelReport:
    """Facts about a model, measured on ``images`` samples.

    Attributes:
        images: how many samples were looked at.
        classes: logits per image.
        clean_accuracy: share classified correctly.
        probabilities: every output row is a probability distribution.
        random_outputs: two forward passes on the same images differ.
        nan_logits: share of images with a NaN logit.
        differentiable: the logits carry a gradient to the input.
        zero_gradients: share of images whose margin loss has a gradient of exactly 0 (1 if not differentiable).
        nonfinite_gradients: share of images where that gradient has infinite or NaN entries.
        training: kinds of layers found in training mode, which attacks put into eval mode and back.
        saturated: share of correctly classified images whose cross-entropy is below 1e-6, so that its gradient drowns
            in rounding.
    """

    images: int
    classes: int
    clean_accuracy: float
    probabilities: bool
    random_outputs: bool
    nan_logits: float
    differentiable: bool
    zero_gradients: float
    saturated: float
    nonfinite_gradients: float = 0.0
    training: tuple[str, ...] = ()

    @property
    def warnings(self) -> tuple[str, ...]:
        """What threatens an attack on this model, one line each with the remedy."""
        lines = []
        if self.probabilities:
            lines.append(
                "the model returns probabilities, not logits, which distorts cross-entropy; drop its softmax"
            )
        if self.training:
            lines.append(IN_TRAINING.format(", ".join(self.training)))
        if self.nonfinite_gradients:
            lines.append(
                f"the gradient has infinite or NaN entries on {self.nonfinite_gradients:.0%} of the images (a root or "
                "a logarithm at black pixels?); they count as the largest finite ones or 0; add square"
            )
        if self.random_outputs:
            lines.append(
                "outputs are random, two passes on the same images differ; average gradients over passes "
                "(eot_samples=20, or autoattack's 'rand') and report the expected success"
            )
        if self.nan_logits:
            lines.append(
                f"{self.nan_logits:.0%} of the images give NaN logits, counted as errors of the model"
            )
        if not self.differentiable:
            lines.append("logits carry no gradient to the input; use gradient-free attacks or attacks.bpda")
        elif self.zero_gradients:
            lines.append(
                f"the margin has no gradient at all on {self.zero_gradients:.0%} of the images: gradients are "
                "masked; add gradient-free attacks (square) or attacks.bpda"
            )
        if self.saturated > _SATURATED:
            lines.append(
                f"cross-entropy is saturated on {self.saturated:.0%} of the images, so its gradient drowns in "
                "rounding; use loss='mifpe', 'margin' or 'dlr'"
            )
        if self.classes < 4:
            lines.append(f"{self.classes} classes: the targeted DLR loss needs 4; use cross-entropy")
        return tuple(lines)


def check_model(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    norm: str,
    eps: float | Tensor,
    loss: str = "ce",
    needs_gradient: bool = True,
    images: int = 64,
) -> ModelReport:
    """Examine ``model`` on ``images`` of the samples, evenly spread, and the inputs as a whole.

    Costs three forward passes and a backward pass on those samples.

    Args:
        model, x, y, norm, eps: see `attacks`.
        loss: the attack's loss, whose need of classes is checked.
        needs_gradient: whether a model without gradients is an error or a warning.
        images: how many samples to look at.

    Raises:
        AttackError: what would make every figure meaningless: wrong types, shapes, ranges or devices, labels that the
            model does not know, outputs that are no logits or all NaN, too few classes for the loss, a missing
            gradient where one is needed.
    """
    problem = validate_inputs(x, y, norm=norm, eps=eps)
    training = layers_in_training(model)
    weight = next(model.parameters(), None) if isinstance(model, nn.Module) else None
    if weight is not None and weight.device != x.device:
        raise AttackError(
            f"the model is on {weight.device}, the images on {x.device}; move them to one device"
        )
    with frozen(model), in_eval_mode(model):
        return _report(model, problem, loss, needs_gradient, images, training)


def _report(
    model: Model, problem: Problem, loss: str, needs_gradient: bool, images: int, training: tuple[str, ...]
) -> ModelReport:
    count = min(images, len(problem))
    few = problem[torch.arange(count) * len(problem) // count]  # data may be sorted by class
    first = _first_forward(model, few)
    check_labels(problem, first.shape[1])
    nan = first.isnan().any(1)
    if nan.all():
        raise AttackError("all logits are NaN; check the weights and the normalisation inside the model")
    get_loss(loss)(first, few.y, None)
    differentiable, zero, odd = _gradients(model, few, needs_gradient)
    right = ~misclassified(first, few.y)
    saturated = (cross_entropy(first, few.y) < 1e-6) & right
    again = forward(model, few.x)
    one, other = (nn.functional.normalize(logits.nan_to_num(), eps=1e-10) for logits in (first, again))
    within = (first > -_SOFTMAX).all() & (first < 1 + _SOFTMAX).all()
    sums_to_one = ((first.sum(1) - 1).abs() < _SOFTMAX * first.shape[1]).all()
    return ModelReport(
        images=len(few),
        classes=first.shape[1],
        clean_accuracy=_share(right),
        probabilities=bool(within & sums_to_one),
        random_outputs=bool(((one - other).norm(dim=1) > _RANDOM).any()),
        nan_logits=_share(nan),
        differentiable=differentiable,
        zero_gradients=_share(zero),
        saturated=float(saturated.sum() / right.sum().clamp_min(1)),
        nonfinite_gradients=_share(odd),
        training=training,
    )


def _first_forward(model: Model, problem: Problem) -> Tensor:
    try:
        return forward(model, problem.x)
    except AttackError:
        raise
    except (RuntimeError, ValueError) as error:
        if is_machine_error(error):
            raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise AttackError(
            f"the model fails on {problem.x.dtype} images of shape {tuple(problem.x.shape)}: {reason}; give "
            "images of the size and type it was built for"
        ) from error


def _gradients(model: Model, problem: Problem, needed: bool) -> tuple[bool, Tensor, Tensor]:
    """Whether there is a gradient, and where (n,) that of the margin is exactly 0, or not finite."""
    try:
        counted = CountedModel(model, problem)
        grad = counted.gradient(problem.x, lambda logits: margin(logits, problem.y)).grad
    except AttackError:
        if needed:
            raise
        missing = torch.ones_like(problem.y, dtype=torch.bool)
        return False, missing, ~missing
    odd = counted.trace()["nonfinite_gradient"] > 0
    return True, (grad == 0).flatten(1).all(1) & ~odd, odd


def _share(flags: Tensor) -> float:
    return float(flags.double().mean())
