"""Intervals, exact tests and corrections: against scipy, published examples, and counting by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from mumoe.statistics import (
    benjamini_hochberg,
    fisher_less,
    holm,
    newcombe,
    stratified_gap,
    stratified_less,
    t_quantile,
    wilson,
)


def tables(count=200):
    rng = np.random.default_rng(0)
    n, n_rest = rng.integers(1, 60, count), rng.integers(1, 400, count)
    return rng.binomial(n, rng.random(count)), n, rng.binomial(n_rest, rng.random(count)), n_rest


def test_fisher_is_scipys_one_table_at_a_time():
    found = fisher_less(*tables())
    for value, k, n, k_rest, n_rest in zip(found, *tables(), strict=True):
        exact = scipy.stats.fisher_exact([[k, n - k], [k_rest, n_rest - k_rest]], alternative="less").pvalue
        assert value == pytest.approx(exact, rel=1e-9, abs=1e-15)
    assert found.max() <= 1
    assert found.min() < 1e-6


def test_the_values_of_the_formulas_that_scipy_replaced():
    """Written down from the log-gamma sums, the bisection and the closed form that stood here before."""
    found = fisher_less([3, 10, 0], [10, 10, 4], [80, 10, 30], [100, 40, 31])
    assert found == pytest.approx([0.0019093807036154684, 1.0, 9.549274255156593e-05], rel=1e-10)
    assert newcombe(3, 10, 80, 100) == pytest.approx((0.18403463399120518, 0.7034309771371782), rel=1e-12)
    assert t_quantile(0.975, 2) == pytest.approx(4.302652729749459, rel=1e-12)
    assert holm([0.002, 0.6, 0.03, 0.03, 0.2]) == pytest.approx([0.01, 0.6, 0.12, 0.12, 0.4], rel=1e-14)
    assert benjamini_hochberg([0.002, 0.6, 0.03, 0.03, 0.2]) == pytest.approx([0.01, 0.6, 0.05, 0.05, 0.25], rel=1e-14)


def test_one_stratum_is_fishers_test():
    for row in zip(*tables(20), strict=True):
        assert stratified_less(*([value] for value in row)) == pytest.approx(float(fisher_less(*row)), rel=1e-9)


def test_strata_by_counting_every_arrangement():
    """Two strata, every way to call the group's rows: the share of ways with as few right."""
    strata = [([1, 1, 0, 1], 2), ([1, 0, 0, 1, 1], 2)]
    ways = [
        [sum(right[i] for i in chosen) for chosen in itertools.combinations(range(len(right)), size)]
        for right, size in strata
    ]
    totals = [sum(pair) for pair in itertools.product(*ways)]
    for k in itertools.product((0, 1, 2), (0, 1, 2)):
        if k[0] >= 1:  # of three right among four, two rows hold at least one
            counts = (k, (2, 2), (3 - k[0], 3 - k[1]), (2, 3))
            assert stratified_less(*counts) == pytest.approx(sum(total <= sum(k) for total in totals) / len(totals))


def test_the_gap_over_strata_by_hand():
    value, low, high = stratified_gap([1, 0], [4, 2], [6, 4], [8, 8])
    gaps = np.array([6 / 8 - 1 / 4, 4 / 8 - 0])
    assert value == pytest.approx((4 * gaps[0] + 2 * gaps[1]) / 6)
    ends = np.array([newcombe(1, 4, 6, 8), newcombe(0, 2, 4, 8)])
    distances = np.hypot(4 / 6 * (ends[0] - gaps[0]), 2 / 6 * (ends[1] - gaps[1]))
    assert (low, high) == pytest.approx((value - distances[0], value + distances[1]))
    assert stratified_gap([1, 0, 3], [4, 2, 3], [6, 4, 0], [8, 8, 0]) == pytest.approx((value, low, high))
    assert np.isnan(stratified_gap([1], [2], [0], [0])).all()


def test_the_gap_of_one_stratum_is_newcombes():
    assert stratified_gap([3], [10], [80], [100]) == pytest.approx((0.5, *map(float, newcombe(3, 10, 80, 100))))


@settings(max_examples=200)
@given(strata=st.lists(st.tuples(*[st.integers(0, 12)] * 4), min_size=1, max_size=6))
def test_the_standardized_rest_is_a_share(strata):
    counts = np.array([(min(k, n), n, min(kr, nr), nr) for k, n, kr, nr in strata])
    value, low, high = stratified_gap(*counts.T)
    used = counts[(counts[:, 1] > 0) & (counts[:, 3] > 0)]
    if not len(used):
        assert np.isnan(value)
        return
    accuracy = used[:, 0].sum() / used[:, 1].sum()
    assert -1e-12 <= accuracy + value <= 1 + 1e-12
    assert -1 <= low <= value + 1e-12
    assert value - 1e-12 <= high <= 1


@pytest.mark.parametrize(("k", "n"), [(0, 1), (0, 10), (3, 10), (10, 10), (499, 1000), (1, 1)])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_wilson_is_scipys(k, n, confidence):
    expected = scipy.stats.binomtest(k, n).proportion_ci(confidence, method="wilson")
    assert wilson(k, n, confidence) == pytest.approx((expected.low, expected.high), abs=1e-12)
    low, high = wilson([[k, k]], n)
    assert low.shape == high.shape == (1, 2)


def test_newcombe_by_the_published_example():
    """Newcombe 1998, method 10: 56/70 against 48/80."""
    assert newcombe(48, 80, 56, 70) == pytest.approx((0.0524, 0.3339), abs=5e-5)
    low, high = newcombe(0, 10, 10, 10)
    assert 0.5 < low < 1
    assert high == pytest.approx(1)


def test_corrections_by_hand_and_in_any_order():
    p = [0.01, 0.04, 0.03, 0.5]
    assert holm(p) == pytest.approx([0.04, 0.09, 0.09, 0.5])
    assert benjamini_hochberg(p) == pytest.approx([0.04, 0.16 / 3, 0.16 / 3, 0.5])
    many = np.random.default_rng(1).random(300) ** 3
    order = np.argsort(many)
    for correct in (holm, benjamini_hochberg):
        assert (correct(many)[order] == correct(many[order])).all()
        assert (np.diff(correct(many[order])) >= 0).all()
        assert (correct(many) >= many).all()


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 9, 30, 101])
@pytest.mark.parametrize("probability", [0.975, 0.6, 0.1, 0.9995])
def test_quantiles_of_t(degrees, probability):
    assert t_quantile(probability, degrees) == pytest.approx(scipy.stats.t.ppf(probability, degrees), rel=1e-9)
