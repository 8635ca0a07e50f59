"""Accuracies with intervals from per-image outcomes over seeds, and paired tests between regimes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from envs.errors import InputError
from eval.core.stats import mean_interval, wilson
from eval.study.results.cell_results import CellResult
from eval.study.results.record import Measured

Outcomes = NDArray[np.bool_]
Measure = Callable[[CellResult], Outcomes | None]


@dataclass(frozen=True)
class Rate:
    """The mean of a share over seeds.

    Attributes:
        images: Wilson's 95 % interval for the images at the mean. The seeds meet the same images, so n is the number
            of images: what the interval says of other images holds for these trainings.
        seeds: Student's 95 % t-interval over seeds, cut to [0, 1]; None for one seed. What it says of other
            trainings holds for these images.
        n: images; trainings: seeds.
    """

    mean: float
    images: tuple[float, float]
    seeds: tuple[float, float] | None
    n: int
    trainings: int

    def entry(self) -> Measured:
        """Return value and interval over images, for a table."""
        return Measured(self.mean, *self.images, self.n)


def rate(outcomes: Sequence[Outcomes]) -> Rate:
    """Return the rate of True over trainings, (n,) bool each, on the same images; InputError where they are not."""
    if not outcomes or len({len(row) for row in outcomes}) != 1:
        problem = "cannot average outcomes of different numbers of images, or none"
        raise InputError(f"{problem}; run the study again")
    n, trainings = len(outcomes[0]), len(outcomes)
    mean, spread, _ = mean_interval([float(row.mean()) for row in outcomes])
    images = wilson(sum(int(row.sum()) for row in outcomes) / trainings, n)
    seeds = None if spread is None else (max(0.0, spread.low), min(1.0, spread.high))
    return Rate(mean, images, seeds, n, trainings)


def rate_of(results: Sequence[CellResult], measure: Measure) -> Rate | None:
    """Return the rate of a measure over those results that have it; None if none has."""
    rows = [row for item in results if (row := measure(item)) is not None]
    return rate(rows) if rows else None


@dataclass(frozen=True)
class Comparison:
    """Two regimes on the same images and seeds.

    Attributes:
        difference: mean of the first less that of the second.
        only_first, only_second: (seed, image) pairs on which one alone is right.
        p_images: of the sign-flip test over images.
        p_seeds: of the paired t-test over seeds; None for one seed.
        seeds: in common.
    """

    difference: float
    only_first: int
    only_second: int
    p_images: float
    p_seeds: float | None
    seeds: int


def compare(first: Sequence[CellResult], second: Sequence[CellResult], measure: Measure) -> Comparison | None:
    """Compare two regimes on the seeds that both have; None where there is none."""
    ours, theirs = (
        {item.cell.seed: row for item in found if (row := measure(item)) is not None}
        for found in (first, second)
    )
    return compare_pairs([(row, theirs[seed]) for seed, row in ours.items() if seed in theirs])


def compare_pairs(pairs: Sequence[tuple[Outcomes, ...]]) -> Comparison | None:
    """Compare pairs of outcomes on the same images, one pair per seed; None where there is none."""
    if not pairs:
        return None
    a, b = (np.stack(rows).astype(np.int64) for rows in zip(*pairs, strict=True))
    difference = a - b
    only_first, only_second = int((difference > 0).sum()), int((difference < 0).sum())
    p_values = (sign_flip_test(difference.sum(0)), paired_t_test(difference.mean(1)))
    return Comparison(float(difference.mean()), only_first, only_second, *p_values, len(pairs))


def sign_flip_test(differences: NDArray[np.int64]) -> float:
    """Return the exact two-sided p-value that the sum of per-image differences, (n,), is as far from 0 by chance.

    If two regimes were alike, an image's difference, summed over seeds, would be as likely to have the other sign.
    The seeds meet the same images, so images are the independent units, and all 2^n flips count; with one seed this
    is McNemar's exact test (Fisher's randomization test, 1935).
    """
    sizes = np.abs(differences[differences != 0])
    total = int(sizes.sum())
    chances = np.zeros(2 * total + 1)  # of the sums -total..total
    chances[total] = 1.0
    for size in sizes:
        moved = np.zeros_like(chances)
        moved[size:] += chances[:-size] / 2
        moved[:-size] += chances[size:] / 2
        chances = moved
    sums = np.abs(np.arange(-total, total + 1))
    return float(min(1.0, chances[sums >= abs(int(differences.sum()))].sum()))


def paired_t_test(differences: NDArray[np.float64]) -> float | None:
    """Return the two-sided p-value of the paired t-test over seeds; None for one seed; 1 or 0 without any spread."""
    if len(differences) < 2:
        return None
    if np.ptp(differences) == 0:
        return 1.0 if differences[0] == 0 else 0.0
    from scipy.stats import ttest_1samp  # half a second to import, and needed only here

    return float(ttest_1samp(differences, 0.0).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's (1979) adjusted p-values: below a level, the chance of any false alarm is below it."""
    order, values = np.argsort(p_values), np.asarray(p_values, dtype=np.float64)
    scaled = np.minimum(1.0, np.arange(len(values), 0, -1) * values[order])
    return np.maximum.accumulate(scaled)[np.argsort(order)].tolist()
