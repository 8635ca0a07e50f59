"""What result files say of an exported model's robustness, and RobustBench's description of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from envs.errors import InputError
from eval.attack.labels import attack_label, protocol_label
from eval.attack.results import AttackResults, read_results
from eval.audit.audit_file import AuditFile
from eval.core.records import read_record
from eval.core.targets import Samples, Target
from eval.core.threats import Threat, format_eps
from eval.core.worst_cases import in_order, worst_cases

_AUTOATTACK = ("standard", "plus")  # RobustBench reports the standard version; plus contains it


@dataclass(frozen=True)
class Evaluation:
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


def model_info(
    target: Target, samples: Samples, found: Evaluation, threat: Threat, config: dict[str, Any]
) -> dict[str, Any]:
    """Return RobustBench's description of a model under one threat model, with our numbers under ``labelbandit``.

    What is not known is None. ``autoattack_acc`` is filled from AutoAttack's standard version (or ``plus``) alone, in
    percent; the best evidence otherwise is ``labelbandit.worst_case``. Keys as in RobustBench's ``model_info`` folder.

    Args:
        target: the model.
        samples: images that it was compared on, of the data set.
        found: its evaluation.
        threat: norm and radius.
        config: the run's settings; empty for a model from elsewhere.
    """
    attacks = [result for result in found.attacks if result.threat == threat]
    worst = [(case, number) for case, number in found.worst if case.threat == threat]
    auto = (result for result in attacks if result.attack["name"] == "autoattack")
    known = (result for result in auto if result.attack.get("version") in _AUTOATTACK)
    best = max(known, key=lambda result: result.n, default=None)
    most = max(attacks, key=lambda result: result.n, default=None)
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
        "clean_acc": None if most is None else _percent((best or most).clean_accuracy),
        "reported": None,
        "autoattack_acc": None if best is None else _percent(best.robust_accuracy),
        "labelbandit": {
            "norm": threat.norm,
            "sha256": target.sha256,
            "data": samples.record(),
            "attacks": [_row(result) | {"attack": result.attack} for result in attacks],
            "worst_case": [_row(case) | {"attacks": number} for case, number in worst],
            "audits": [
                {"verdict": str(audit.verdict), "robust_accuracy": audit.robust_accuracy, "n": audit.n}
                for audit in found.audits
                if audit.threat == threat
            ],
        },
    }


def _percent(share: float) -> str:
    return f"{100 * share:.2f}"


def _row(result: AttackResults) -> dict[str, Any]:
    return {
        "label": attack_label(result),
        "protocol": protocol_label(result),
        "n": result.n,
        "clean_accuracy": result.clean_accuracy,
        "robust_accuracy": result.robust_accuracy,
        "ci95": list(result.interval),
    }


def info_file(threat: Threat) -> Path:
    """Return the name of the file of `model_info` for a threat model."""
    return Path(f"model_info-{threat.norm}-{threat.eps:.4g}.json")
