"""PGD by name of protocol and loss, for what one option of `eval.robustness` asks in place of the battery."""

from collections.abc import Iterator
from typing import Any

from agents.common.protocols import CLEVERHANS_BATCH
from attacks.core.batching import default_batch_size
from eval.core.targets import Samples, Target
from eval.core.threats import Threat
from eval.robustness.suite import PRESETS, scaled


def chunks(target: Target, samples: Samples, batch_size: int | None) -> Iterator[slice]:
    """Yield the rows to attack at once; no outcome depends on the division."""
    size = batch_size or max(128, default_batch_size(samples.batch(slice(0, 1), target.device)[0]))
    for start in range(0, len(samples), size):
        yield slice(start, min(start + size, len(samples)))


def pgd_options(protocol: str, loss: str, threat: Threat, steps: int | None = None) -> dict[str, Any]:
    """Return the options of `attacks.pgd` for a protocol; ``steps`` replaces their number and leaves their length."""
    options = scaled(protocol, PRESETS[protocol][1], threat)
    whole: dict[str, Any] = {"step_size": threat.eps / 8, "steps": 100, "keep": "best", "box": True} | options
    whole |= {"loss": loss, "averaged_over": CLEVERHANS_BATCH}
    return whole if steps is None else whole | {"steps": steps}
