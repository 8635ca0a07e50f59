"""A single run as a study of one cell: its attacks as tables, and conclusions in sentences."""

from collections.abc import Iterator, Sequence
from typing import Any

from eval.attack.labels import attack_label, protocol_label
from eval.attack.results import AttackResults, parse_results
from eval.core.formatting import percent
from eval.core.records import FORMAT
from eval.core.threats import Threat
from eval.core.worst_cases import in_order, worst_cases
from eval.report.cell_format import flatten
from eval.report.model import Model, RunConfig, read_model
from eval.report.opening import Gap
from eval.report.safe_folder import Folder
from eval.study.results.record import CellRecord, Measured, StudyRecord, Table, columns

_ATTACKS = (
    *columns(threat="threat", attack="attack", protocol="protocol"),
    *columns("percent", robust="robust", shortened="steps shortened"),
    *columns("number", queries="queries / image", seconds="seconds"),
    *columns("integer", n="images"),
)
_WORST = (
    *columns(threat="threat"),
    *columns("percent", clean="clean", robust="robust, worst case"),
    *columns("integer", attacks="attacks", n="images"),
)
_Protocols = dict[Threat, dict[str, AttackResults]]  # by threat model and protocol
_Worst = Sequence[tuple[AttackResults, int]]


def read_run(folder: Folder) -> tuple[StudyRecord, Model, list[Gap]]:
    """Return a run directory as a study, its model, and what the paper's protocol reports against what is left.

    Raises InputError where the configuration is missing or damaged.
    """
    config = folder.record("config.json", RunConfig)
    name = folder.path.resolve().name
    place: dict[str, Any] = {"dataset": config.dataset.name, "network": config.network, "regime": config.algo}
    model = read_model(folder, CellRecord(id=name, seed=config.seed, status="finished", **place))
    results, device = _read_results(folder, model), model.summary.device
    worst = worst_cases(results)
    protocols: _Protocols = {}  # PGD on the cross-entropy
    for result in results:
        attack = result.attack
        if attack["name"] == "pgd" and attack.get("loss", "ce") == "ce" and result.in_box:
            protocols.setdefault(result.threat, {})[str(attack.get("protocol"))] = result
    study = StudyRecord(
        format=FORMAT,
        name=name,
        versions=flatten(config.versions),
        machine={"device": device} if device else {},
        cells=(model.cell,),
        tables=tuple(_tables(worst, results)),
        claims=tuple(_claims(model, protocols, worst)),
    )
    gaps = []
    for case, number in worst:
        reported = protocols.get(case.threat, {}).get("cleverhans")
        if reported is not None and number > 1:
            accuracies = (reported.robust_accuracy, _robust(case), case.clean_accuracy)
            gaps.append(Gap(config.algo, str(case.threat), *accuracies))
    return study, model, gaps


def _read_results(folder: Folder, model: Model) -> list[AttackResults]:
    """Return the outcomes of attacks among the result files; damaged ones become problems of the model."""
    found = []
    for name in folder.names("results", ".json"):
        content = model.attempt(folder.record, name, dict[str, Any])
        if content is not None and isinstance(content.get("attack"), dict):
            found.append(model.attempt(parse_results, content, name))
    return in_order([result for result in found if result is not None])


def _robust(result: AttackResults) -> Measured:
    return Measured(result.robust_accuracy, *result.interval, result.n)


def _tables(worst: _Worst, results: Sequence[AttackResults]) -> Iterator[Table]:
    """Yield the tables of worst cases and of attacks, those that have rows."""
    cases: list[dict[str, Any]] = [
        {"threat": str(case.threat), "attacks": number, "n": case.n}
        | {"clean": case.clean_accuracy, "robust": _robust(case)}
        for case, number in worst
    ]
    if cases:
        note = "An image counts as robust only if no attack of the table below broke it."
        yield Table("worst", "Worst case per image", note, _WORST, tuple(cases))
    rows: list[dict[str, Any]] = [
        {"threat": str(result.threat), "attack": attack_label(result), "protocol": protocol_label(result)}
        | {
            "robust": _robust(result),
            "shortened": result.shortened_l2,
            "queries": float(result.queries.mean()),
        }
        | {"seconds": float(result.cost.get("seconds", 0.0)), "n": result.n}
        for result in results
    ]
    if rows:
        note = "Share of images that are still classified correctly, with Wilson's 95 % interval over images."
        yield Table("attacks", "Attacks", note, _ATTACKS, tuple(rows))


def _claims(model: Model, protocols: _Protocols, worst: _Worst) -> list[str]:
    lines = []
    for case, number in worst:
        low, high = (percent(bound) for bound in case.interval)
        lines.append(
            f"Under {case.threat}, {percent(case.robust_accuracy)} of {case.n} images (95 %: {low} to {high}) resist "
            f"every one of {number} attack{'s' if number != 1 else ''}; more attacks can only lower this."
        )
    lines += [
        f"Under {threat}, PGD with cleverhans' steps leaves {percent(pair['cleverhans'].robust_accuracy)}, "
        f"with steps of full length {percent(pair['normalized'].robust_accuracy)}; the floor shortened "
        f"{percent(pair['cleverhans'].shortened)} of the steps."
        for threat, pair in protocols.items()
        if threat.norm == "L2" and {"cleverhans", "normalized"} <= pair.keys()
    ]
    return lines + [
        f"The audit under {audit.threat} says {audit.headline}: PGD on the cross-entropy claims "
        f"{percent(audit.claimed_accuracy)}, the worst case of all attacks is {percent(audit.robust_accuracy)}."
        for audit in model.audits
    ]
