"""Which of the paper's claims hold under which protocol, as sentences computed from the results."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from eval.core.formatting import percent
from eval.core.stats import known_mean
from eval.core.threats import Threat
from eval.study.results.cell_results import CellResult
from eval.study.results.model_tables import indicator, transfer_rates
from eval.study.results.overview import Group, Overview, clean, is_cleverhans, outcome, survives
from eval.study.results.statistics import Comparison, Measure, Outcomes, compare, compare_pairs, rate_of

_LEVEL = 0.05
_ALIKE = 0.05  # relative difference up to which indicators count as the same


def all_sentences(overview: Overview) -> list[str]:
    """Return what the study says: one sentence per claim, protocol and threat model."""
    return [sentence for group in overview.groups for sentence in _Reader(overview, group).sentences()]


@dataclass(frozen=True)
class _Reader:
    overview: Overview
    group: Group

    def sentences(self) -> Iterator[str]:
        regimes = self.overview.regimes(self.group)
        several = len(self.overview.groups) > 1
        head = f"{', '.join(self.group)}: " if several else ""
        for sentence in self._claims(set(regimes)):
            yield head + sentence

    def _claims(self, known: set[str]) -> Iterator[str]:
        if {"SL", "RL"} <= known:
            yield from self._robustness("RL", "SL")
            yield from self._clean_cost()
            yield from self._transfer("SL", "RL")
            yield from self._gradients()
        if {"SL-adv", "RL-adv"} <= known:
            yield from self._robustness("RL-adv", "SL-adv")
        yield from self._audits()

    def _robustness(self, first: str, second: str) -> Iterator[str]:
        """Read "the first regime resists better than the second" under every protocol of the study."""
        for threat in self.overview.grid.threats:
            for attack in self.overview.grid.attacks:
                yield from self._claim(first, second, threat, attack.name, outcome(threat, attack.name))
            yield from self._claim(first, second, threat, "the worst case of all attacks", survives(threat))

    def _claim(self, first: str, second: str, threat: Threat, name: str, measure: Measure) -> Iterator[str]:
        regimes = self.overview.regimes(self.group)
        ours, theirs = (rate_of(regimes[regime], measure) for regime in (first, second))
        found = compare(regimes[first], regimes[second], measure)
        if ours is None or theirs is None or found is None:
            return
        yield (
            f"{first} resists better than {second} under {name} ({threat}): {verdict(found)}; "
            f"{percent(ours.mean)} against {percent(theirs.mean)}{self._share(first, threat, name)} "
            f"({_p_values(found)})."
        )

    def _share(self, regime: str, threat: Threat, name: str) -> str:
        """Name the share of shortened steps where the protocol has a floor."""
        if name not in [item.name for item in self.overview.grid.attacks if is_cleverhans(item)]:
            return ""
        found = (item.attacks[threat][name] for item in self.overview.regimes(self.group)[regime])
        share = known_mean(result.shortened_l2 for result in found)
        return "" if share is None else f", {percent(share)} of the steps on {regime} shortened"

    def _clean_cost(self) -> Iterator[str]:
        regimes = self.overview.regimes(self.group)
        found = compare(regimes["SL"], regimes["RL"], clean)
        if found is not None:
            points = 100 * found.difference
            fits = "within" if 3 <= points <= 5 else "outside"
            yield (
                f"RL's clean accuracy on the attacked images is {points:.1f} points below SL's, {fits} the paper's "
                f"3 to 5 ({_p_values(found)})."
            )

    def _transfer(self, source: str, target: str) -> Iterator[str]:
        """Read whether images made on the source hurt the target: more than the reverse, and more than its own do."""
        regimes = self.overview.regimes(self.group)
        ways = (
            (f"those made on {target} hurt {source}", (target, source)),
            (f"those made on {target} itself", (target, target)),
        )
        for threat in self.overview.grid.threats:
            for craft in self.overview.grid.transfer.crafts:
                rates = transfer_rates(self.overview, self.group, craft, threat)
                for words, other in ways:
                    found = compare_pairs(_shown(regimes, (other, (source, target)), craft, threat))
                    first, second = rates[source, target][0], rates[other][0]
                    if found is not None and first is not None and second is not None:
                        yield (
                            f"Images made on {source} hurt {target} more than {words} ({craft}, {threat}): "
                            f"{verdict(found)}; they leave {percent(first.mean)} and {percent(second.mean)} "
                            f"({_p_values(found)})."
                        )

    def _gradients(self) -> Iterator[str]:
        regimes = self.overview.regimes(self.group)
        for name, label in (("gradient_norm", "input-gradient norm"), ("path_cosine", "cosine along PGD")):
            medians = (known_mean(indicator(item, name) for item in regimes[key]) for key in ("SL", "RL"))
            supervised, reinforced = medians
            if supervised is not None and reinforced is not None:
                yield (
                    f"RL's {label} is {_size(reinforced, supervised)} SL's ({reinforced:.3g} against {supervised:.3g}, "
                    "medians over images, means over seeds); the paper says smaller."
                )

    def _audits(self) -> Iterator[str]:
        for regime, found in self.overview.regimes(self.group).items():
            for item in found:
                for threat, audit in item.audits.items():
                    if audit.claimed_accuracy is None or audit.robust_accuracy is None:
                        continue
                    gap = 100 * (audit.claimed_accuracy - audit.robust_accuracy)
                    yield (
                        f"Audit of {regime}, seed {item.cell.seed} ({threat}): {audit.headline}; PGD on the "
                        f"cross-entropy claims {gap:.1f} points more than the worst case leaves."
                    )


def _shown(
    regimes: Mapping[str, Sequence[CellResult]],
    pairs: Sequence[tuple[str, str]],
    craft: str,
    threat: Threat,
) -> list[tuple[Outcomes, ...]]:
    """Return, seed by seed, the outcomes of (source, target) pairs of regimes, where all are known."""
    found: list[dict[int, Outcomes]] = []
    for source, target in pairs:
        makers = {item.cell.seed: item.cell for item in regimes[source]}
        tried = {item.cell.seed: item for item in regimes[target] if item.cell.seed in makers}
        rows = {seed: item.shown(makers[seed], craft, threat) for seed, item in tried.items()}
        found.append({seed: row for seed, row in rows.items() if row is not None})
    return [tuple(rows[seed] for rows in found) for seed in sorted(set.intersection(*map(set, found)))]


def _size(value: float, reference: float) -> str:
    if abs(value - reference) <= _ALIKE * abs(reference):
        return "about the same as"
    return "smaller than" if value < reference else "larger than"


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
