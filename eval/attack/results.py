"""Result files: what one attack did to every image, so that worst cases can be taken later."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np

from envs.errors import InputError
from envs.files import nulled, read_json, write_atomic
from eval.core.formatting import count, html_tables, make_table, percent, with_interval
from eval.core.records import FORMAT, Count
from eval.core.stats import Interval, wilson
from eval.core.threats import Threat

_COLUMNS: dict[str, type] = {"label": np.int64, "clean_correct": bool, "success": bool}
_COLUMNS |= {"distance": np.float64, "queries": np.int64}
_FURTHER = ("cost", "warnings", "seed", "versions", "device", "created")


@dataclass(frozen=True)
class AttackResults:
    """Per-sample outcomes of one attack (or of the worst case over several) on one model."""

    attack: dict[str, Any]  #: ``name``, ``norm``, ``eps``, and every option of the attack with its value
    data: dict[str, Any]  #: ``dataset``, ``split``, ``fingerprint`` of the data set
    model: dict[str, Any]  #: ``sha256`` of weights and structure, ``name`` for tables
    indices: np.ndarray  #: (n,) int64, positions of the attacked images in the split, all different
    label: np.ndarray  #: (n,) int64, true labels
    clean_correct: np.ndarray  #: (n,) bool, the unattacked image is classified correctly
    success: np.ndarray  #: (n,) bool, the attacked image is misclassified; clean errors are included
    distance: np.ndarray  #: (n,) float64, length of the perturbation in the attack's norm, pixels in [0, 1]
    queries: np.ndarray  #: (n,) int64, forward passes that the image took
    #: per sample: the attack that broke it, ``"clean"`` for a clean error, None for a survivor
    broken_by: tuple[str | None, ...]
    #: further per-sample numbers by name, each of length n, such as ``shortened``; NaN (null in files)
    #: where undefined
    extra: dict[str, np.ndarray] = field(default_factory=dict)
    #: ``seconds``, ``forwards``, ``backwards``, counted over images
    cost: dict[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()  #: what makes the outcome doubtful, one line each
    seed: int = 0  #: of the attack
    versions: dict[str, str] = field(default_factory=dict)  #: of the packages
    device: str = ""  #: what it ran on
    created: str = ""  #: ISO time

    @property
    def n(self) -> int:
        """Number of images."""
        return len(self.indices)

    @property
    def threat(self) -> Threat:
        """The threat model: norm and radius."""
        return Threat(self.attack["norm"], self.attack["eps"])

    @property
    def clean_accuracy(self) -> float:
        """Share of images classified correctly unattacked."""
        return float(self.clean_correct.mean())

    @property
    def robust(self) -> np.ndarray:
        """(n,) bool: the image was attacked and is classified correctly even so."""
        return ~self.success & ~self.not_attacked

    @property
    def not_attacked(self) -> np.ndarray:
        """(n,) bool: no finite gradient led anywhere, so that the attack says nothing of the image."""
        return self.extra.get("not_attacked", np.zeros(self.n)) > 0

    @property
    def robust_accuracy(self) -> float:
        """Share of images that the attack did not break."""
        return float(self.robust.mean())

    @property
    def interval(self) -> Interval:
        """Wilson's 95 % interval of the robust accuracy."""
        return wilson(int(self.robust.sum()), self.n)

    @property
    def in_box(self) -> bool:
        """Whether the attack keeps to [0, 1]; what one does that may leave it says nothing of robust accuracy."""
        return self.attack.get("box", True)

    @property
    def shortened(self) -> float | None:
        """Mean share of steps that the floor of the cleverhans protocol shortened; None if not traced."""
        return float(self.extra["shortened"].mean()) if "shortened" in self.extra else None

    @property
    def shortened_l2(self) -> float | None:
        """The same under L2; None under other norms, where the floor shortens nothing."""
        return self.shortened if self.threat.norm == "L2" else None

    def _repr_html_(self) -> str:
        """Return a small table for notebooks."""
        title = f"{self.model['name']} on {self.data.get('dataset')} ({self.data.get('split')}, n = {self.n})"
        headings = ("clean", "robust [95 %]", "steps shortened", "queries/image", "warnings")
        table = make_table(title, ("attack", "threat"), headings)
        shares = (percent(self.clean_accuracy), with_interval(self.robust_accuracy, self.interval))
        costs = (percent(self.shortened), count(float(self.queries.mean())))
        row = (self.attack["name"], str(self.threat), *shares, *costs)
        table.add_row(*row, "; ".join(self.warnings) or "-")
        return html_tables([table])

    def summary(self) -> dict[str, Any]:
        """Return the figures a table needs, as plain JSON values."""
        return {
            "clean_accuracy": self.clean_accuracy,
            "robust_accuracy": self.robust_accuracy,
            "ci95": list(self.interval),
            "queries_per_image": float(self.queries.mean()),
            **{f"mean_{name}": float(values.mean()) for name, values in self.extra.items()},
        }


