"""Tests of differences: enumeration, error rates under the null, and when a claim is made."""

import itertools

import jax
import numpy as np
import pytest
from scipy import stats

from jaxalign.evaluation.comparisons import compare, holm, paired_permutation, welch


def test_permutation_by_enumeration():
    random = np.random.default_rng(0)
    for n in (1, 2, 5, 9):
        d = random.integers(-3, 4, n)  # with ties
        sums = [abs(sum(s * x for s, x in zip(signs, d, strict=True)))
                for signs in itertools.product((-1, 1), repeat=n)]  # fmt: skip
        expected = np.mean([s >= abs(d.sum()) for s in sums])
        assert paired_permutation(None, d) == pytest.approx(expected)


def test_permutation_special_points():
    assert paired_permutation(None, np.zeros(6)) == 1
    assert paired_permutation(None, np.ones(5)) == 0.0625
    assert paired_permutation(None, [0.1, 0.2, 0.3]) == 0.25  # sums that rounding makes unequal
    assert paired_permutation(None, [0.3, 0.1, 0.2]) == 0.25
    with pytest.raises(ValueError, match="without NaN"):
        paired_permutation(None, [1.0, np.nan])
    with pytest.raises(ValueError, match="need a key"):
        paired_permutation(None, np.ones(17))


def test_random_flips_agree_with_the_exact_test():
    d = np.random.default_rng(1).normal(0.4, 1, 14)
    exact = paired_permutation(None, d)
    drawn = paired_permutation(jax.random.key(0), d, exact_up_to=0)
    assert abs(exact - drawn) < 3 * np.sqrt(exact * (1 - exact) / 10_000) + 1e-4
    assert paired_permutation(jax.random.key(0), np.ones(40)) == pytest.approx(1 / 10_001)


def test_error_rate_under_the_null():
    random = np.random.default_rng(2)
    differences = random.normal(size=(2_000, 8))
    rejected = np.mean([paired_permutation(None, d) < 0.05 for d in differences])
    assert rejected <= 0.055
    assert not any(paired_permutation(None, d[:5]) < 0.05 for d in differences)


def test_welch():
    random = np.random.default_rng(3)
    a, b = random.normal(1, 1, 6), random.normal(0, 3, 9)
    result = welch(a, b)
    va, vb = a.var(ddof=1) / 6, b.var(ddof=1) / 9
    freedom = (va + vb) ** 2 / (va**2 / 5 + vb**2 / 8)
    difference = a.mean() - b.mean()
    t = difference / np.sqrt(va + vb)
    half = stats.t.ppf(0.975, freedom) * np.sqrt(va + vb)
    expected = (difference, difference - half, difference + half, 2 * stats.t.sf(abs(t), freedom))
    assert result == pytest.approx(expected)
    assert welch([1, 1], [1, 1]).p_value == 1 and welch([1, 1], [0, 0]).p_value == 0
    with pytest.raises(ValueError, match="two values"):
        welch([1.0], [1.0, 2.0])


def test_holm():
    # By hand: 4 * 0.01, 3 * 0.013, 2 * 0.03, 1 * 0.04, made monotone, in the order given.
    np.testing.assert_allclose(holm([0.03, 0.01, 0.04, 0.013]), [0.06, 0.04, 0.06, 0.04])
    np.testing.assert_allclose(holm([0.9, 0.8]), [1, 1])
    assert holm([]).size == 0


def scores(seeds, prompts, gain, spread=0.1, random_seed=4):
    random = np.random.default_rng(random_seed)
    b = random.random((seeds, prompts))
    return b + gain + spread * random.normal(size=(seeds, prompts)), b


def test_compare_claims_what_the_data_shows():
    key = jax.random.key(0)
    a, b = scores(3, 60, 0.1)
    report = compare(key, a, b)
    assert report.a_beats_b and not report.b_beats_a
    assert report.difference == pytest.approx((a - b).mean())
    assert report.prompts.low > 0 and report.prompts_p < 0.05
    assert report.seeds_p == 0.25  # three seeds alone could not show it
    reverse = compare(key, b, a)
    assert reverse.b_beats_a and not reverse.a_beats_b
    assert not any(compare(key, *scores(2, 60, 0.1))[-2:])  # too few seeds
    assert not any(compare(key, b, b)[-2:])
    assert compare(key, *scores(6, 1, 0.5)).a_beats_b  # by seeds, one prompt
    assert not compare(key, *scores(5, 1, 0.5)).a_beats_b


def test_compare_seldom_claims_a_difference_that_is_not_there():
    claims = [any(compare(jax.random.key(i), *scores(3, 40, 0.0, random_seed=100 + i))[-2:]) for i in range(100)]
    assert np.mean(claims) <= 0.12


def test_compare_bad_input():
    with pytest.raises(ValueError, match="one shape"):
        compare(jax.random.key(0), np.zeros((2, 3)), np.zeros((2, 4)))
    with pytest.raises(ValueError, match="NaN"):
        compare(jax.random.key(0), np.full((2, 3), np.nan), np.zeros((2, 3)))
