"""The command line ``python -m attacks``: one attack on one classifier, kept per image, resumable."""

import sys
from pathlib import Path
from typing import Any

from agents.common.protocols import default_eps
from agents.common.run_dir import resolve_device
from attacks.autoattack.versions import STAGES, VERSIONS
from envs.errors import unknown_name
from eval.attack import runner
from eval.attack.labels import ATTACK_HEADINGS, attack_cells, attack_label, blame_line
from eval.attack.options import AttackCommand, AttackOptions
from eval.attack.options import main as main
from eval.attack.registry import attack_function, parse_option, parse_value, resolve_options
from eval.attack.results import AttackResults
from eval.core.formatting import make_table, percent, print_table
from eval.core.progress import progress_bar, warn_about
from eval.core.targets import check_fit
from eval.core.threats import Threat, parse_eps, parse_norm


def given_options(how: AttackOptions, more: tuple[str, ...]) -> dict[str, Any]:
    """Return the options that were given, those of ``more`` ("key=value") included, as Python values."""
    values = {key: value for key, value in vars(how).items() if value is not None}
    read = {"step_size": parse_value, "random_start": parse_value, "version": parse_version}
    values |= {key: parse(values[key]) for key, parse in read.items() if key in values}
    return values | dict(parse_option(text) for text in more)


def parse_version(text: str) -> str | list[str]:
    """Read a version of AutoAttack, or one's own stages, joined by commas; an InputError lists both for others."""
    if text in VERSIONS:
        return text
    stages = text.split(",")
    for stage in stages:
        if stage not in STAGES:
            raise unknown_name("version or stage of AutoAttack", stage, (*VERSIONS, *STAGES))
    return stages


def attack_command(config: AttackCommand) -> int:
    """Attack a classifier and keep the outcome of every image in a result file."""
    runner.check_batch_size(config.batch_size)
    options = given_options(config.how, config.set)
    name = attack_function(config.attack).__name__
    resolve_options(name, options)
    norm = parse_norm(config.norm)
    eps = None if config.eps is None else parse_eps(config.eps, norm)
    device = resolve_device(config.device)
    target = config.model.load(config.target, device)
    samples = config.data.load(target)
    eps = default_eps(norm, samples.channels) if eps is None else eps
    sources = tuple(config.model.load(source, device) for source in config.source)
    for source in sources:
        check_fit(source, samples)
    spec = runner.AttackSpec(name, Threat(norm, eps), options, config.seed, sources)
    folder = config.results_dir or target.results_dir
    path = runner.result_path(target, samples, spec, folder)
    results = None if config.force else runner.stored_results(path, config.save_images)
    if results is not None:
        print(f"already done: {path} (--force attacks again)")
    else:
        warn_about(target, samples, [spec.threat], spec.record().get("loss", "ce"))
        folder.mkdir(parents=True, exist_ok=True)
        with progress_bar(name, len(samples), config.progress) as report:
            place: dict[str, Any] = {"results_dir": folder, "batch_size": config.batch_size}
            place |= {"save_images": config.save_images, "report": report}
            results = runner.run_attack(target, samples, spec, **place)
    print_results(results, path)
    return 0


def print_results(results: AttackResults, path: Path) -> None:
    """Print the table row of one attack, its file, and what a reader must know before trusting it."""
    title = f"{results.model['name']} on {results.data['dataset']} ({results.data['split']}, n = {results.n})"
    table = make_table(title, ("attack", "threat", "protocol"), ("clean", *ATTACK_HEADINGS))
    protocol, *cells = attack_cells(results)
    clean = percent(results.clean_accuracy)
    table.add_row(attack_label(results), str(results.threat), protocol, clean, *cells)
    print_table(table)
    if blame := blame_line(results):
        print(blame)
    for line in results.warnings:
        print(f"warning: {line}", file=sys.stderr)
    print(f"results: {path}")
    if runner.images_path(path).is_file():
        print(f"images:  {runner.images_path(path)}")
