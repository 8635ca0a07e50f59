"""The command line ``python -m eval.audit``: its options."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import tyro

from eval.core.options import DataOptions, ModelOptions
from eval.core.threats import Threat, chosen_threat, default_threats


@dataclass(frozen=True)
class AuditCommand:
    """Say whether a model's resistance is real: sound, masked (and by what), or inconclusive (and why)."""

    FIRST: ClassVar = "norm eps full surrogate minutes data.dataset data.n seed device out"

    targets: tyro.conf.Positional[tuple[str, ...]]
    """Run directories, Stable-Baselines3 .zip files, or package.module:factory."""
    norm: str | None = None
    """Only this norm: Linf, L2 or L1. Default: Linf and L2."""
    eps: str | None = None
    """Radius for --norm, a number or a fraction such as 8/255. Default: by the kind of image."""
    quick: bool = False
    """The quick battery; this is the default: minutes on a CPU for a small network and 100 images."""
    full: bool = False
    """The full battery, for papers; give it --n 1000."""
    surrogate: tuple[str, ...] = ()
    """Further models whose adversarial images are tried: a supervised twin, another seed, a robust one."""
    minutes: float | None = None
    """Stop attacks and checks after this time, per model and threat model, and name what was left out."""
    data: tyro.conf.OmitArgPrefixes[DataOptions] = field(default_factory=lambda: DataOptions(n=100))
    seed: int = 0
    """Seed of every random draw."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    model: tyro.conf.OmitArgPrefixes[ModelOptions] = field(default_factory=ModelOptions)
    out: Path | None = None
    """Where the JSON goes. Default: each model's results directory."""
    progress: bool = True
    """Say what is being done."""

    def threats(self, channels: int) -> tuple[Threat, ...]:
        """Return the threat models for images of this kind; errors as `eval.core.threats.chosen_threat`."""
        chosen = chosen_threat(self.norm, self.eps, channels)
        if chosen is not None:
            return (chosen,)
        lead = {threat.norm: threat for threat in reversed(default_threats(channels))}
        return tuple(reversed(lead.values()))
