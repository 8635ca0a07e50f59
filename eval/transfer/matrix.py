"""Transfer: how images are made on a model, and the source x target matrix, per image, that goes on where it ended."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
from torch import Tensor, nn

import attacks
from agents.common.plain_numbers import takes_numbers
from agents.common.protocols import CLEVERHANS_BATCH
from agents.common.run_dir import versions
from attacks.core.losses import misclassified
from envs.errors import InputError
from eval.core.records import FORMAT, bits, interval, read_record, share, write_record
from eval.core.stats import Interval
from eval.core.targets import Samples, Target, logits_of
from eval.core.threats import Threat

# "paper": the protocol of Zou et al. 2026 (arXiv 2606.12251), which attacks the true labels, kept in [0, 1]; "strong":
# steps of full length on the MIFPE loss, which no saturated softmax weakens.
CRAFTS: dict[str, dict[str, Any]] = {
    "paper": {"protocol": "cleverhans", "averaged_over": CLEVERHANS_BATCH},
    "strong": {"loss": "mifpe"},
}


def defined(craft: str, threat: Threat) -> bool:
    """Return whether a craft exists for a threat model; the paper's does not for L1."""
    return craft != "paper" or threat.norm != "L1"


def make_images(
    craft: str,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    steps: int,
    seed: int,
    ids: Tensor,
    batch_size: int | None = None,
) -> Tensor:
    """Return the last iterates (N, C, H, W) of PGD on ``model``, steps of eps / 10, in the ball and in [0, 1].

    ``craft`` is one of `CRAFTS`, ``x`` (N, C, H, W) in [0, 1] with labels ``y`` (N,); random starts depend on ``seed``
    and on ``ids`` (N,), one an image; ``batch_size``: most images at once, None chooses. An AttackError tells of wrong
    inputs, or of a model without gradients.
    """
    options: dict[str, Any] = {**vars(threat), **CRAFTS[craft], "keep": "last", "early_stop": False}
    options |= {"steps": steps, "step_size": threat.eps / 10, "batch_size": batch_size}
    return attacks.pgd(model, x, y, seed=seed, sample_ids=ids, **options).adversarial


def still_correct(model: nn.Module, images: Tensor, labels: Tensor) -> list[bool]:
    """Return per image whether ``model`` classifies it correctly; images and labels on the model's device."""
    return (~misclassified(logits_of(model, images), labels)).tolist()


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One model shown the images made on another: the share that it classifies correctly, with Wilson's interval.

    ``craft``: how they were made, see `CRAFTS`; ``clean`` for the untouched images. ``source`` and
    ``target``: SHA-256 of the models' weights; for clean images the source is the target. ``correct``: a character per
    image: 1 where it is classified correctly, else 0.
    """

    craft: str
    source: str
    target: str
    accuracy: float
    ci95: tuple[float, float]
    correct: str

    @property
    def interval(self) -> Interval:
        """Wilson's 95 % interval."""
        return Interval(*self.ci95)


class Matrix(msgspec.Struct, forbid_unknown_fields=True):
    """What is known so far, the entries in the order in which they were found.

    ``question`` is what all entries share: ``norm``, ``eps``, ``steps``, ``seed``, ``data`` with the indices of the
    images; ``models``: names by SHA-256; ``crafts``: options of `attacks.pgd` by craft.
    """

    question: dict[str, Any]
    entries: list[Entry] = []
    models: dict[str, str] = {}
    crafts: dict[str, dict[str, Any]] = msgspec.field(default_factory=CRAFTS.copy)
    versions: dict[str, str] = msgspec.field(default_factory=versions)
    format: int = FORMAT

    def entry(self, craft: str, source: str, target: str) -> Entry | None:
        """Return one entry, None where it is not known yet."""
        place = (craft, source, target)
        return next((item for item in self.entries if (item.craft, item.source, item.target) == place), None)

    def __post_init__(self) -> None:
        n = len(self.question.get("data", {}).get("indices", ()))
        if any(len(item.correct) != n for item in self.entries):
            raise ValueError(f"an entry has not {n} outcomes")


def read_matrix(path: Path) -> Matrix:
    """Read what was written before; errors as `eval.core.records.read_record`."""
    return read_record(path, Matrix, "move it away, or give another --out")


@takes_numbers
def fill(
    path: Path,
    targets: Sequence[Target],
    samples: Samples,
    threat: Threat,
    *,
    crafts: Sequence[str] = tuple(CRAFTS),
    steps: int = 100,
    seed: int = 0,
    batch_size: int | None = None,
    force: bool = False,
    report: Callable[[str], None] = lambda line: None,
) -> Matrix:
    """Show every target the images made on every other and on itself; save after each source, and skip what is known.

    Args:
        path: of the JSON file; ``force`` ignores one that exists.
        targets: the models, on one device.
        crafts: ways of making images; what the threat model does not have is left out.
        steps, seed, batch_size: as `make_images`.
        report: given a line per source and craft.

    Raises InputError where the file is damaged or answers another question.
    """
    data = samples.record() | {"indices": samples.indices.tolist()}
    question = {**vars(threat), "steps": steps, "seed": seed, "data": data}
    matrix = read_matrix(path) if path.exists() and not force else Matrix(question)
    if any(matrix.crafts.get(craft) != CRAFTS[craft] for craft in crafts):
        raise InputError(f"{path} was made by an earlier version's crafts; give another --out or --force")
    if matrix.question != question:
        raise InputError(f"{path} holds other images, radius, steps or seed; give another --out or --force")
    path.parent.mkdir(parents=True, exist_ok=True)
    matrix.models |= {target.sha256: target.name for target in targets}
    x, y = samples.batch(slice(None), targets[0].device)
    ids = samples.indices.to(x.device)
    for target in targets:
        if matrix.entry("clean", target.sha256, target.sha256) is None:
            matrix.entries.append(_entry("clean", target, target, still_correct(target.model, x, y)))
    for craft in (craft for craft in crafts if defined(craft, threat)):
        for source in targets:
            left = [item for item in targets if matrix.entry(craft, source.sha256, item.sha256) is None]
            if not left:
                continue
            report(f"{craft}: images made on {source.name}")
            options: dict[str, Any] = {"steps": steps, "seed": seed, "ids": ids, "batch_size": batch_size}
            images = make_images(craft, source.model, x, y, threat, **options)
            for item in left:
                matrix.entries.append(_entry(craft, source, item, still_correct(item.model, images, y)))
            write_record(path, matrix)
    write_record(path, matrix)
    return matrix


def _entry(craft: str, source: Target, target: Target, correct: Sequence[bool]) -> Entry:
    row = bits(correct)
    return Entry(craft, source.sha256, target.sha256, share(row), interval(row), row)
