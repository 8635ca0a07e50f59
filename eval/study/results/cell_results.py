"""What the finished cells of a study left on disk: the results that tables and plots are made of."""

import contextlib
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from envs.errors import InputError
from eval.attack.results import AttackResults, read_results, worst_case
from eval.audit.findings import AuditFile
from eval.core.records import read_record
from eval.core.stats import known_mean
from eval.core.threats import Threat
from eval.study.plan.cells import Cell, CellFolder
from eval.study.plan.config import Grid
from eval.study.results.record import CellRecord, Status
from eval.study.run.jobs import Study
from eval.study.run.stages import steps_of
from eval.trajectory.record import Trajectory, read_trajectories


class _Spread(msgspec.Struct, frozen=True):
    median: float | list[float | None] | None = None
    mean: float | list[float | None] | None = None


class _Entropy(msgspec.Struct, frozen=True):
    all: _Spread = _Spread()


class Mechanism(msgspec.Struct, frozen=True):
    """Indicators of one model as ``python -m eval.mechanism`` writes them: at the images, along PGD, entropies."""

    static: dict[str, float | _Spread | None] = {}
    dynamic: dict[str, float | list[float | None] | _Spread | None] = {}
    entropy: dict[str, _Entropy] = {}

    def value(self, part: str, name: str) -> float | None:
        """Return one indicator: the median over images, the mean over the steps of PGD; None where it is unknown."""
        found = getattr(self, part).get(name)
        if isinstance(found, _Entropy):
            number = found.all.mean
        else:
            number = found.median if isinstance(found, _Spread) else found
        return known_mean(number) if isinstance(number, list) else number


class _MechanismFile(msgspec.Struct):
    models: list[Mechanism]


class _TransferFile(msgspec.Struct):
    correct: dict[str, dict[str, list[bool]]]


class Validation(NamedTuple):
    """Images trained on, seconds of training until then, and the accuracy on the validation split."""

    images: int
    seconds: float
    accuracy: float


class _Line(msgspec.Struct):
    step: int
    rate: float | None = msgspec.field(default=None, name="time/images_per_second")
    accuracy: float | None = msgspec.field(default=None, name="val/accuracy")


def read_curve(path: Path) -> tuple[Validation, ...]:
    """Return every validation of the run that wrote ``metrics.jsonl`` at ``path``; () where the file is missing.

    Raises InputError where a line cannot be read.
    """
    if not path.is_file():
        return ()
    try:
        lines = [msgspec.json.decode(line, type=_Line) for line in path.read_bytes().splitlines()]
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is damaged ({error}); train the run again") from None
    found, seconds, before = [], 0.0, 0
    for line in lines:
        if line.rate:
            seconds += (line.step - before) / line.rate
            before = line.step
        if line.accuracy is not None:
            found.append(Validation(line.step, seconds, line.accuracy))
    return tuple(found)


@dataclass(frozen=True)
class CellResult:
    """What is known of one finished cell.

    Attributes:
        train: ``images``, ``seconds``, ``device``, ``test_accuracy`` and more; ``shape`` and ``classes`` of the images
            where the run is still there.
        attacks: per threat model, the outcome of every attack by its name.
        transfer: by source hash and ``CRAFT-THREAT``: (n,) bool, still classified correctly.
        mechanism, trajectory: the indicators, and what `eval.trajectory` found at the snapshots, or None.
        audits: by threat model.
        seconds: by step.
        curve: the validations of the training.
    """

    cell: Cell
    train: dict[str, Any]
    attacks: dict[Threat, dict[str, AttackResults]]
    transfer: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    mechanism: Mechanism | None = None
    trajectory: Trajectory | None = None
    audits: dict[Threat, AuditFile] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    curve: tuple[Validation, ...] = ()

    @cached_property
    def worst(self) -> dict[Threat, AttackResults]:
        """Per threat model, the pointwise worst case over all attacks."""
        return {
            threat: worst_case(list(found.values()), list(found))
            for threat, found in self.attacks.items()
            if any(result.in_box for result in found.values())
        }

    @property
    def clean(self) -> np.ndarray:
        """(n,) bool: the attacked images that are classified correctly as they are."""
        return next(iter(next(iter(self.attacks.values())).values())).clean_correct

    def shown(self, source: Cell, craft: str, threat: Threat) -> np.ndarray | None:
        """Return (n,) bool: correct on the images made on ``source``; None where that was not tried."""
        return self.transfer.get(source.hash, {}).get(f"{craft}-{threat.slug}")


def cell_record(study: Study, cell: Cell) -> CellRecord:
    """Return what ``study.json`` says of a cell, its state being that of its folder."""
    folder = CellFolder.open(study.directory, cell.hash)
    status: Status = "missing"
    if folder.error is not None:
        status = "failed"
    elif folder.steps.keys() >= set(steps_of(study.grid, cell)):
        status = "finished"
    names = ("id", "hash", "dataset", "network", "regime", "seed")
    place: dict[str, Any] = {name: getattr(cell, name) for name in names}
    threats = tuple(str(threat) for threat in study.grid.threats)
    return CellRecord(
        **place, threats=threats, status=status, error=folder.error, run=f"cells/{cell.hash}/run"
    )


def read_cells(study: Study) -> list[CellResult]:
    """Return the results of all cells that have been trained and attacked.

    Raises InputError where a file that a cell's record names is missing or damaged.
    """
    folders = [(cell, CellFolder.open(study.directory, cell.hash)) for cell in study.cells]
    done = {"train", "attacks"}
    return [_read_cell(study.grid, cell, folder) for cell, folder in folders if done <= folder.steps.keys()]


def _read_cell(grid: Grid, cell: Cell, folder: CellFolder) -> CellResult:
    attacks: dict[Threat, dict[str, AttackResults]] = {}
    steps, results = folder.steps, folder.run.results_dir
    for item in steps["attacks"]["files"]:
        named = attacks.setdefault(Threat(item["norm"], item["eps"]), {})
        named[item["name"]] = read_results(results / item["file"])
    if not attacks:
        raise InputError(f"{folder.record_path} names no attack; delete it and run the study again")
    found: dict[str, Any] = {}
    if "transfer" in steps:
        correct = read_record(folder.path / "transfer.json", _TransferFile).correct.items()
        found["transfer"] = {
            source: {key: np.asarray(row, dtype=bool) for key, row in rows.items()}
            for source, rows in correct
        }
    if "mechanism" in steps and grid.mechanism.images:
        (found["mechanism"],) = read_record(results / steps["mechanism"]["file"], _MechanismFile).models
    if "trajectory" in steps and grid.trajectory.snapshots:
        (found["trajectory"],) = read_trajectories(results / steps["trajectory"]["file"])
    found["audits"] = {
        Threat(item["norm"], item["eps"]): read_record(results / item["file"], AuditFile)
        for item in steps.get("audit", {}).get("files", ())
    }
    seconds = {name: float(step.get("seconds") or 0.0) for name, step in steps.items()}
    curve, train = read_curve(folder.run.metrics_path), dict(steps["train"])
    with contextlib.suppress(InputError, KeyError, TypeError):  # the run may be gone
        dataset = folder.run.config["dataset"]
        train |= {"shape": dataset["shape"], "classes": dataset["num_classes"]}
    return CellResult(cell, train, attacks, seconds=seconds, curve=curve, **found)
