"""The command line ``python -m eval.audit``: one verdict per model and threat model."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from agents.common.run_dir import device_name, resolve_device, versions
from attacks.core.errors import is_machine_error
from envs.errors import InputError
from envs.files import write_json
from eval.audit.findings import Verdict
from eval.audit.options import AuditCommand
from eval.audit.report import AuditReport
from eval.audit.run import audit
from eval.core.formatting import print_table, with_interval
from eval.core.progress import is_live
from eval.core.targets import Samples, Target
from eval.core.threats import Threat


def audit_command(config: AuditCommand) -> int:
    """Say whether a model's resistance is real: sound, masked (and by what), or inconclusive (and why)."""
    if not config.targets:
        raise InputError("no model given; name run directories, .zip files or package.module:factory")
    if config.quick and config.full:
        raise InputError("both --quick and --full are given; choose one")
    if config.minutes is not None and not config.minutes > 0:
        raise InputError(
            f"--minutes must be above 0, got {config.minutes}; leave it out for a complete audit"
        )
    config.threats(1)  # wrong norms and radii end here, before anything is loaded
    device = resolve_device(config.device)
    targets = (config.model.load(spec, device) for spec in config.targets)
    loaded = [(target, config.data.load(target)) for target in targets]
    surrogates = [config.model.load(spec, device) for spec in dict.fromkeys(config.surrogate)]
    for target, samples in loaded:
        models = {found.name: _checked(found, target, samples) for found in surrogates}
        for threat in config.threats(samples.channels):
            _audit(config, target, samples, threat, models)
    return 0


def _checked(surrogate: Target, target: Target, samples: Samples) -> nn.Module:
    """The surrogate's model, if it takes the images and knows the classes of the audited one."""
    x, _ = samples.batch(slice(0, 2), target.device)
    try:
        with torch.no_grad():
            same = surrogate.model(x).shape == target.model(x).shape
    except (RuntimeError, ValueError, TypeError) as error:
        if is_machine_error(error):
            raise
        same = False
    if not same:
        raise InputError(
            f"surrogate {surrogate.name} does not take the images of {target.name}, or has other classes; "
            "train one on the same data set"
        )
    return surrogate.model


def _audit(
    config: AuditCommand, target: Target, samples: Samples, threat: Threat, surrogates: dict[str, nn.Module]
) -> None:
    x, y = samples.batch(slice(None), target.device)
    with _status(f"{target.name}, {threat}", config.progress) as say:
        report = audit(
            target.model,
            x,
            y,
            norm=threat.norm,
            eps=threat.eps,
            quick=not config.full,
            surrogates=surrogates,
            seed=config.seed,
            minutes=config.minutes,
            say=say,
        )
    for table in report.tables(target.name):
        print_table(table)
    style = {Verdict.SOUND: "bold green", Verdict.MASKED: "bold red"}.get(report.verdict, "bold yellow")
    console = Console(soft_wrap=True, highlight=False)
    console.print(f"{target.name}, {threat}: {report.headline}", style=style, markup=False)
    if report.verdict is not Verdict.INCONCLUSIVE:
        console.print(report.reason, markup=False)
    accuracy = with_interval(report.robust_accuracy, report.interval)
    limit = "still falling, at most " if report.still_falling else ""
    print(
        f"robust accuracy, worst case of all attacks: {limit}{accuracy}; PGD on the cross-entropy claims "
        f"{100 * report.claimed_accuracy:.1f} %"
    )
    about = {"surrogates": list(config.surrogate), "seed": config.seed}
    path = write_evidence(config.out or target.results_dir, target, samples, report, about)
    print(f"evidence: {path}\n")


def write_evidence(
    folder: Path, target: Target, samples: Samples, report: AuditReport, about: dict[str, Any]
) -> Path:
    """Write an audit as JSON, with what it was ``about``: ``surrogates`` and ``seed``; return the file's path."""
    folder.mkdir(parents=True, exist_ok=True)
    threat, mode = Threat(report.norm, report.eps), "quick" if report.quick else "full"
    path = folder / f"audit-{threat.slug}-{mode}.json"
    content = report.to_json() | {
        "format": 1,
        "model": {"name": target.name, "sha256": target.sha256},
        "data": samples.record() | {"n": len(samples), "indices": samples.indices.tolist()},
        **about,
        "versions": versions(),
        "device": device_name(target.device),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    write_json(path, content)
    return path


@contextmanager
def _status(label: str, shown: bool) -> Iterator[Callable[[str], None]]:
    """Show what is being done on standard error, where that is a terminal; yields what to tell."""
    console = Console(stderr=True)
    if not (shown and is_live(console)):
        yield lambda text: None
        return
    with console.status(label) as status:
        yield lambda text: status.update(f"{label}: {text}")