def configuration_hash(attack: dict[str, Any], data: dict[str, Any], model_sha256: str, seed: int) -> str:
    """Return 12 hex digits that name everything an outcome depends on: attack, images, weights, seed.

    ``data`` holds the fingerprint and the indices. Names of runs and data sets do not enter, contents do.
    """
    parts = {"format": FORMAT, "attack": attack, "data": data, "model": model_sha256, "seed": seed}
    text = json.dumps(parts, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def result_name(attack: dict[str, Any], digest: str) -> str:
    """Return the stem of a result file, such as ``pgd-L2-1-0f3a9c2b4d5e``."""
    return f"{attack['name']}-{attack['norm']}-{attack['eps']:.4g}-{digest}"


def write_results(path: Path, results: AttackResults) -> None:
    """Write one result file, atomically. Raises OSError: the directory is missing or not writable."""
    columns = {name: getattr(results, name).tolist() for name in _COLUMNS}
    samples = columns | {"broken_by": list(results.broken_by)}
    samples |= {name: nulled(values.tolist()) for name, values in results.extra.items()}
    content = {
        "format": FORMAT,
        "attack": results.attack,
        "data": results.data | {"n": results.n, "indices": results.indices.tolist()},
        "model": results.model,
        "summary": nulled(results.summary()),
        **{name: getattr(results, name) for name in _FURTHER},
        "samples": samples,
    }
    write_atomic(path, _dump(content))


def _dump(content: dict[str, Any]) -> str:
    """Return JSON with one line per column: readable, and no line per sample."""

    def lines(value: Any, depth: int) -> str:
        if not depth or not isinstance(value, dict) or not value:
            return json.dumps(value, allow_nan=False)
        pad = "\n" + " " * (2 - depth)
        entries = (f"{pad} {json.dumps(key)}: {lines(item, depth - 1)}" for key, item in value.items())
        return "{" + ",".join(entries) + pad + "}"

    return lines(content, 2) + "\n"


def read_results(path: str | Path) -> AttackResults:
    """Read and check one result file; InputError where it is missing, damaged, or of another format."""
    return parse_results(read_json(path), str(path))


def parse_results(content: Any, origin: str) -> AttackResults:
    """Check the decoded content of the result file ``origin``; errors as `read_results`."""
    try:
        return msgspec.convert(content, _File).results()
    except (msgspec.ValidationError, ValueError) as error:
        remedy = "delete it and rerun"
        raise InputError(f"{origin} is not a result file of format {FORMAT} ({error}); {remedy}") from None


class _Attack(msgspec.Struct):
    name: str
    norm: str
    eps: float


class _Data(msgspec.Struct):
    n: Annotated[int, msgspec.Meta(ge=1)]
    indices: list[Count]


class _Model(msgspec.Struct):
    sha256: str


class _Samples(msgspec.Struct):
    label: list[Count]
    clean_correct: list[bool]
    success: list[bool]
    distance: list[Annotated[float, msgspec.Meta(ge=0)]]
    queries: list[Count]
    broken_by: list[str | None]


class _File(msgspec.Struct):
    """A result file; its sections hold more than is named here."""

    format: Literal[1]
    attack: dict[str, Any]
    data: dict[str, Any]
    model: dict[str, Any]
    samples: dict[str, list[Any]]
    cost: dict[str, int | float]
    warnings: tuple[str, ...]
    seed: int
    versions: dict[str, str]
    device: str
    created: str

    def results(self) -> AttackResults:
        """Return the results; ValueError where a section lacks something, or its columns contradict each other."""
        attack, data = msgspec.convert(self.attack, _Attack), msgspec.convert(self.data, _Data)
        msgspec.convert(self.model, _Model)
        fixed = msgspec.structs.asdict(msgspec.convert(self.samples, _Samples))
        more = {name: values for name, values in self.samples.items() if name not in fixed}
        extra = msgspec.convert(more, dict[str, list[float | None]])
        if {len(column) for column in (data.indices, *fixed.values(), *extra.values())} != {data.n}:
            raise ValueError(f"a column has not {data.n} entries")
        if len(set(data.indices)) != data.n:
            raise ValueError("an image occurs twice")
        columns: dict[str, Any] = {name: np.asarray(fixed[name], kind) for name, kind in _COLUMNS.items()}
        if not (columns["clean_correct"] | columns["success"]).all():
            raise ValueError("a clean error is counted as robust")
        if not np.isfinite(columns["distance"]).all():
            raise ValueError("a distance is not finite")
        return AttackResults(
            attack=self.attack | {"eps": attack.eps},
            data={key: value for key, value in self.data.items() if key not in ("n", "indices")},
            model=self.model,
            indices=np.asarray(data.indices, dtype=np.int64),
            broken_by=tuple(fixed["broken_by"]),
            extra={name: np.asarray(values, dtype=np.float64) for name, values in extra.items()},
            **columns,
            **{name: getattr(self, name) for name in _FURTHER},
        )


def worst_case(results: Sequence[AttackResults], names: Sequence[str] | None = None) -> AttackResults:
    """Return the pointwise worst case: an image counts as robust only if NO attack broke it.

    This is the mean over images of the minimum over attacks, never the minimum of the attacks' means. Attacks whose
    points may leave [0, 1] are left out.
    ``broken_by`` is the first attack of the sequence that succeeded, called by its own name or that of ``names``;
    ``distance`` that of the smallest successful perturbation (of the first attack, where none succeeded); queries and
    costs add up.

    Raises:
        InputError: nothing (inside [0, 1]) given, or the results differ in model, images or threat model.
    """
    names = names or [result.attack["name"] for result in results]
    inside = [(result, name) for result, name in zip(results, names, strict=True) if result.in_box]
    if not inside:
        remedy = "run at least one attack that stays there first"
        raise InputError(f"no results inside [0, 1] to combine; {remedy}")
    (first, *others), names = zip(*inside, strict=True)
    for other in others:
        _check_comparable(first, other)
    results = (first, *others)
    success: np.ndarray = np.stack([result.success for result in results])
    distance = np.where(success, np.stack([result.distance for result in results]), np.inf).min(axis=0)
    broken: np.ndarray = np.any(success, axis=0)
    skipped = np.all([result.not_attacked for result in results], axis=0) & ~broken
    blame = []  # "clean", the attack under its name, or a part of it as "name/part"
    for row, k in enumerate(success.argmax(axis=0)):
        part = results[k].broken_by[row]
        if part not in (None, "clean"):
            part = names[k] if part == results[k].attack["name"] else f"{names[k]}/{part}"
        blame.append(part)
    return replace(
        first,
        attack={"name": "worst case", **vars(first.threat), "attacks": [result.attack for result in results]},
        success=broken,
        distance=np.where(broken, distance, first.distance),
        queries=np.sum([result.queries for result in results], axis=0),
        broken_by=tuple(blame),
        extra={"not_attacked": skipped.astype(np.float64)} if skipped.any() else {},
        warnings=tuple(dict.fromkeys(line for result in results for line in result.warnings)),
        cost={key: sum(result.cost.get(key, 0) for result in results) for key in first.cost},
    )


def _check_comparable(first: AttackResults, other: AttackResults) -> None:
    if other.model["sha256"] != first.model["sha256"]:
        problem = "attacked different weights; combine results of one model only"
    elif other.data.get("fingerprint") != first.data.get("fingerprint"):
        problem = "attacked images of different data sets; rerun one with the other's data"
    elif not np.array_equal(other.indices, first.indices):
        problem = f"attacked different images ({first.n} and {other.n}); rerun one with the same --n"
    elif other.threat != first.threat:
        problem = f"have threat models {first.threat} and {other.threat}; combine one at a time"
    else:
        return
    raise InputError(f"{first.attack['name']!r} and {other.attack['name']!r} {problem}")
