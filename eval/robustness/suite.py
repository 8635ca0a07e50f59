"""The battery: which attacks a robustness report runs, and their per-image worst case per threat model."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from rich.table import Table
from torch import Tensor, nn

from agents.common.plain_numbers import takes_numbers
from agents.common.protocols import CLEVERHANS_BATCH
from attacks.checks import check_model
from attacks.core.batching import default_batch_size
from envs.errors import InputError, unknown_name
from envs.files import write_json
from envs.sampling import spread
from eval.attack.autosave import Report
from eval.attack.labels import ATTACK_HEADINGS, attack_cells
from eval.attack.registry import attack_function, attack_names
from eval.attack.results import AttackResults, worst_case
from eval.attack.runner import AttackSpec, result_path, run_attack, stored_results
from eval.core.formatting import html_tables, make_table, percent
from eval.core.targets import Samples, Target, model_sha256, samples_from
from eval.core.threats import Threat, default_threats
from eval.robustness.options import DEFAULT_BATTERY

# The protocol of Zou et al. 2026 (arXiv 2606.12251): 100 steps of eps / 10 (L2 1.0: .1), loss averaged over 128 images
# (the default of ``averaged_over`` here), true labels, the last iterate. Their call clips nothing to [0, 1].
_CLEVERHANS = {"protocol": "cleverhans", "keep": "last", "steps": 100}

# Attacks by the names that reports use. "paper" is the published call to the letter, "cleverhans" the same in the box.
PRESETS: dict[str, tuple[str, dict[str, Any]]] = {
    "pgd": ("pgd", {}),
    "pgd-cleverhans": ("pgd", _CLEVERHANS),
    "pgd-margin": ("pgd", {"loss": "margin"}),
    "pgd-dlr": ("pgd", {"loss": "dlr"}),
    "pgd-mifpe": ("pgd", {"loss": "mifpe"}),
    "autoattack": ("autoattack", {}),
    **{version: ("autoattack", {"version": version}) for version in ("fast", "plus", "rand")},
    "pgd-paper": ("pgd", _CLEVERHANS | {"box": False}),
    "pgd-paper-250": ("pgd", _CLEVERHANS | {"box": False, "steps": 250}),
}
# Step lengths in radii: the published .1 at L2 1.0, and .01 at L2 3.5.
_STEPS = {"pgd-cleverhans": 1 / 10, "pgd-paper": 1 / 10, "pgd-paper-250": 1 / 350}
_CHECKED_IMAGES = 64

# Makes the bar for one attack: a function of (label, number of images).
BarFactory = Callable[[str, int], AbstractContextManager[Report]]


@dataclass(frozen=True)
class RobustnessReport:
    """Outcomes of a battery on one model."""

    name: str  #: of the model
    #: by threat model, then by the attack's name in the report
    results: dict[Threat, dict[str, AttackResults]]
    worst: dict[Threat, AttackResults]  #: per threat model, the pointwise worst case over its attacks
    #: what is odd about the model itself, where that was looked at; one line each
    findings: tuple[str, ...] = ()

    @property
    def warnings(self) -> tuple[str, ...]:
        """What makes the outcomes doubtful: findings about the model, then each attack's alarms."""
        alarms = (
            f"{name} {threat}: {line}"
            for threat, attacks in self.results.items()
            for name, result in attacks.items()
            for line in result.warnings
        )
        return tuple(dict.fromkeys((*self.findings, *alarms)))

    @property
    def clean_accuracy(self) -> float:
        """Share of the images classified correctly unattacked."""
        return next(iter(self.worst.values())).clean_accuracy

    @property
    def n(self) -> int:
        """Number of images."""
        return next(iter(self.worst.values())).n

    def table(self, threat: Threat) -> Table:
        """Return attacks and worst case under one threat model as rows, with protocols and costs."""
        title = f"{self.name}: {threat}, clean {percent(self.clean_accuracy)}, n = {self.n}"
        table = make_table(title, ("attack", "protocol"), ATTACK_HEADINGS)
        for name, result in self.results[threat].items():
            table.add_row(name, *attack_cells(result))
        _, accuracy, _, queries, seconds = attack_cells(self.worst[threat])
        table.add_section()
        table.add_row("worst case per image", "-", accuracy, "-", queries, seconds, style="bold")
        return table

    def _repr_html_(self) -> str:
        """Return the tables and warnings for notebooks."""
        warnings = make_table("", ("warnings",), ())
        for line in self.warnings:
            warnings.add_row(line)
        tables = [self.table(threat) for threat in self.results]
        return html_tables([*tables, warnings] if self.warnings else tables)

    def figures(self) -> dict[str, Any]:
        """Return everything a table or a study needs, as plain JSON."""
        threats = []
        for threat, attacks in self.results.items():
            rows = {name: _row(result) for name, result in attacks.items()}
            worst = self.worst[threat]  # the attacks by how many images each was the first to break
            tally = Counter(name for name in worst.broken_by if name is not None)
            threats.append(
                {**vars(threat), "attacks": rows, "worst_case": _row(worst) | {"broken_by": tally}}
            )
        first = next(iter(self.worst.values()))
        return {
            "name": self.name,
            "model": first.model,
            "data": first.data | {"n": first.n},
            "clean_accuracy": self.clean_accuracy,
            "threats": threats,
            "warnings": list(self.warnings),
            "versions": first.versions,
        }


def _row(result: AttackResults) -> dict[str, Any]:
    return {
        "robust_accuracy": result.robust_accuracy,
        "ci95": list(result.interval),
        "shortened": result.shortened,
        "queries_per_image": float(result.queries.mean()),
        **result.cost,
    }


