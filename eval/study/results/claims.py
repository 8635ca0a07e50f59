"""Which of the paper's claims hold under which protocol, as sentences computed from the results."""

from collections.abc import Iterator, Sequence
from itertools import product

from eval.core.formatting import percent
from eval.core.stats import known_mean
from eval.core.threats import Threat
from eval.study.results.overview import Group, Overview, clean, outcome, survives
from eval.study.results.statistics import Comparison, Outcomes, compare, compare_pairs, rate_of
from eval.study.results.tables import indicator, transfer_rates

_LEVEL = 0.05
_ALIKE = 0.05  # relative difference up to which indicators count as the same


def all_sentences(overview: Overview) -> list[str]:
    """Return what the study says: one sentence per claim, protocol and threat model."""
    several = len(overview.groups) > 1
    heads = {group: f"{', '.join(group)}: " if several else "" for group in overview.groups}
    return [head + line for group, head in heads.items() for line in _Reader(overview, group).sentences()]


class _Reader:
    def __init__(self, overview: Overview, group: Group) -> None:
        self.overview, self.group, self.grid = overview, group, overview.grid
        self.regimes = overview.regimes(group)

    def sentences(self) -> Iterator[str]:
        if {"SL", "RL"} <= self.regimes.keys():
            yield from self._robustness("RL", "SL")
            yield from self._clean_cost()
            yield from self._transfer("SL", "RL")
            yield from self._gradients()
        if {"SL-adv", "RL-adv"} <= self.regimes.keys():
            yield from self._robustness("RL-adv", "SL-adv")
        yield from self._audits()

    def _robustness(self, first: str, second: str) -> Iterator[str]:
        """Read "the first regime resists better than the second" under every protocol of the study."""
        floored = [attack.name for attack in self.grid.attacks if attack.cleverhans]
        for threat in self.grid.threats:
            measures = [(attack.name, outcome(threat, attack.name)) for attack in self.grid.attacks]
            for name, measure in (*measures, ("the worst case of all attacks", survives(threat))):
                ours, theirs = (rate_of(self.regimes[regime], measure) for regime in (first, second))
                found = compare(self.regimes[first], self.regimes[second], measure)
                if ours is None or theirs is None or found is None:
                    continue
                share = None
                if name in floored:
                    share = known_mean(
                        item.attacks[threat][name].shortened_l2 for item in self.regimes[first]
                    )
                shortened = "" if share is None else f", {percent(share)} of the steps on {first} shortened"
                yield (
                    f"{first} resists better than {second} under {name} ({threat}): {verdict(found)}; "
                    f"{percent(ours.mean)} against {percent(theirs.mean)}{shortened} ({_p_values(found)})."
                )

    def _clean_cost(self) -> Iterator[str]:
        found = compare(self.regimes["SL"], self.regimes["RL"], clean)
        if found is not None:
            points = 100 * found.difference
            yield (
                f"RL's clean accuracy on the attacked images is {points:.1f} points below SL's, "
                f"{'within' if 3 <= points <= 5 else 'outside'} the paper's 3 to 5 ({_p_values(found)})."
            )

    def _transfer(self, source: str, target: str) -> Iterator[str]:
        """Read whether images made on the source hurt the target: more than the reverse, and more than its own do."""
        ways = {
            f"those made on {target} hurt {source}": (target, source),
            f"those made on {target} itself": (target, target),
        }
        for threat, craft in product(self.grid.threats, self.grid.transfer.crafts):
            rates = transfer_rates(self.overview, self.group, craft, threat)
            for words, other in ways.items():
                found = compare_pairs(self._shown((other, (source, target)), craft, threat))
                first, second = rates[source, target][0], rates[other][0]
                if found is not None and first is not None and second is not None:
                    yield (
                        f"Images made on {source} hurt {target} more than {words} ({craft}, {threat}): "
                        f"{verdict(found)}; they leave {percent(first.mean)} and {percent(second.mean)} "
                        f"({_p_values(found)})."
                    )

    def _shown(
        self, pairs: Sequence[tuple[str, str]], craft: str, threat: Threat
    ) -> list[tuple[Outcomes, ...]]:
        """Return, seed by seed, the outcomes of (source, target) pairs of regimes, where all are known."""
        found: list[dict[int, Outcomes]] = []
        for source, target in pairs:
            makers = {item.cell.seed: item.cell for item in self.regimes[source]}
            tried = {item.cell.seed: item for item in self.regimes[target] if item.cell.seed in makers}
            rows = {seed: item.shown(makers[seed], craft, threat) for seed, item in tried.items()}
            found.append({seed: row for seed, row in rows.items() if row is not None})
        return [tuple(rows[seed] for rows in found) for seed in sorted(set.intersection(*map(set, found)))]

    def _gradients(self) -> Iterator[str]:
        for name, label in (("gradient_norm", "input-gradient norm"), ("path_cosine", "cosine along PGD")):
            supervised, reinforced = (
                known_mean(indicator(item, name) for item in self.regimes[key]) for key in ("SL", "RL")
            )
            if supervised is not None and reinforced is not None:
                size = "smaller than" if reinforced < supervised else "larger than"
                if abs(reinforced - supervised) <= _ALIKE * abs(supervised):
                    size = "about the same as"
                yield (
                    f"RL's {label} is {size} SL's ({reinforced:.3g} against {supervised:.3g}, "
                    "medians over images, means over seeds); the paper says smaller."
                )

    def _audits(self) -> Iterator[str]:
        for regime, item in ((regime, item) for regime, found in self.regimes.items() for item in found):
            for threat, audit in item.audits.items():
                if audit.claimed_accuracy is not None and audit.robust_accuracy is not None:
                    gap = 100 * (audit.claimed_accuracy - audit.robust_accuracy)
                    yield (
                        f"Audit of {regime}, seed {item.cell.seed} ({threat}): {audit.headline}; PGD on the "
                        f"cross-entropy claims {gap:.1f} points more than the worst case leaves."
                    )


def verdict(found: Comparison) -> str:
    """Return whether "the first has the higher accuracy" holds: over images, and over seeds where there are several.

    What differs over images alone is said of the trainings of the study and of no others.
    """
    if found.p_images >= _LEVEL:
        return "not decided"
    word = "holds" if found.difference > 0 else "does not hold, the reverse does"
    if found.p_seeds is None:
        return f"{word} for these trainings"
    return f"{word} for these trainings, not decided for others" if found.p_seeds >= _LEVEL else word


def _p_values(found: Comparison) -> str:
    over_seeds = "" if found.p_seeds is None else f", over seeds p = {found.p_seeds:.2g}"
    return f"over images p = {found.p_images:.2g}{over_seeds}"
