"""Best-of-N against enumeration of all subsets, and its closed forms."""

import itertools
import math

import numpy as np
import pytest

from jaxalign.evaluation.best_of_n import (
    best_of_n_kl,
    best_of_n_value,
    best_of_n_win_rate,
    calibrated_reward,
    order_weights,
)


@pytest.mark.parametrize("best", [True, False])
def test_value_and_weights_by_enumeration(best):
    pick = max if best else min
    rewards = np.random.default_rng(0).integers(0, 5, (4, 7)).astype(float)  # with ties
    for n in range(1, 8):
        expected = [np.mean([pick(s) for s in itertools.combinations(row, n)]) for row in rewards]
        np.testing.assert_allclose(best_of_n_value(rewards, n, best), expected, rtol=1e-12)
        weights = order_weights(7, n, best)
        places = [pick(s) for s in itertools.combinations(range(7), n)]
        expected = [places.count(i) / math.comb(7, n) for i in range(7)]
        np.testing.assert_allclose(weights, expected, atol=1e-12)
    assert order_weights(2_000, 700).sum() == pytest.approx(1)


@pytest.mark.parametrize("best", [True, False])
def test_win_rate_by_enumeration(best):
    pick = max if best else min
    random = np.random.default_rng(1)
    a, b = random.integers(0, 6, (3, 5)), random.integers(0, 6, (3, 6))
    for n in (1, 2, 4):
        expected = []
        for x, y in zip(a, b, strict=True):
            pairs = itertools.product(itertools.combinations(x, n), itertools.combinations(y, n))
            scores = [(pick(s) > pick(t)) + (pick(s) == pick(t)) / 2 for s, t in pairs]
            expected.append(np.mean(scores))
        np.testing.assert_allclose(best_of_n_win_rate(a, b, n, best), expected, rtol=1e-12)


def test_special_points():
    a = np.random.default_rng(2).normal(size=(5, 8))
    np.testing.assert_allclose(best_of_n_win_rate(a, a, 3), 0.5)
    # best of N against one fresh sample of the same policy: N / (N + 1)
    n, repeats = 4, 20_000
    draws = np.random.default_rng(3).normal(size=(repeats, n + 1))
    wins = (best_of_n_value(draws[:, :n], n) > draws[:, n]).mean()
    assert abs(wins - n / (n + 1)) < 3 * np.sqrt(0.8 * 0.2 / repeats)
    assert best_of_n_kl(1) == 0
    assert best_of_n_kl(4) == pytest.approx(math.log(4) - 0.75)


def test_which_method_is_better_turns_with_n():
    random = np.random.default_rng(4)
    a, b = random.normal(0.2, 0.5, (400, 16)), random.normal(0, 1.5, (400, 16))
    assert best_of_n_win_rate(a, b, 1).mean() > 0.5
    assert best_of_n_win_rate(a, b, 4).mean() < 0.3


def test_calibrated_reward():
    found = calibrated_reward([[0.0, 1.0, 2.0, 5.0]], [[1.0, 2.0, 2.0, 3.0]])
    np.testing.assert_allclose(found, [[0, 1 / 8, 1 / 2, 1]])
    reference = np.random.default_rng(5).integers(0, 4, (6, 9))
    np.testing.assert_allclose(calibrated_reward(reference, reference).mean(-1), 0.5)


def test_bad_input():
    with pytest.raises(ValueError, match="best-of-5 needs at least 5 samples"):
        best_of_n_value(np.zeros((1, 4)), 5)
    with pytest.raises(ValueError, match=r"b holds NaN at \(0, 1\)"):
        best_of_n_win_rate([[1.0, 2.0]], [[1.0, np.nan]], 1)
