"""Run one attack over many images: in chunks, resumable, kept per sample, never done twice."""

import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from agents.common.plain_numbers import PlainNumbers, takes_numbers
from agents.common.run_dir import device_name, versions
from attacks.core.batching import default_batch_size
from attacks.core.losses import misclassified
from attacks.core.norms import get_norm
from attacks.core.result import AttackResult
from envs.errors import InputError
from envs.files import write_atomic
from eval.attack.autosave import Progress, Report, Watch
from eval.attack.parts import REQUIRED, Part, PartialStore, gaps, joined
from eval.attack.registry import recorded_options, resolve_options, run_function, takes
from eval.attack.results import AttackResults, configuration_hash, read_results, result_name, write_results
from eval.core.targets import Samples, Target, logits_of
from eval.core.threats import Threat

_LEAST_CHUNK = 128  # a kill loses at most one chunk; smaller ones would waste the batches of the survivors
# Traces that say whether something went wrong with an image; they become warnings.
_ALARMS = {
    "nan": "the model answered NaN",
    "outside": "the attack left the ball and was projected back",
    "zero_gradient": "the gradient was exactly zero",
    "nonfinite_gradient": "the gradient had infinite or NaN entries, which count as the largest finite ones or 0,",
    "not_attacked": "there was no finite gradient, so that nothing was attacked (add square): not counted as robust,",
}


@dataclass(frozen=True)
class AttackSpec(PlainNumbers):
    """One attack with everything that its outcome depends on, beside model and images."""

    name: str  #: of the attack, see `eval.attack.registry`
    threat: Threat  #: norm and radius
    options: dict[str, Any] = field(default_factory=dict)  #: of the attack; those left out have its defaults
    seed: int = 0  #: of its random draws
    sources: tuple[Target, ...] = ()  #: the models on which a transfer attack makes its images

    def record(self) -> dict[str, Any]:
        """Return name, norm, eps, every option with its value, and the sources, as plain JSON.

        Raises InputError where the attack is unknown, does not take an option, or lacks its sources.
        """
        record = {"name": self.name, **vars(self.threat)} | recorded_options(self.name, self.options)
        if takes(self.name, "sources") != bool(self.sources):
            remedy = "leave --source out" if self.sources else "add --source RUN"
            found = f"{self.name} got {len(self.sources)} source models"
            raise InputError(f"{found}; {remedy}, or choose another attack")
        sources = [{"name": source.name, "sha256": source.sha256} for source in self.sources]
        return record | ({"sources": sources} if sources else {})


def result_path(target: Target, samples: Samples, spec: AttackSpec, results_dir: Path) -> Path:
    """Return the file that holds, or will hold, the outcome of this attack on these images."""
    attack = spec.record()
    data = {"fingerprint": samples.fingerprint, "indices": samples.indices.tolist()}
    if spec.sources:  # their contents enter the hash, their names do not
        attack = attack | {"sources": [source.sha256 for source in spec.sources]}
    digest = configuration_hash(attack, data, target.sha256, spec.seed)
    return results_dir / f"{result_name(attack, digest)}.json"


def images_path(path: Path) -> Path:
    """Return the file beside a result file that holds its adversarial images."""
    return path.with_suffix(".safetensors")


def stored_results(path: Path, with_images: bool = False) -> AttackResults | None:
    """Return finished results, None where they or images that are asked for are missing; InputError: damaged."""
    if not path.is_file() or (with_images and not images_path(path).is_file()):
        return None
    results = read_results(path)
    _store(path).remove()  # a kill between the last two steps of `run_attack` leaves the parts
    return results


def _store(path: Path, with_images: bool = False) -> PartialStore:
    """Return where the parts of the result file ``path`` are kept until it is written."""
    required = (*REQUIRED, "adversarial") if with_images else REQUIRED
    return PartialStore(path.parent / ".partial" / path.stem, required)


