"""What is said of an exported model: ``README.md`` as Hugging Face shows it, and RobustBench's description."""

import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from envs.errors import InputError
from eval.attack.labels import attack_label, protocol_label
from eval.attack.results import AttackResults, read_results
from eval.audit.findings import AuditFile
from eval.core.formatting import percent, templates, with_interval
from eval.core.records import read_record
from eval.core.targets import Samples, Target
from eval.core.threats import Threat, format_eps
from eval.core.worst_cases import in_order, worst_cases

CARD = "README.md"
_AUTOATTACK = ("standard", "plus")  # RobustBench reports the standard version; plus contains it
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]{0,60}")
_HUB = {  # data sets that Hugging Face has
    "mnist": "ylecun/mnist",
    "fashion-mnist": "zalando-datasets/fashion_mnist",
    "cifar10": "uoft-cs/cifar10",
    "cifar100": "uoft-cs/cifar100",
}


class Evaluation(NamedTuple):
    """Attacks, worst cases (with the number of attacks) and audits of one model's weights on one data set."""

    attacks: Sequence[AttackResults]
    worst: Sequence[tuple[AttackResults, int]]
    audits: Sequence[AuditFile]

    @property
    def threats(self) -> list[Threat]:
        """The threat models that an attack was run under."""
        return list(dict.fromkeys(result.threat for result in self.attacks))


def find_evaluation(target: Target, samples: Samples) -> Evaluation:
    """Return what the result files of a target say of exactly these weights and this data set; others are left out."""
    attacks, audits = [], []
    for path in sorted(target.results_dir.glob("*.json")) if target.results_dir.is_dir() else ():
        try:
            if path.name.startswith("audit-"):
                audit = read_record(path, AuditFile)
                if audit.model.get("sha256") == target.sha256:
                    audits.append(audit)
                continue
            found = read_results(path)
        except InputError:  # other JSON may lie there, and a card names only what it can read
            continue
        if (found.model["sha256"], found.data.get("fingerprint")) == (target.sha256, samples.fingerprint):
            attacks.append(found)
    attacks = in_order(attacks)
    return Evaluation(attacks, worst_cases(attacks), audits)


def check_license(name: str | None) -> None:
    """Raise an InputError unless ``name`` can be the identifier of a licence on Hugging Face."""
    if name is not None and not _LICENSE.fullmatch(name):
        expected = "expected an identifier in lower case such as mit, apache-2.0, cc-by-4.0 or other"
        raise InputError(f"--license is {name!r}; {expected}")


def model_card(
    target: Target,
    samples: Samples,
    found: Evaluation,
    *,
    about: dict[str, Any],
    config: dict[str, Any],
    license: str | None = None,
) -> str:
    """Return the card in Markdown, its front matter in YAML.

    Args:
        target: the model.
        samples: images that the files were compared on.
        found: what is known of its robustness.
        about: the content of ``model.json``.
        config: the run's settings; empty for a model from elsewhere.
        license: identifier, None where the user names none: then the card has no such field.
    """
    rows = [_cells(attack_label(result), protocol_label(result), result) for result in found.attacks]
    for case, number in found.worst:
        if number > 1:
            rows.append(_cells(f"**worst case per image** of {number} attacks", "-", case))
    fields: dict[str, Any] = {} if license is None else {"license": license}
    training = [str(config["algo"])] if config.get("algo") else []
    tags = ["adversarial-robustness", "image-classification", "labelbandit", *training]
    fields |= {"library_name": "pytorch", "pipeline_tag": "image-classification", "tags": tags}
    fields |= _measurements(target, samples, found, about)
    environment = templates("eval.export", autoescape=False, keep_trailing_newline=True)
    return environment.get_template("card.md.j2").render(
        # JSON's texts, lists and objects are YAML's, too
        front=[f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in fields.items()],
        about=about,
        config=config,
        data=samples,
        rows=rows,
        audits=found.audits,
        protocols={result.attack.get("protocol") for result in found.attacks},
        attacks={result.attack["name"] for result in found.attacks},
        outside=any(not result.in_box for result in found.attacks),
    )


def _cells(label: str, protocol: str, result: AttackResults) -> Sequence[str]:
    robust = with_interval(result.robust_accuracy, result.interval)
    cells = (str(result.threat), label, protocol, str(result.n), percent(result.clean_accuracy), robust)
    return [cell.replace("|", r"\|") for cell in cells]


def _measurements(
    target: Target, samples: Samples, found: Evaluation, about: dict[str, Any]
) -> dict[str, Any]:
    """Return the fields of the front matter that say what was measured, and on which data set."""
    metrics = [{"type": "accuracy", "name": "accuracy, unattacked", "value": about["check"]["accuracy"]}]
    for case, number in found.worst:
        name = f"robust accuracy, {case.threat}, worst case of {number} attacks"
        metrics.append({"type": "accuracy", "name": name, "value": case.robust_accuracy})
    dataset = {"name": samples.name, "type": _HUB.get(samples.name, samples.name), "split": samples.split}
    results = [{"task": {"type": "image-classification"}, "dataset": dataset, "metrics": metrics}]
    known = {"datasets": [_HUB[samples.name]]} if samples.name in _HUB else {}
    return {**known, "metrics": ["accuracy"], "model-index": [{"name": target.name, "results": results}]}


def model_info(
    target: Target, samples: Samples, found: Evaluation, threat: Threat, config: dict[str, Any]
) -> dict[str, Any]:
    """Return RobustBench's description of a model under one threat model, with our numbers under ``labelbandit``.

    What is not known is None. ``autoattack_acc`` is filled from AutoAttack's standard version (or ``plus``) alone, in
    percent; the best evidence otherwise is ``labelbandit.worst_case``. Keys as in RobustBench's ``model_info`` folder;
    arguments as `model_card`.
    """
    attacks = [result for result in found.attacks if result.threat == threat]
    auto = (result for result in attacks if result.attack["name"] == "autoattack")
    known = (result for result in auto if result.attack.get("version") in _AUTOATTACK)
    best = max(known, key=lambda result: result.n, default=None)
    most = best or max(attacks, key=lambda result: result.n, default=None)
    worst = [_row(case) | {"attacks": number} for case, number in found.worst if case.threat == threat]
    audits = [audit for audit in found.audits if audit.threat == threat]
    return {
        "link": None,
        "name": target.name,
        "authors": None,
        "additional_data": bool(config.get("pretrained")) if config else None,
        "number_forward_passes": 1,
        "dataset": samples.name,
        "venue": None,
        "architecture": config.get("network"),
        "eps": format_eps(threat.eps),
        "clean_acc": None if most is None else f"{100 * most.clean_accuracy:.2f}",
        "reported": None,
        "autoattack_acc": None if best is None else f"{100 * best.robust_accuracy:.2f}",
        "labelbandit": {
            "norm": threat.norm,
            "sha256": target.sha256,
            "data": samples.record(),
            "attacks": [_row(result) | {"attack": result.attack} for result in attacks],
            "worst_case": worst,
            "audits": [
                {"verdict": str(audit.verdict), "robust_accuracy": audit.robust_accuracy, "n": audit.n}
                for audit in audits
            ],
        },
    }


def _row(result: AttackResults) -> dict[str, Any]:
    return {
        "label": attack_label(result),
        "protocol": protocol_label(result),
        "n": result.n,
        "clean_accuracy": result.clean_accuracy,
        "robust_accuracy": result.robust_accuracy,
        "ci95": list(result.interval),
    }
