"""Comparison of an export with its model: logits on the same real images, at several batch sizes."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.core.errors import is_machine_error
from envs.errors import InputError

# Float32 sums in another order differ in the last bits; a wrong layer, image range or order of channels does not hide
# under a ten-thousandth of the largest logit.
TOLERANCE = 1e-4
BATCHES = (1, 7)


@dataclass(frozen=True)
class Agreement:
    """How far an export is from its model.

    Attributes:
        images: compared.
        batch_sizes: that it was run with.
        difference: largest absolute difference of a logit.
        tolerance: largest difference that passes: `TOLERANCE` times the largest absolute logit, at least 1.
        changed: images whose decision differs.
    """

    images: int
    batch_sizes: tuple[int, ...]
    difference: float
    tolerance: float
    changed: int


@torch.inference_mode()
def compare(
    model: Callable[[Tensor], Tensor], export: Callable[[Tensor], Tensor], images: Tensor, origin: str
) -> Agreement:
    """Compare on all ``images``, floats in [0, 1], (n, C, H, W): one by one at first, then in larger batches.

    Raises:
        InputError: the export, which came from ``origin``, gives other shapes or logits, or fails.
    """
    tolerance, difference, changed = TOLERANCE, 0.0, 0
    sizes = tuple(dict.fromkeys(min(size, len(images)) for size in (*BATCHES, len(images))))
    for size in sizes:
        expected = model(images[:size])  # the batch size moves the last bits of the model itself
        unanswered = expected.isnan()  # an export answers NaN where its model does
        tolerance = max(tolerance, TOLERANCE * float(expected.masked_fill(unanswered, 0).abs().max()))
        try:
            found = export(images[:size])
        except Exception as error:  # whatever a foreign runtime raises
            if is_machine_error(error):
                raise
            raise InputError(
                f"{origin} does not run on {size} images ({error}); nothing was written"
            ) from error
        if found.shape != expected.shape:
            raise InputError(
                f"{origin} gives logits {tuple(found.shape)} for {size} images, the model "
                f"{tuple(expected.shape)}; nothing was written"
            )
        gap = (found - expected).masked_fill(unanswered & found.isnan(), 0).abs().max()
        difference = max(difference, float(gap)) if gap.isfinite() else float("inf")
        changed = int((found.argmax(1) != expected.argmax(1)).sum())
    if not difference <= tolerance:
        raise InputError(
            f"the logits of {origin} differ by {difference:.2g} from the model's, more than {tolerance:.2g}; nothing "
            "was written"
        )
    return Agreement(len(images), sizes, difference, tolerance, changed)