def check_batch_size(batch_size: int | None) -> None:
    """Raise an InputError unless ``batch_size`` is None or at least 1."""
    if batch_size is not None and batch_size < 1:
        raise InputError(f"--batch-size is {batch_size}; expected at least 1, or leave it out")


@takes_numbers
def run_attack(
    target: Target,
    samples: Samples,
    spec: AttackSpec,
    *,
    results_dir: Path | None = None,
    batch_size: int | None = None,
    save_images: bool = False,
    report: Report | None = None,
) -> AttackResults:
    """Attack the samples, going on from the parts that an interrupted call left.

    The outcome of an image depends on neither the chunk it is in nor on interruptions: its random draws depend on its
    index in the data set.

    Args:
        target, samples, spec: the classifier, the images, and the attack.
        results_dir: where the result file (and, meanwhile, ``.partial``) is written; None keeps results in memory.
        batch_size: most images at once; chosen by the attack by default.
        save_images: also write the adversarial images, float32, as ``<result>.safetensors``.
        report: called after every chunk.

    Raises:
        InputError, AttackError: a wrong option or model, before anything is attacked.
        KeyboardInterrupt: with a message on how to go on.
    """
    check_batch_size(batch_size)
    spec.record()  # what cannot run ends here
    if results_dir is None:
        return _Run(target, samples, spec, batch_size, report=report).results()
    path = result_path(target, samples, spec, results_dir)
    store = _store(path, save_images)
    with store.hold():
        run = _Run(target, samples, spec, batch_size, save_images, store, report)
        results = run.results(images_path(path))
        write_results(path, results)
        store.remove()
    return results


@takes_numbers
def attack_rows(
    target: Target,
    samples: Samples,
    spec: AttackSpec,
    rows: slice,
    *,
    results_dir: Path,
    batch_size: int | None = None,
) -> None:
    """Attack some of the samples and leave their outcomes where `run_attack` finds those of an interrupted call.

    Workers that share the directory so divide the images of one model among them; a last `run_attack` joins the parts
    and does what is missing. No outcome depends on the division. Arguments and errors are those of `run_attack`;
    ``rows``: which of the samples, ``start`` and ``stop`` given.
    """
    check_batch_size(batch_size)
    store = _store(result_path(target, samples, spec, results_dir))
    done = {(part.start, part.stop) for part in store.read(len(samples))}
    if rows.start < rows.stop and (rows.start, rows.stop) not in done:
        store.write(_Run(target, samples, spec, batch_size).attack(rows))


