"""The command line ``python -m attacks``: its options."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar

import tyro

from agents.common.command_line import run_cli
from eval.core.options import DataOptions, ModelOptions


@dataclass(frozen=True)
class AttackOptions:
    """Options of the attack; one that it does not take is an error. Default: the attack's own."""

    steps: int | None = None
    """Gradient steps."""
    step_size: str | None = None
    """Length of a step, a number or a fraction such as 2/255."""
    loss: str | None = None
    """ce, margin, dlr or mifpe."""
    restarts: int | None = None
    """Independent starts."""
    random_start: str | None = None
    """true, false or odi."""
    protocol: str | None = None
    """normalized (unit-length L2 steps) or cleverhans (averaged loss, floored steps)."""
    averaged_over: int | None = None
    """Batch that cleverhans averages its loss over."""
    labels: str | None = None
    """true, or predicted: move away from the model's own clean predictions."""
    keep: str | None = None
    """best or last iterate."""
    eot_samples: int | None = None
    """Passes over which gradients are averaged, for models with random outputs."""
    version: str | None = None
    """Of AutoAttack: standard, plus, rand or fast, or its stages in order, such as apgd-ce,square."""
    queries: int | None = None
    """Budget of a black-box attack, per image."""
    targeted: str | None = None
    """next, random, second or least-likely: move towards this class."""


@dataclass(frozen=True)
class AttackCommand:
    """Attack a classifier and keep the outcome per image."""

    FIRST: ClassVar = (
        "attack norm eps how.steps how.loss how.restarts how.protocol data.dataset data.n device"
    )

    target: tyro.conf.Positional[str]
    """Run directory, Stable-Baselines3 .zip, or package.module:factory of an nn.Module."""
    attack: str = "pgd"
    """Name of the attack, e.g. fgsm, pgd, apgd, autoattack."""
    norm: str = "Linf"
    """Linf, L2 or L1."""
    eps: str | None = None
    """Radius for pixels in [0, 1], a number or a fraction such as 8/255. Default: by the kind of image."""
    how: Annotated[tyro.conf.OmitArgPrefixes[AttackOptions], tyro.conf.arg(name="attack")] = AttackOptions()
    set: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Any other option of the attack as key=value, e.g. --set queries=1000. May be repeated."""
    source: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Model on which a transfer attack makes its images, as a target. May be repeated."""
    data: tyro.conf.OmitArgPrefixes[DataOptions] = field(default_factory=DataOptions)
    seed: int = 0
    """Seed of the attack's random draws."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    model: tyro.conf.OmitArgPrefixes[ModelOptions] = field(default_factory=ModelOptions)
    batch_size: int | None = None
    """Most images at once. Default: chosen by image size and device; halved when memory runs out."""
    save_images: bool = False
    """Also keep the adversarial images, as safetensors beside the result."""
    results_dir: Path | None = None
    """Where the result goes. Default: results/ in the run directory."""
    force: bool = False
    """Attack again even if this attack has been done."""
    progress: bool = True
    """Show a progress bar."""


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    return run_cli("eval.attack.command:attack_command", AttackCommand, "python -m attacks", argv)
