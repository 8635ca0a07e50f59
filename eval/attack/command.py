"""The command line ``python -m attacks``: one attack on one classifier, kept per image, resumable."""

import sys
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, ClassVar

import tyro

from agents.common.command_line import run_cli
from agents.common.protocols import default_eps
from agents.common.run_dir import resolve_device
from attacks.autoattack.versions import STAGES, VERSIONS
from envs.errors import unknown_name
from eval.attack.labels import ATTACK_HEADINGS, attack_cells, attack_label, blame_line
from eval.attack.registry import attack_function, parse_option, parse_value, resolve_options
from eval.attack.results import AttackResults
from eval.attack.runner import (
    AttackSpec,
    check_batch_size,
    images_path,
    result_path,
    run_attack,
    stored_results,
)
from eval.core.formatting import make_table, percent, print_table
from eval.core.options import DataOptions, progress_bar, warn_about
from eval.core.targets import check_fit, load_target
from eval.core.threats import Threat, parse_eps, parse_norm


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

    def given(self, more: tuple[str, ...]) -> dict[str, Any]:
        """Return the options that were given, those of ``more`` ("key=value") included, as Python values."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        read = {"step_size": parse_value, "random_start": parse_value, "version": parse_version}
        parsed = {
            key: read[key](value) if key in read else value
            for key, value in values.items()
            if value is not None
        }
        return parsed | dict(parse_option(text) for text in more)


def parse_version(text: str) -> str | list[str]:
    """Read a version of AutoAttack, or the stages of one's own, joined by commas.

    Raises:
        InputError: it is neither; the message lists both.
    """
    if text in VERSIONS:
        return text
    stages = text.split(",")
    for stage in stages:
        if stage not in STAGES:
            raise unknown_name("version or stage of AutoAttack", stage, (*VERSIONS, *STAGES))
    return stages


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
    batch_size: int | None = None
    """Most images at once. Default: chosen by image size and device; halved when memory runs out."""
    network: str | None = None
    """package.module:Callable that builds your own network, where weights alone are not enough."""
    trust: bool = False
    """Execute the code in a .zip that cannot be read without, such as one with a features extractor of its own."""
    save_images: bool = False
    """Also keep the adversarial images, as safetensors beside the result."""
    results_dir: Path | None = None
    """Where the result goes. Default: results/ in the run directory."""
    force: bool = False
    """Attack again even if this attack has been done."""
    progress: bool = True
    """Show a progress bar."""


def attack_command(config: AttackCommand) -> int:
    """Attack a classifier and keep the outcome of every image in a result file."""
    check_batch_size(config.batch_size)
    options = config.how.given(config.set)
    name = attack_function(config.attack).__name__
    resolve_options(name, options)
    norm = parse_norm(config.norm)
    eps = None if config.eps is None else parse_eps(config.eps, norm)
    device = resolve_device(config.device)
    target = load_target(config.target, device, config.network, config.trust)
    samples = config.data.load(target)
    eps = default_eps(norm, samples.channels) if eps is None else eps
    sources = tuple(load_target(source, device, config.network, config.trust) for source in config.source)
    for source in sources:
        check_fit(source, samples)
    spec = AttackSpec(name, Threat(norm, eps), options, config.seed, sources)
    folder = config.results_dir or target.results_dir
    path = result_path(target, samples, spec, folder)
    results = None if config.force else stored_results(path, config.save_images)
    if results is not None:
        print(f"already done: {path} (--force attacks again)")
    else:
        warn_about(target, samples, [spec.threat], spec.record().get("loss", "ce"))
        folder.mkdir(parents=True, exist_ok=True)
        with progress_bar(name, len(samples), config.progress) as report:
            results = run_attack(
                target,
                samples,
                spec,
                results_dir=folder,
                batch_size=config.batch_size,
                save_images=config.save_images,
                report=report,
            )
    print_results(results, path)
    return 0


def print_results(results: AttackResults, path: Path) -> None:
    """Print the table row of one attack, its file, and what a reader must know before trusting it."""
    title = f"{results.model['name']} on {results.data['dataset']} ({results.data['split']}, n = {results.n})"
    table = make_table(title, ("attack", "threat", "protocol"), ("clean", *ATTACK_HEADINGS))
    protocol, *cells = attack_cells(results)
    table.add_row(
        attack_label(results), str(results.threat), protocol, percent(results.clean_accuracy), *cells
    )
    print_table(table)
    if blame := blame_line(results):
        print(blame)
    for line in results.warnings:
        print(f"warning: {line}", file=sys.stderr)
    print(f"results: {path}")
    if images_path(path).is_file():
        print(f"images:  {images_path(path)}")


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    return run_cli(attack_command, AttackCommand, "python -m attacks", argv)