def battery(names: Sequence[str], threats: Sequence[Threat], seed: int = 0) -> list[tuple[str, AttackSpec]]:
    """Return the attacks to run, by name; ``names`` are presets or attacks.

    The cleverhans protocol does not exist for L1 and is left out there.

    Raises:
        InputError: a name is neither a preset nor an attack, the attack needs source models, or all attacks may
            leave [0, 1].
    """
    for name in names:
        if name not in PRESETS and name.replace("-", "_") not in attack_names():
            raise unknown_name("attack", name, dict.fromkeys((*PRESETS, *attack_names())))
    plan = []
    for threat, name in product(threats, names):
        attack, options = PRESETS.get(name) or (attack_function(name).__name__, {})
        if options.get("protocol") != "cleverhans" or threat.norm != "L1":
            plan.append((name, AttackSpec(attack, threat, scaled(name, options, threat), seed)))
    inside = [spec.record().get("box", True) for _, spec in plan]  # what cannot run like this ends here
    if plan and not any(inside):
        remedy = "add an attack inside it, such as pgd-cleverhans"
        raise InputError(f"{', '.join(names)} may leave [0, 1]; {remedy}")
    return plan


def scaled(name: str, options: dict[str, Any], threat: Threat) -> dict[str, Any]:
    """Return the options of an attack called ``name`` with the step length that its protocol has at this radius."""
    return options if name not in _STEPS else {"step_size": threat.eps * _STEPS[name]} | options


def pgd_options(protocol: str, loss: str, threat: Threat, steps: int | None = None) -> dict[str, Any]:
    """Return all options of `attacks.pgd` for a protocol; ``steps`` replaces their number and leaves their length."""
    whole: dict[str, Any] = {"step_size": threat.eps / 8, "steps": 100, "keep": "best", "box": True}
    whole |= scaled(protocol, PRESETS[protocol][1], threat)
    whole |= {"loss": loss, "averaged_over": CLEVERHANS_BATCH}
    return whole if steps is None else whole | {"steps": steps}


def chunks(target: Target, samples: Samples, batch_size: int | None) -> Iterator[slice]:
    """Yield the rows to attack at once; no outcome depends on the division."""
    size = batch_size or max(128, default_batch_size(samples.batch(slice(0, 1), target.device)[0]))
    for start in range(0, len(samples), size):
        yield slice(start, min(start + size, len(samples)))


@takes_numbers
def run_battery(
    target: Target,
    samples: Samples,
    names: Sequence[str] = DEFAULT_BATTERY,
    threats: Sequence[Threat] | None = None,
    *,
    seed: int = 0,
    results_dir: Path | None = None,
    batch_size: int | None = None,
    force: bool = False,
    bar: BarFactory | None = None,
) -> RobustnessReport:
    """Run what is missing of the battery, and combine it with what is stored.

    Args:
        target, samples: the classifier and the images.
        names: presets or attacks.
        threats: norms and radii; by the kind of image by default.
        seed, batch_size: of the attacks; most images at once.
        results_dir: where results are kept; None keeps nothing.
        force: run stored attacks again too.
        bar: shows the progress of one attack.

    Raises:
        InputError, AttackError: a wrong name or option, or a model that cannot be attacked.
    """
    threats = threats or default_threats(samples.channels)
    results: dict[Threat, dict[str, AttackResults]] = {threat: {} for threat in threats}
    place: dict[str, Any] = {"results_dir": results_dir, "batch_size": batch_size}
    for name, spec in battery(names, threats, seed):
        kept = None if results_dir is None or force else result_path(target, samples, spec, results_dir)
        found = stored_results(kept) if kept else None
        if found is None:
            label = f"{target.name}: {name} {spec.threat}"
            with bar(label, len(samples)) if bar else nullcontext() as report:
                found = run_attack(target, samples, spec, report=report, **place)
        results[spec.threat][name] = found
    worst = {threat: worst_case(list(attacks.values()), list(attacks)) for threat, attacks in results.items()}
    return RobustnessReport(target.name, results, worst)


@takes_numbers
def evaluate(
    classifier: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    names: Sequence[str] = DEFAULT_BATTERY,
    threats: Sequence[Threat] | None = None,
    name: str = "model",
    seed: int = 0,
    batch_size: int | None = None,
) -> RobustnessReport:
    """Evaluate any classifier on any images, in memory.

    Args:
        classifier: images in [0, 1], (N, C, H, W), to logits (N, K); used in eval mode and left as it is found.
        images, labels: floats in [0, 1] or uint8, (N, C, H, W), and (N,) int64.
        names: presets or attacks of the battery.
        threats: norms and radii; by the kind of image by default.
        name: of the model, for tables.
        seed, batch_size: of the attacks; most images at once.

    Raises:
        InputError, AttackError: a wrong name, images out of range, or a model that cannot be attacked.

    Example:
        >>> report = evaluate(classifier, images, labels, threats=[Threat("Linf", 8 / 255)])  # doctest: +SKIP
        >>> report.worst[Threat("Linf", 8 / 255)].robust_accuracy  # doctest: +SKIP
    """
    target = Target(name, classifier, model_sha256(classifier), Path())
    samples = samples_from(images, labels)
    report = run_battery(target, samples, names, threats, seed=seed, batch_size=batch_size)
    x, y = samples.batch(spread(len(samples), _CHECKED_IMAGES), target.device)
    checks = (check_model(classifier, x, y, **vars(threat), needs_gradient=False) for threat in report.worst)
    return replace(report, findings=tuple(dict.fromkeys(line for found in checks for line in found.warnings)))


def write_reports(path: Path, reports: Sequence[RobustnessReport]) -> None:
    """Write the figures of the reports as one JSON file, atomically."""
    write_json(path, {"format": 1, "reports": [report.figures() for report in reports]})
