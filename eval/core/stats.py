"""Confidence intervals and paired tests for accuracies; scipy's where it has them."""

import math
from collections.abc import Iterable, Sequence
from statistics import NormalDist, fmean
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from envs.errors import InputError

_RESAMPLES_AT_ONCE = 100  # bounds the memory for many values


class Interval(NamedTuple):
    """A confidence interval ``[low, high]``."""

    low: float
    high: float


class MeanInterval(NamedTuple):
    """A mean of ``n`` values with its interval, None where one value leaves the spread unknown."""

    mean: float
    interval: Interval | None
    n: int


class PairedTest(NamedTuple):
    """McNemar's exact test: how many samples only the first (second) vector holds true, and the p-value."""

    only_first: int
    only_second: int
    p_value: float


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise InputError(f"confidence is {confidence}; expected a number between 0 and 1, such as 0.95")


def _finite(values: ArrayLike, confidence: float) -> np.ndarray:
    """Return the values as float64 (n,); InputError for none, one that is not finite, or a bad confidence."""
    _check_confidence(confidence)
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not array.size or not np.isfinite(array).all():
        raise InputError(f"cannot average {array.tolist()}; expected at least one finite number")
    return array


def known_mean(values: Iterable[float | None]) -> float | None:
    """Return the mean of the values that are known, None where none is."""
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def wilson(successes: float, n: int, confidence: float = 0.95) -> Interval:
    """Return Wilson's score interval for a proportion, which stays sensible at 0 and 1 and for small ``n``.

    Wilson (1927): the proportions p whose score test |p_hat - p| <= z sqrt(p (1 - p) / n) does not reject. A mean of
    counts over trainings need not be whole, as scipy's must. Raises InputError unless 0 <= successes <= n, n >= 1 and
    the confidence lies in (0, 1).
    """
    _check_confidence(confidence)
    if n < 1 or not 0 <= successes <= n:
        raise InputError(f"{successes} successes of {n}; expected 0 <= successes <= n and n >= 1")
    z2 = NormalDist().inv_cdf(0.5 + confidence / 2) ** 2
    rate = successes / n
    centre = (rate + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * (rate * (1 - rate) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    # At 0 and n the bound is exact in theory; rounding must not push it past the rate itself.
    return Interval(
        0.0 if successes == 0 else max(0.0, centre - half),
        1.0 if successes == n else min(1.0, centre + half),
    )


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> MeanInterval:
    """Return the mean over independent runs (seeds), finite numbers, with Student's t-interval."""
    array = _finite(values, confidence)
    mean = float(array.mean())
    if array.size == 1:
        return MeanInterval(mean, None, 1)
    from scipy.stats import t  # half a second to import, and needed only here

    half = float(t.ppf(0.5 + confidence / 2, array.size - 1) * array.std(ddof=1) / math.sqrt(array.size))
    return MeanInterval(mean, Interval(mean - half, mean + half), array.size)


def mcnemar(first: ArrayLike, second: ArrayLike) -> PairedTest:
    """Test whether two outcome vectors on the SAME samples have the same rate.

    McNemar (1947) in the exact binomial form: only samples on which the two differ say anything, and under
    equality each of them falls to either side with chance 1/2. Both are (n,) bool, such as "model A survives on image
    i", in one order; an InputError says where not. The p-value is two-sided, in (0, 1].
    """
    a, b = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    if a.ndim != 1 or a.shape != b.shape:
        shapes = f"paired outcomes have shapes {a.shape} and {b.shape}"
        raise InputError(f"{shapes}; expected two vectors of one length")
    only_first, only_second = int((a & ~b).sum()), int((b & ~a).sum())
    discordant = only_first + only_second
    from scipy.stats import binomtest

    p_value = float(binomtest(only_first, discordant).pvalue) if discordant else 1.0
    return PairedTest(only_first, only_second, p_value)


def bootstrap(
    values: ArrayLike, confidence: float = 0.95, *, resamples: int = 2000, seed: int = 0
) -> MeanInterval:
    """Return the mean of per-sample values, (n,) finite numbers, with a percentile bootstrap interval (Efron 1979).

    For quantities without a closed form, such as gradient norms or cosines over images. ``resamples``: draws with
    replacement; the same ``seed`` gives the same interval.
    """
    array = _finite(values, confidence)
    if array.size == 1:
        return MeanInterval(float(array[0]), None, 1)
    from scipy.stats import bootstrap as scipy_bootstrap

    found = scipy_bootstrap(
        (array,),
        np.mean,
        n_resamples=resamples,
        batch=_RESAMPLES_AT_ONCE,
        confidence_level=confidence,
        method="percentile",
        random_state=np.random.default_rng(seed),
    ).confidence_interval
    return MeanInterval(float(array.mean()), Interval(float(found.low), float(found.high)), array.size)
