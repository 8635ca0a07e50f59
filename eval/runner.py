"""Run one attack over many images: in chunks, resumable, kept per sample, never done twice."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from agents.rundir import device_name, versions
from attacks.batches import default_batch_size
from attacks.threat import get_norm
from envs.errors import InputError
from envs.files import write_atomic
from eval.models import Samples, Target
from eval.partial import REQUIRED, Part, PartialStore, gaps, joined
from eval.registry import resolve_options, run_function
from eval.results import AttackResults, configuration_hash, read_results, result_name, write_results
from eval.threats import Threat

_LEAST_CHUNK = 128  # a kill loses at most one chunk; smaller ones would waste the batches of the survivors
_ALARMS = ("nan", "outside")  # recorded only where they rang


@dataclass(frozen=True)
class AttackSpec:
    """One attack with everything that its outcome depends on, beside model and images.

    Attributes:
        name: of the attack, see `eval.registry`.
        threat: norm and radius.
        options: of the attack; those left out have its defaults.
        seed: of its random draws.
    """

    name: str
    threat: Threat
    options: dict[str, Any] = field(default_factory=dict)
    seed: int = 0

    def record(self) -> dict[str, Any]:
        """Return name, norm, eps and every option with its value, as plain JSON.

        Raises:
            InputError: the attack is unknown or does not take an option.
        """
        head = {"name": self.name, "norm": self.threat.norm, "eps": self.threat.eps}
        return head | resolve_options(self.name, self.options)


@dataclass(frozen=True)
class Progress:
    """How far an evaluation is: images done of ``total``, robust among them, rate of this process."""

    done: int
    total: int
    robust: int
    images_per_second: float


Report = Callable[[Progress], None]


def result_path(target: Target, samples: Samples, spec: AttackSpec, results_dir: Path) -> Path:
    """Return the file that holds, or will hold, the outcome of this attack on these images."""
    attack = spec.record()
    data = {"fingerprint": samples.fingerprint, "indices": samples.indices.tolist()}
    digest = configuration_hash(attack, data, target.sha256, spec.seed)
    return results_dir / f"{result_name(attack, digest)}.json"


def images_path(path: Path) -> Path:
    """Return the file beside a result file that holds its adversarial images."""
    return path.with_suffix(".safetensors")


def stored_results(path: Path, with_images: bool = False) -> AttackResults | None:
    """Return finished results, or None where there are none (or not the images that are asked for).

    Raises:
        InputError: the file is there but damaged.
    """
    if not path.is_file() or (with_images and not images_path(path).is_file()):
        return None
    return read_results(path)


def check_batch_size(batch_size: int | None) -> None:
    """Raise an InputError unless ``batch_size`` is None or at least 1."""
    if batch_size is not None and batch_size < 1:
        raise InputError(f"--batch-size is {batch_size}; expected at least 1, or leave it out")


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

    The outcome of an image depends on neither the chunk it is in nor on interruptions: its random draws hang on its
    index in the data set.

    Args:
        target: the classifier.
        samples: the images.
        spec: the attack.
        results_dir: where the result file (and, meanwhile, ``.partial``) is written; None keeps results in memory.
        batch_size: most images at once; chosen by the attack by default.
        save_images: also write the adversarial images, float32, as ``<result>.safetensors``.
        report: called after every chunk.

    Raises:
        InputError, AttackError: a wrong option or model, before anything is attacked.
        KeyboardInterrupt: with a message on how to go on.
    """
    check_batch_size(batch_size)
    attack = spec.record()
    n, store, path = len(samples), None, None
    parts: list[Part] = []
    if results_dir is not None:
        path = result_path(target, samples, spec, results_dir)
        store = PartialStore(
            results_dir / ".partial" / path.stem, (*REQUIRED, "adversarial") if save_images else REQUIRED
        )
        parts = store.read(n)
    size = batch_size or max(_LEAST_CHUNK, default_batch_size(samples.batch(slice(0, 1), target.device)[0]))
    started, kept = time.perf_counter(), sum(part.stop - part.start for part in parts)
    try:
        for rows in gaps(parts.copy(), n, size):
            part = _attack_rows(target, samples, spec, rows, batch_size, save_images)
            parts.append(part)
            if store is not None:
                store.write(part)
            if report is not None:
                report(_progress(parts, n, kept, time.perf_counter() - started))
    except KeyboardInterrupt:
        done = sum(part.stop - part.start for part in parts)
        hint = "; the same command goes on from there" if store is not None else ""
        raise KeyboardInterrupt(f"interrupted after {done} of {n} images{hint}") from None
    columns, broken_by, seconds = joined(parts)
    images = columns.pop("adversarial", None)
    results = _assemble(target, samples, spec, attack, columns, broken_by, seconds)
    if path is not None and store is not None:
        if save_images and images is not None:
            write_atomic(images_path(path), save({"adversarial": images, "indices": samples.indices}))
        write_results(path, results)
        store.remove()
    return results