@dataclass
class _Run:
    """One attack under way: the parts that are done, and how to do the rest."""

    target: Target
    samples: Samples
    spec: AttackSpec
    batch_size: int | None
    save_images: bool = False
    store: PartialStore | None = None
    report: Report | None = None

    def __post_init__(self) -> None:
        self.options = resolve_options(self.spec.name, self.spec.options)
        self.parts = self.store.read(len(self.samples)) if self.store else []

    def _finish(self) -> Part:
        """Do what is missing and return the whole."""
        n, kept, started = len(self.samples), self._done(), time.perf_counter()
        if takes(self.spec.name, "state", "on_progress"):
            chunk = n  # all at once: an attack that keeps its own state lets survivors share batches
        else:
            one, _ = self.samples.batch(slice(0, 1), self.target.device)
            chunk = self.batch_size or max(_LEAST_CHUNK, default_batch_size(one))
        try:
            for rows in gaps(self.parts.copy(), n, chunk):
                part = self.attack(rows)
                self.parts.append(part)
                if self.store is not None:
                    self.store.write(part)
                if self.report is not None:
                    rate = (self._done() - kept) / max(time.perf_counter() - started, 1e-9)
                    robust = sum(int((~part.columns["success"]).sum()) for part in self.parts)
                    self.report(Progress(self._done(), n, robust / self._done(), rate))
        except KeyboardInterrupt:
            hint = "; the same command goes on from there" if self.store is not None else ""
            raise KeyboardInterrupt(f"interrupted after {self._done()} of {n} images{hint}") from None
        return joined(self.parts)

    def _done(self) -> int:
        return sum(part.stop - part.start for part in self.parts)

    def attack(self, rows: slice) -> Part:
        """Attack some rows of the samples."""
        x, y = self.samples.batch(rows, self.target.device)
        watch = Watch(self.store, self.report)
        given: dict[str, Any] = {"options": self.options, "seed": self.spec.seed, **vars(self.spec.threat)}
        given |= {"sample_ids": self.samples.indices[rows].to(x.device), "batch_size": self.batch_size}
        given |= {"state": watch.state, "on_progress": watch}
        sources = [source.model for source in self.spec.sources]
        result = run_function(self.spec.name, self.target.model, x, y, sources=sources, **given)
        # Stages and warnings are AutoAttack's; what it found odd about the model was said before.
        names = ("clean", *getattr(result, "stages", ("clean", self.spec.name))[1:])
        before = getattr(getattr(result, "report", None), "warnings", ())
        warnings = tuple(line for line in getattr(result, "warnings", ()) if line not in before)
        return Part(rows.start, rows.stop, self._columns(result, x, y), names, watch.seconds, warnings)

    def _columns(self, result: AttackResult, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        clean = logits_of(self.target.model, x, self.batch_size or default_batch_size(x))
        clean_correct = ~misclassified(clean, y)
        # A clean error counts as broken even where another batch shape rounds the logits the other way.
        success = result.success | ~clean_correct
        # Position of the attack or stage that broke the image: "clean" is 0, survivors have -1.
        stage = result.trace.get("broken_by", torch.ones_like(y))
        columns = {
            "success": success,
            "clean_correct": clean_correct,
            "distance": get_norm(self.spec.threat.norm).length((result.adversarial - x).double()),
            "queries": result.queries,
            "backwards": result.backwards,
            "broken_by": torch.where(success, torch.where(clean_correct, stage, 0), -1),
        }
        for name, values in result.trace.items():
            if name not in REQUIRED and values.ndim == 1:  # a number per image that is no column already
                columns[f"trace.{name}"] = values
        if self.save_images:
            columns["adversarial"] = result.adversarial
        return {name: values.cpu() for name, values in columns.items()}

    def results(self, images: Path | None = None) -> AttackResults:
        """Finish the run and return its results; ``images``: where adversarial images go, if they are asked for."""
        target, samples, outcome = self.target, self.samples, self._finish()
        columns = outcome.columns
        if "adversarial" in columns and images is not None:
            write_atomic(images, save({"adversarial": columns["adversarial"], "indices": samples.indices}))
        traces = {name.removeprefix("trace."): values for name, values in columns.items() if "." in name}
        rang = {name: int(values.bool().sum()) for name, values in traces.items() if name in _ALARMS}
        warnings = [f"{_ALARMS[name]} on {n} of {len(samples)} images" for name, n in rang.items() if n]
        if "left_box" in traces:
            left = int(traces["left_box"].sum())
            warnings.append(f"{left} of {len(samples)} points left [0, 1]: no robust accuracy under that box")
        forwards, backwards = (int(columns[name].sum()) for name in ("queries", "backwards"))
        shown = {k: v for k, v in traces.items() if k not in _ALARMS or (k == "not_attacked" and v.any())}
        return AttackResults(
            attack=self.spec.record(),
            data=samples.record(),
            model={"sha256": target.sha256, "name": target.name},
            indices=samples.indices.numpy(),
            label=samples.labels.cpu()[samples.indices].numpy(),
            distance=columns["distance"].double().numpy(),
            **{name: columns[name].numpy() for name in ("clean_correct", "success", "queries")},
            broken_by=outcome.broken_by,
            extra={name: values.double().numpy() for name, values in shown.items()},
            cost={"seconds": outcome.seconds, "forwards": forwards, "backwards": backwards},
            warnings=(*warnings, *outcome.warnings),
            seed=self.spec.seed,
            versions=versions(),
            device=device_name(target.device),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )
