"""Intervals and tests against published values and scipy, and as properties; how tables are printed."""

import io

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from envs.errors import InputError
from eval.core.formatting import make_table, print_table
from eval.core.stats import bootstrap, mcnemar, mean_interval, wilson


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [  # Newcombe 1998, Statistics in Medicine 17, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_matches_the_published_table(successes, n, low, high):
    assert wilson(successes, n) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_is_scipys_interval_and_symmetric(counts):
    successes, n = counts
    low, high = wilson(successes, n, 0.9)
    expected = scipy.stats.binomtest(successes, n).proportion_ci(0.9, method="wilson")
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert 0 <= low <= successes / n <= high <= 1
    mirrored = wilson(n - successes, n, 0.9)
    assert (1 - mirrored.high, 1 - mirrored.low) == pytest.approx((low, high), abs=1e-9)


def test_wilson_covers_what_it_promises():
    rng = np.random.default_rng(0)
    hits = [wilson(int(k), 50).low <= 0.1 <= wilson(int(k), 50).high for k in rng.binomial(50, 0.1, 4000)]
    assert 0.93 < np.mean(hits) < 0.98


@pytest.mark.parametrize(("successes", "n"), [(-1, 5), (6, 5), (0, 0)])
def test_wilson_refuses_impossible_counts(successes, n):
    with pytest.raises(InputError, match="successes"):
        wilson(successes, n)


@pytest.mark.parametrize("confidence", [0, 1, -0.5, float("nan")])
def test_confidence_must_be_a_probability(confidence):
    for call in (lambda: wilson(1, 2, confidence), lambda: mean_interval([1, 2], confidence)):
        with pytest.raises(InputError, match="confidence"):
            call()


def test_mean_interval_is_students():
    values = [0.91, 0.93, 0.9, 0.95]
    mean, interval, n = mean_interval(values)
    expected = scipy.stats.t.interval(0.95, 3, loc=np.mean(values), scale=scipy.stats.sem(values))
    assert (mean, n) == (pytest.approx(0.9225), 4)
    assert interval == pytest.approx(expected)
    assert mean_interval([0.5]) == (0.5, None, 1)


@pytest.mark.parametrize("values", [[], [0.5, float("nan")], [float("inf")]])
def test_averages_need_finite_numbers(values):
    for call in (mean_interval, bootstrap):
        with pytest.raises(InputError, match="finite"):
            call(values)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_mcnemar_is_the_exact_binomial_test(pairs):
    first, second = zip(*pairs, strict=True)
    result = mcnemar(first, second)
    discordant = result.only_first + result.only_second
    assert discordant == sum(a != b for a, b in pairs)
    expected = scipy.stats.binomtest(result.only_first, discordant).pvalue if discordant else 1.0
    assert result.p_value == pytest.approx(expected)
    assert mcnemar(second, first).p_value == result.p_value


def test_mcnemar_survives_large_counts_and_refuses_other_lengths():
    first = np.arange(10_000) < 5200
    assert mcnemar(first, ~first).p_value == pytest.approx(6.5e-5, rel=0.1)
    with pytest.raises(InputError, match=r"\(3,\) and \(2,\)"):
        mcnemar([True] * 3, [True] * 2)


def test_bootstrap_agrees_with_the_normal_interval():
    values = np.random.default_rng(1).normal(2.0, 1.0, 400)
    mean, interval, n = bootstrap(values)
    half = 1.96 * values.std() / 20
    assert n == 400
    assert interval == pytest.approx((mean - half, mean + half), abs=0.02)
    assert bootstrap(values) == bootstrap(values)
    assert bootstrap(values, seed=1) != bootstrap(values)
    assert bootstrap([3.0]) == (3.0, None, 1)


def test_bootstrap_by_hand():
    # of two values, a resample's mean is 0, 1/2 or 1 with chances 1/4, 1/2, 1/4
    assert bootstrap([0.0, 1.0]).interval == (0.0, 1.0)
    assert bootstrap([0.0, 1.0], confidence=0.4).interval == (0.5, 0.5)
    assert bootstrap([2.0] * 5).interval == (2.0, 2.0)


def test_a_table_written_to_a_file_is_whole():
    table = make_table("t", ("name",), [f"column {k}" for k in range(12)])
    table.add_row("model", *["84.0 % [75.6, 89.9]"] * 12)
    output = io.StringIO()
    print_table(table, Console(file=output, width=80))
    assert output.getvalue().count("[75.6, 89.9]") == 12
    assert "column 11" in output.getvalue()
