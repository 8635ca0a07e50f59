"""One run directory as a study of one cell: its attacks as tables, and sentences that say what they mean."""

from collections.abc import Sequence
from typing import Any

from envs.errors import InputError
from eval.attack.results import AttackResults, parse_results, worst_case
from eval.core.formatting import attack_label, percent
from eval.core.threats import Threat
from eval.report.audits import Audit
from eval.report.model import Model, read_model
from eval.report.safe_folder import Folder
from eval.report.schema import Fields, flatten
from eval.report.study_file import Cell, Column, Entry, Study, Table

_COLUMNS = (
    Column("threat", "threat"),
    Column("attack", "attack"),
    Column("protocol", "protocol"),
    Column("robust", "robust", "percent"),
    Column("shortened", "steps shortened", "percent"),
    Column("queries", "queries / image", "number"),
    Column("seconds", "seconds", "number"),
    Column("n", "images", "integer"),
)
_WORST = (
    Column("threat", "threat"),
    Column("clean", "clean", "percent"),
    Column("robust", "robust, worst case", "percent"),
    Column("attacks", "attacks", "integer"),
    Column("n", "images", "integer"),
)


def read_run(folder: Folder) -> tuple[Study, Model]:
    """Return a run directory as a study, and its model.

    Raises:
        InputError: the configuration is missing or damaged.
    """
    config = Fields(folder.json("config.json"), "config.json")
    dataset = Fields(config.mapping("dataset"), "config.json: dataset")
    group = (dataset.text("name"), config.text("network"), config.text("algo"))
    name = folder.path.resolve().name
    cell = Cell(name, "", group, config.text("seed"), (), "finished", "", "", "results/mechanism/gallery.npz")
    model = read_model(folder, cell)
    results = _read_results(folder, model)
    worst = _worst_cases(results)
    study = Study(
        name=name,
        versions=flatten(config.mapping("versions")),
        machine={"device": model.cost.device} if model.cost.device else {},
        cells=(cell,),
        tables=tuple(table for table in (_worst_table(worst), _attack_table(results)) if table.rows),
        reading=tuple(_reading(model, results, worst)),
    )
    return study, model


def _read_results(folder: Folder, model: Model) -> list[AttackResults]:
    """Return the outcomes of attacks among the result files; damaged ones become problems of the model."""
    found = []
    for name in folder.names("results", ".json"):
        content: Any = model.attempt(folder.json, name)
        if isinstance(content, dict) and isinstance(content.get("attack"), dict):
            result = model.attempt(parse_results, content, name)
            if result is not None:
                found.append(result)
    return sorted(
        found, key=lambda result: (result.threat.norm != "Linf", result.threat.norm, result.threat.eps)
    )


def _worst_cases(results: Sequence[AttackResults]) -> list[tuple[AttackResults, int]]:
    """Return the worst case per image over all attacks on the same weights, images and threat, and their number."""
    groups: dict[Any, list[AttackResults]] = {}
    for result in filter(lambda found: found.in_box, results):
        images = (result.data.get("fingerprint"), tuple(result.indices.tolist()))
        groups.setdefault((result.threat, result.model.get("sha256"), images), []).append(result)
    cases = []
    for group in groups.values():
        try:
            cases.append((worst_case(group), len(group)))
        except (InputError, KeyError):  # without hash of the weights nothing says that they belong together
            continue
    return cases


def _robust(result: AttackResults) -> Entry:
    return Entry(result.robust_accuracy, *result.interval, result.n)


def _attack_table(results: Sequence[AttackResults]) -> Table:
    rows = tuple(
        (
            Entry(str(result.threat)),
            Entry(attack_label(result)),
            Entry(_protocol(result)),
            _robust(result),
            Entry(result.shortened if result.threat.norm == "L2" else None),
            Entry(float(result.queries.mean())),
            Entry(float(result.cost.get("seconds", 0.0))),
            Entry(float(result.n)),
        )
        for result in results
    )
    note = "Share of images that stay correctly classified, with Wilson's 95 % interval over images."
    return Table("attacks", "Attacks", _COLUMNS, rows, note)


def _protocol(result: AttackResults) -> str | None:
    found = result.attack.get("protocol") or result.attack.get("version")
    text = "+".join(map(str, found)) if isinstance(found, list) else found and str(found)
    return text if result.in_box else f"{text}, may leave [0, 1]"


def _worst_table(worst: Sequence[tuple[AttackResults, int]]) -> Table:
    rows = tuple(
        (
            Entry(str(case.threat)),
            Entry(case.clean_accuracy),
            _robust(case),
            Entry(float(k)),
            Entry(float(case.n)),
        )
        for case, k in worst
    )
    note = "An image counts as robust only if no attack of the table below broke it."
    return Table("worst", "Worst case per image", _WORST, rows, note)


def _reading(
    model: Model, results: Sequence[AttackResults], worst: Sequence[tuple[AttackResults, int]]
) -> list[str]:
    lines = []
    if model.clean is not None:
        lines.append(f"Unattacked, {percent(model.clean)} of the test images are classified correctly.")
    for case, number in worst:
        low, high = (percent(bound) for bound in case.interval)
        lines.append(
            f"Under {case.threat}, {percent(case.robust_accuracy)} of {case.n} images (95 %: {low} to {high}) resist "
            f"every one of {number} attack{'s' if number != 1 else ''}; more attacks can only lower this."
        )
    lines += _floor_lines(results)
    lines += [_audit_line(audit) for audit in model.audits]
    return lines


def _floor_lines(results: Sequence[AttackResults]) -> list[str]:
    """Return one sentence per threat where PGD ran under both protocols: what the step floor hides."""
    pairs: dict[Threat, dict[str, AttackResults]] = {}
    for result in results:
        attack = result.attack
        if attack["name"] == "pgd" and attack.get("loss", "ce") == "ce" and result.in_box:
            pairs.setdefault(result.threat, {})[str(attack.get("protocol"))] = result
    return [
        f"Under {threat}, PGD with cleverhans' steps leaves {percent(pair['cleverhans'].robust_accuracy)}, "
        f"with steps of full length {percent(pair['normalized'].robust_accuracy)}; the floor shortened "
        f"{percent(pair['cleverhans'].shortened)} of the steps."
        for threat, pair in pairs.items()
        if threat.norm == "L2" and {"cleverhans", "normalized"} <= pair.keys()
    ]


def _audit_line(audit: Audit) -> str:
    return (
        f"The audit under {audit.threat} says {audit.headline}: PGD on the cross-entropy claims "
        f"{percent(audit.claimed)}, the worst case of all attacks is {percent(audit.robust)}."
    )
