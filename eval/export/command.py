"""The command line ``python -m eval.export``: a classifier for other programs, compared with the original."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch

from agents.common.run_dir import RunDir, versions
from agents.models.classifier import Classifier
from envs.errors import InputError
from envs.files import read_json, write_atomic, write_json
from eval.core.formatting import count, make_table, print_table
from eval.core.targets import Samples, Target, load_target
from eval.export.card import CARD, check_license, find_evaluation, model_card, model_info
from eval.export.formats import FILES, FORMATS, Agreement, Format, compare
from eval.export.layers import describe_layers
from eval.export.options import ExportCommand
from eval.export.options import main as main

FORMAT = "labelbandit-export-1"
_DESCRIPTION = "model.json"


def export_command(config: ExportCommand) -> int:
    """Write a classifier as safetensors, torch.export program or ONNX, and check that each is the same model."""
    formats = list(FORMATS.values()) if config.format == "all" else [FORMATS[config.format]]
    for kind in formats:
        kind.check_packages()
    check_license(config.license)
    _check_out(config.out, config.force)
    target = load_target(config.target, "cpu", config.network)
    samples = config.data.load(target)
    found = export(target, samples, config.out, formats, config.license)
    headings = ("bytes", "largest difference", "tolerance")
    table = make_table(f"{target.name} in {config.out}", ("format", "file"), headings)
    for kind in formats:
        size, agreement = (config.out / kind.file).stat().st_size, found[kind.name]
        gaps = (f"{number:.2g}" for number in (agreement.difference, agreement.tolerance))
        table.add_row(kind.name, kind.file, count(size), *gaps)
    print_table(table)
    first = next(iter(found.values()))
    sizes = ", ".join(map(str, first.batch_sizes))
    changed = sum(agreement.changed for agreement in found.values())
    print(
        f"logits compared on {first.images} {samples.split} images of {samples.name}, in batches of {sizes}; "
        f"decisions changed: {changed}"
    )
    return 0


def export(
    target: Target, samples: Samples, out: Path, formats: Sequence[Format], license: str | None = None
) -> dict[str, Agreement]:
    """Write the model in every format, ``model.json`` and the model card; ``out`` appears whole or not at all.

    Where attacks on the model have left results, there is a ``model_info-*.json`` per threat model for RobustBench.

    Args:
        target: the classifier, on the CPU.
        samples: images to compare on.
        out: the directory; one that is there is replaced.
        formats: among `eval.export.formats.FORMATS`.
        license: identifier for the card; None leaves it out.

    Returns how far each export is from the model, by the format's name. Raises InputError where the model does not fit
    a format, or an export is not the same model, and OSError where the directory cannot be written.
    """
    images, labels = samples.batch(slice(None), target.device)
    example = images[:2] if len(images) > 1 else images.repeat(2, 1, 1, 1)
    found: dict[str, Agreement] = {}
    with _whole_directory(out) as folder:
        for kind in formats:
            path = folder / kind.file
            kind.write(target.model, example, path)
            found[kind.name] = compare(target.model, kind.load(path), images, f"{kind.name} ({kind.file})")
        with torch.inference_mode():
            accuracy = float((target.model(images).argmax(1) == labels).double().mean())
        about = _describe(target, samples) | {
            "check": samples.record() | {"images": len(samples), "accuracy": accuracy},
            "exports": {kind.name: _entry(folder / kind.file, found[kind.name]) for kind in formats},
            "versions": versions(),
        }
        write_json(folder / _DESCRIPTION, about)
        evaluation, config = find_evaluation(target, samples), _settings(target)
        card = model_card(target, samples, evaluation, about=about, config=config, license=license)
        write_atomic(folder / CARD, card)
        for threat in evaluation.threats:
            info = model_info(target, samples, evaluation, threat, config)
            write_json(folder / f"model_info-{threat.slug}.json", info)
    return found


def _settings(target: Target) -> dict[str, Any]:
    """Return what the run says of its training; empty where the model comes from elsewhere."""
    run = RunDir(target.results_dir.parent)
    if target.dataset is None or not run.config_path.is_file():
        return {}
    return run.config.get("config", {}) | {key: run.config.get(key) for key in ("algo", "network")}


def _describe(target: Target, samples: Samples) -> dict[str, Any]:
    shape = list(samples.images.shape[1:])
    about: dict[str, Any] = {
        "format": FORMAT,
        "name": target.name,
        "sha256": target.sha256,
        "input": {"name": "images", "shape": ["N", *shape], "dtype": "float32", "range": [0, 1]},
        "output": {"name": "logits", "shape": ["N", len(samples.classes)], "classes": list(samples.classes)},
    }
    if isinstance(target.model, Classifier):
        about["network"] = target.model.network
        about["normalisation"] = {"mean": "body.mean", "std": "body.std"}
        about["layers"] = describe_layers(target.model)
    return about


def _entry(path: Path, agreement: Agreement) -> dict[str, Any]:
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    return {"file": path.name, "bytes": len(content), "sha256": digest, **asdict(agreement)}


def _check_out(out: Path, force: bool) -> None:
    """Raise an InputError unless ``out`` is new or empty, or an export that may be replaced."""
    if not out.absolute().parent.is_dir():
        raise InputError(f"cannot write {out}: {out.absolute().parent} is no directory; make it first")
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise InputError(f"{out} is no directory; choose another OUT")
    names = {entry.name for entry in out.iterdir()} if out.is_dir() else set()
    if not names:
        return
    own = {*FILES, CARD, *(name for name in names if fnmatch(name, "model_info-*.json"))}
    known = names <= own and _DESCRIPTION in names
    if not known or read_json(out / _DESCRIPTION).get("format") != FORMAT:
        raise InputError(f"{out} is not empty and no export of labelbandit; choose another OUT")
    if not force:
        raise InputError(f"{out} holds an export; choose another OUT or replace it with --force")


@contextmanager
def _whole_directory(out: Path) -> Iterator[Path]:
    """Yield a hidden directory that takes the place of ``out`` at the end, and vanishes where anything fails."""
    hidden = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".tmp", dir=out.absolute().parent))
    new, old = hidden / "new", hidden / "old"
    try:
        new.mkdir()
        yield new
        if out.exists():
            os.rename(out, old)
        try:
            os.rename(new, out)
        except OSError:
            if old.exists():
                os.rename(old, out)
            raise
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