def _progress(parts: list[Part], n: int, kept: int, seconds: float) -> Progress:
    done = sum(part.stop - part.start for part in parts)
    robust = sum(int((~part.columns["success"]).sum()) for part in parts)
    return Progress(done, n, robust, (done - kept) / max(seconds, 1e-9))


def _attack_rows(
    target: Target,
    samples: Samples,
    spec: AttackSpec,
    rows: slice,
    batch_size: int | None,
    save_images: bool,
) -> Part:
    started = time.perf_counter()
    x, y = samples.batch(rows, target.device)
    result = run_function(
        spec.name,
        target.model,
        x,
        y,
        norm=spec.threat.norm,
        eps=spec.threat.eps,
        options=resolve_options(spec.name, spec.options),
        seed=spec.seed,
        sample_ids=samples.indices[rows].to(x.device),
        batch_size=batch_size,
    )
    with torch.inference_mode():
        clean_correct = target.model(x).argmax(1) == y
    # A clean error counts as broken even where another batch shape rounds the logits the other way.
    success = result.success | ~clean_correct
    columns = {
        "success": success,
        "clean_correct": clean_correct,
        "distance": get_norm(spec.threat.norm).length((result.adversarial - x).double()),
        "queries": result.queries,
        "backwards": result.backwards,
        # Positions in ("clean", attack), -1 for survivors.
        "broken_by": torch.where(success, clean_correct.long(), -1),
    }
    columns |= {f"trace.{name}": values for name, values in result.trace.items() if _is_figure(values)}
    if save_images:
        columns["adversarial"] = result.adversarial
    columns = {name: values.cpu() for name, values in columns.items()}
    return Part(rows.start, rows.stop, columns, ("clean", spec.name), time.perf_counter() - started)


def _is_figure(values: Tensor) -> bool:
    """Whether a trace holds one finite number per image, as result files need."""
    return values.ndim == 1 and bool(values.isfinite().all())


def _assemble(
    target: Target,
    samples: Samples,
    spec: AttackSpec,
    attack: dict[str, Any],
    columns: dict[str, Tensor],
    broken_by: list[str | None],
    seconds: float,
) -> AttackResults:
    labels = samples.labels.cpu()[samples.indices]
    traces = {name.removeprefix("trace."): values for name, values in columns.items() if "." in name}
    return AttackResults(
        attack=attack,
        data=samples.record(),
        model={"sha256": target.sha256, "name": target.name},
        indices=samples.indices.numpy(),
        label=labels.numpy(),
        clean_correct=columns["clean_correct"].numpy(),
        success=columns["success"].numpy(),
        distance=columns["distance"].double().numpy(),
        queries=columns["queries"].numpy(),
        broken_by=tuple(broken_by),
        extra={
            name: values.double().numpy()
            for name, values in traces.items()
            if name not in _ALARMS or values.any()
        },
        cost={
            "seconds": seconds,
            "forwards": int(columns["queries"].sum()),
            "backwards": int(columns["backwards"].sum()),
        },
        seed=spec.seed,
        versions=versions(),
        device=device_name(target.device),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
