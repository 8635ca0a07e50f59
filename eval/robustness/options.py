"""The command line ``python -m eval.robustness``: its options."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import tyro

from agents.common.command_line import run_cli
from envs.errors import InputError, unknown_name
from eval.core.options import DataOptions, ModelOptions
from eval.core.threats import Threat, chosen_threats

DEFAULT_BATTERY = ("fgsm", "pgd", "pgd-cleverhans", "pgd-margin", "pgd-mifpe")
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
        from attacks.core.losses import LOSSES

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


@dataclass(frozen=True)
class RobustnessCommand:
    """Run a battery of attacks on one or several models and take the worst case per image."""

    FIRST: ClassVar = "attacks norm eps data.dataset data.n pgd.iterations seed device out force"

    targets: tyro.conf.Positional[tuple[str, ...]]
    """Run directories, Stable-Baselines3 .zip files, or package.module:factory."""
    attacks: tuple[str, ...] = DEFAULT_BATTERY
    """Attacks by name; also pgd-cleverhans, pgd-margin, pgd-dlr, pgd-mifpe, pgd-paper, pgd-paper-250."""
    norm: str | None = None
    """Only this norm: Linf, L2 or L1. Default: Linf and L2."""
    eps: str | None = None
    """Radius for --norm, a number or a fraction such as 8/255. Default: by the kind of image."""
    data: tyro.conf.OmitArgPrefixes[DataOptions] = field(default_factory=DataOptions)
    pgd: tyro.conf.OmitArgPrefixes[PgdOptions] = field(default_factory=PgdOptions)
    curve: bool = False
    """Also draw accuracy against eps under pgd-margin, at 1/8 to 2 times each radius."""
    seed: int = 0
    """Seed of the attacks' random draws."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    model: tyro.conf.OmitArgPrefixes[ModelOptions] = field(default_factory=ModelOptions)
    batch_size: int | None = None
    """Most images at once. Default: chosen by image size and device."""
    out: Path | None = None
    """Where robustness.json and the pictures go. Default: the first model's results directory."""
    force: bool = False
    """Attack again even where results are stored."""
    progress: bool = True
    """Show progress bars."""

    def threats(self, channels: int) -> tuple[Threat, ...]:
        """Return the threat models for images of this kind; errors as `eval.core.threats.chosen_threat`."""
        return chosen_threats(self.norm, self.eps, channels)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    return run_cli(
        "eval.robustness.command:robustness_command", RobustnessCommand, "python -m eval.robustness", argv
    )
