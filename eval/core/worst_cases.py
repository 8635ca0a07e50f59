"""Which of a model's result files belong together, and their worst cases per image."""

from collections.abc import Sequence
from typing import Any

from envs.errors import InputError
from eval.attack.results import AttackResults, worst_case


def worst_cases(results: Sequence[AttackResults]) -> list[tuple[AttackResults, int]]:
    """Return the worst case over all attacks on the same weights, images and threat model, and the attacks' number.

    Attacks that may leave [0, 1] say nothing of robust accuracy and are left out.
    """
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


def in_order(results: Sequence[AttackResults]) -> list[AttackResults]:
    """Return results by threat model: Linf first, then by norm and radius."""
    return sorted(results, key=lambda item: (item.threat.norm != "Linf", item.threat.norm, item.threat.eps))
