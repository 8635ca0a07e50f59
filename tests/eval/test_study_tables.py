"""Figures, intervals, tests and how tables are written."""

import csv
import io
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, ttest_rel

from eval.attack.registry import attack_names
from eval.core.stats import mcnemar, wilson
from eval.study.results.claims import verdict
from eval.study.results.overview import Overview
from eval.study.results.record import Column, Measured, Table, comma_separated, latex, markdown
from eval.study.results.statistics import Comparison, compare_pairs, holm, paired_t_test, rate, sign_flip_test
from eval.study.results.tables import autoattack_table, other_table, pgd_table, query_table
from tests.support.study_toys import tiny

VALUES = st.lists(st.integers(-3, 3), min_size=1, max_size=9)


@given(VALUES)
def test_sign_flips_are_all_counted(values):
    observed = abs(sum(values))
    sums = [
        abs(sum(s * v for s, v in zip(signs, values, strict=True)))
        for signs in product((1, -1), repeat=len(values))
    ]
    expected = sum(total >= observed for total in sums) / len(sums)
    assert sign_flip_test(np.array(values)) == pytest.approx(expected)


@pytest.mark.slow
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_one_seed_is_mcnemar(pairs):
    a, b = (np.array(column) for column in zip(*pairs, strict=True))
    found = compare_pairs([(a, b)])
    exact = mcnemar(a, b)
    assert found.p_images == pytest.approx(exact.p_value)
    assert (found.only_first, found.only_second) == (exact.only_first, exact.only_second)
    assert found.p_seeds is None
    discordant = exact.only_first + exact.only_second
    if discordant:
        assert found.p_images == pytest.approx(binomtest(exact.only_first, discordant).pvalue)


def test_seeds_that_repeat_each_other_are_no_further_evidence():
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 100)) < np.array([[0.7], [0.5]])
    once, thrice = compare_pairs([(a, b)]), compare_pairs([(a, b)] * 3)
    assert thrice.p_images == pytest.approx(once.p_images)
    assert thrice.only_first == 3 * once.only_first


def test_over_seeds_it_is_the_paired_t_test():
    rng = np.random.default_rng(1)
    rows = rng.random((2, 4, 50)) < 0.6
    found = compare_pairs(list(zip(rows[0], rows[1], strict=True)))
    expected = ttest_rel(rows[0].mean(1), rows[1].mean(1)).pvalue
    assert found.p_seeds == pytest.approx(expected)
    assert paired_t_test(np.zeros(3)) == 1.0
    assert paired_t_test(np.full(3, 0.1)) == 0.0


@pytest.mark.parametrize(
    ("difference", "p_images", "p_seeds", "words"),
    [
        (0.1, 0.2, 0.001, "not decided"),
        (0.1, 0.01, None, "holds for these trainings"),
        (0.1, 0.01, 0.01, "holds"),
        (0.1, 0.01, 0.2, "holds for these trainings, not decided for others"),
        (-0.1, 0.01, 0.01, "does not hold, the reverse does"),
    ],
)
def test_claims_need_images_and_seeds(difference, p_images, p_seeds, words):
    assert verdict(Comparison(difference, 9, 2, p_images, p_seeds, 3)) == words


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_rates_count_images_once():
    found = rate([np.array([True] * 8 + [False] * 2), np.array([True] * 6 + [False] * 4)])
    assert found.mean == pytest.approx(0.7)
    assert found.images == pytest.approx(tuple(wilson(7, 10)))
    assert found.seeds[0] < 0.6 < 0.8 < found.seeds[1]
    assert (found.n, found.trainings) == (10, 2)
    halves = rate([np.arange(10) < 3, np.arange(10) < 4])  # 3.5 of 10: Wilson's bounds by hand, z = 1.959964
    z2, p = 1.959963985**2, 0.35
    centre, half = p + z2 / 20, np.sqrt(z2 * (p * (1 - p) / 10 + z2 / 400))
    assert halves.images == pytest.approx(((centre - half) / (1 + z2 / 10), (centre + half) / (1 + z2 / 10)))
    assert rate([np.ones(5, bool)]).seeds is None


TABLE = Table(
    "t",
    "A_title 5 %",
    "A note.",
    (
        Column("name", "name"),
        Column("share", "share", "percent"),
        Column("seeds", "over seeds", "interval"),
        Column("count", "count", "integer"),
    ),
    (
        {"name": "a|b_c", "share": Measured(0.5, 0.25, 0.75, 4), "count": 12345},
        {
            "name": "x",
            "share": 0.125,
            "seeds": Measured(0.5, 0.1, 0.9, 3),
            "count": None,
        },
    ),
)


def test_markdown():
    lines = markdown(TABLE).splitlines()
    assert lines[4] == r"| a\|b_c | 50.0 % [25.0, 75.0] | - | 12,345 |"
    assert lines[5] == "| x | 12.5 % | [10.0, 90.0] | - |"
    assert lines[-1] == "A note."


def test_csv_holds_every_figure():
    rows = list(csv.DictReader(io.StringIO(comma_separated(TABLE))))
    assert rows[0]["share"] == "0.5"
    assert rows[0]["share_low"] == "0.25"
    assert rows[0]["share_n"] == "4"
    assert rows[1]["share_low"] == ""
    assert rows[1]["seeds_high"] == "0.9"
    assert rows[0]["name"] == "a|b_c"


def test_latex_is_escaped():
    text = latex(TABLE)
    assert r"a|b\_c & 50.0 \% [25.0, 75.0] & - & 12,345 \\" in text
    assert r"\caption{A\_title 5 \%}" in text
    assert r"\begin{tabular}{lrrr}" in text


def test_every_attack_of_a_study_has_its_column():
    names = [name for name in attack_names() if name != "transfer"]
    overview = Overview(tiny(threats=["L2 0.5"], attacks=names, attack={}), [])
    tables = [make(overview) for make in (pgd_table, autoattack_table, query_table, other_table)]
    keys = [column.key for table in tables for column in table.columns]
    assert {"deepfool", "ddn", "carlini_wagner", "eot", "multitargeted"} & set(names)
    assert [name for name in names if keys.count(name) != 1] == []
