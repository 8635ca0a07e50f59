"""The summary of a training run: test accuracy, first attacks and the closing table."""

import shlex
import time
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn
from rich.table import Table

import attacks
from agents.common.protocols import CLEVERHANS_BATCH, default_eps
from agents.common.run_dir import RunDir
from agents.models.classifier import Classifier
from agents.training.validation import evaluate, to_pixels
from envs import ImageDataset
from envs.errors import InputError
from envs.files import read_json
from envs.sampling import choose_indices

ATTACKED_IMAGES = 1000
_FIRST_ATTACKS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("fgsm", "Linf", {}),
    ("pgd", "Linf", {"protocol": "normalized"}),
    ("pgd", "L2", {"protocol": "normalized"}),
    ("pgd", "L2", {"protocol": "cleverhans", "averaged_over": CLEVERHANS_BATCH}),
)


def first_attacks(classifier: Classifier, test: ImageDataset, progress: bool) -> list[dict[str, Any]]:
    """Attack up to 1,000 test images, spread as `eval` spreads them, by FGSM and PGD at the radii usual for their kind.

    Returns:
        One row per attack: name, norm, eps, protocol, accuracy in [0, 1], share of steps shortened by cleverhans'
        floor (None where it does not apply), seconds.
    """
    classifier.eval()
    device = next(classifier.parameters()).device
    test = test.take(choose_indices(len(test), ATTACKED_IMAGES))
    images, labels = to_pixels(test.images.to(device)), test.labels.to(device)
    rows: list[dict[str, Any]] = []
    columns = (SpinnerColumn(), TextColumn("attacking with {task.description}"))
    with Progress(*columns, transient=True, disable=not progress) as bar:
        task = bar.add_task("", total=None)
        for name, norm, options in _FIRST_ATTACKS:
            bar.update(task, description=f"{name} {norm} {options.get('protocol', '')}")
            start, eps = time.perf_counter(), default_eps(norm, test.shape[0])
            result = getattr(attacks, name)(classifier, images, labels, norm=norm, eps=eps, **options)
            shortened = result.trace.get("shortened")
            row = {"attack": name, "norm": norm, "eps": eps, "protocol": options.get("protocol")}
            row |= {"steps": 1 if name == "fgsm" else 100, "accuracy": result.robust_accuracy}
            row["shortened"] = None if shortened is None else float(shortened.float().mean())
            rows.append(row | {"images": len(labels), "seconds": time.perf_counter() - start})
    return rows


def summarise(
    classifier: Classifier, test: ImageDataset, attack: bool, progress: bool, record: dict[str, Any]
) -> dict[str, Any]:
    """Return the summary of a finished run: ``record`` with the test accuracy and the attacks' rows added."""
    clean = evaluate(classifier, test)
    clean_record = {"test_accuracy": clean.accuracy, "test_loss": clean.loss, "test_images": len(test)}
    return record | clean_record | {"attacks": first_attacks(classifier, test, progress) if attack else []}


def print_stored_summary(run: RunDir) -> None:
    """Print the table of a run that was finished before.

    Raises:
        InputError: ``summary.json`` is missing or damaged.
    """
    summary = read_json(run.summary_path)
    try:
        print_summary(summary, run)
    except (KeyError, TypeError, ValueError, AttributeError):
        remedy = f"restore it, or evaluate with: python -m eval.robustness {run.path}"
        raise InputError(f"{run.summary_path} is not the summary of a run; {remedy}") from None


def print_summary(summary: dict[str, Any], run: RunDir, console: Console | None = None) -> None:
    """Print the table of a finished run, and what to type next."""
    console = console or Console()
    title = f"{summary['dataset']} - {summary['algo']} - {summary['network']}, seed {summary['seed']}"
    table = Table(title=escape(title))
    for heading in ("evaluation", "threat", "protocol"):
        table.add_column(heading)
    for heading in ("accuracy", "steps shortened", "images"):
        table.add_column(heading, justify="right")
    table.add_row("clean test", "-", "-", f"{summary['test_accuracy']:.2%}", "-", str(summary["test_images"]))
    for row in summary["attacks"]:
        name = row["attack"].upper() + (f"-{row['steps']}" if row["steps"] > 1 else "")
        shortened = "-" if row["shortened"] is None or row["norm"] != "L2" else f"{row['shortened']:.0%}"
        threat, protocol = f"{row['norm']} {row['eps']:.4g}", row["protocol"] or "-"
        table.add_row(name, threat, protocol, f"{row['accuracy']:.2%}", shortened, str(row["images"]))
    console.print(table)
    validated = f"validation {summary['val_accuracy']:.2%} at {summary['selected_at']:,} images"
    if (robust := summary.get("val_robust_accuracy")) is not None:
        validated += f", {robust:.2%} under attack (selected by {summary['selected_by']})"
    console.print(
        f"trained on {summary['images']:,} images in {summary['seconds']:.1f} s "
        f"({summary['images'] / max(summary['seconds'], 1e-9):,.0f} images/s); selected by {validated}"
    )
    console.print(f"run directory: {run.path}\n\nnext:", highlight=False, markup=False, soft_wrap=True)
    path = shlex.quote(str(run.path))
    for command in (
        f"python -m eval.robustness {path}",
        f"python -m attacks {path} --attack pgd --norm L2 --eps 1.0 --steps 100",
        f"tensorboard --logdir {shlex.quote(str(run.path.parent))}",
    ):
        console.print(f"  {command}", highlight=False, markup=False, soft_wrap=True)
