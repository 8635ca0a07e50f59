"""PGD by name of protocol and loss, for what one option of `eval.robustness` asks in place of the battery."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from agents.common.protocols import CLEVERHANS_BATCH
from attacks.core.batching import default_batch_size
from attacks.core.losses import LOSSES
from envs.errors import InputError, unknown_name
from eval.core.targets import Samples, Target
from eval.core.threats import Threat
from eval.robustness.suite import PRESETS, scaled

PROTOCOLS = ("pgd", "pgd-cleverhans", "pgd-paper", "pgd-paper-250")


@dataclass(frozen=True)
class PgdOptions:
    """Questions about PGD alone, asked in place of the battery."""

    iterations: tuple[int, ...] = ()
    """Accuracy after each of these numbers of iterations, such as 1 10 100 1000, from one pass."""
    target_class: int | None = None
    """PGD towards this class: success rate, and accuracy on images of the class."""
    protocols: tuple[str, ...] = PROTOCOLS[:3]
    """Protocols of these two: pgd, pgd-cleverhans, pgd-paper, pgd-paper-250."""
    losses: tuple[str, ...] = ("ce", "margin", "mifpe")
    """Losses of these two: ce, margin, dlr, mifpe."""

    def check(self) -> None:
        """Raise an InputError for a wrong option."""
        if self.iterations and self.target_class is not None:
            raise InputError("--iterations and --target-class are two questions; ask one at a time")
        if min(self.iterations, default=1) < 1:
            raise InputError(f"--iterations has {min(self.iterations)}; expected numbers of at least 1")
        if self.target_class is not None and self.target_class < 0:
            raise InputError(f"--target-class is {self.target_class}; expected a class, 0 or above")
        for kind, given, known in (("protocol", self.protocols, PROTOCOLS), ("loss", self.losses, LOSSES)):
            if not given:
                raise InputError(f"no {kind} given; name at least one of {', '.join(known)}")
            for name in given:
                if name not in known:
                    raise unknown_name(kind, name, known)

    def cells(self, threats: Sequence[Threat]) -> Iterator[tuple[Threat, str, str]]:
        """Yield threat model, protocol and loss; the cleverhans step rule does not exist at L1."""
        for threat in threats:
            for protocol in dict.fromkeys(self.protocols):
                if threat.norm != "L1" or protocol == "pgd":
                    yield from ((threat, protocol, loss) for loss in dict.fromkeys(self.losses))


def chunks(target: Target, samples: Samples, batch_size: int | None) -> Iterator[slice]:
    """Yield the rows to attack at once; no outcome depends on the division."""
    size = batch_size or max(128, default_batch_size(samples.batch(slice(0, 1), target.device)[0]))
    for start in range(0, len(samples), size):
        yield slice(start, min(start + size, len(samples)))


def pgd_options(protocol: str, loss: str, threat: Threat, steps: int | None = None) -> dict[str, Any]:
    """Return the options of `attacks.pgd` for a protocol; ``steps`` replaces their number and leaves their length."""
    options = scaled(protocol, PRESETS[protocol][1], threat)
    whole: dict[str, Any] = {"step_size": threat.eps / 8, "steps": 100, "keep": "best", "box": True} | options
    return (
        whole
        | {"loss": loss, "averaged_over": CLEVERHANS_BATCH}
        | ({} if steps is None else {"steps": steps})
    )
