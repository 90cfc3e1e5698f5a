import jax
import numpy as np
import pytest

from jaxalign.rewards.statistics import deviations, variance, whiten
from tests.compiled import compiled

deviations, variance, whiten = map(compiled, (deviations, variance, whiten))


@pytest.fixture(autouse=True, scope="module")
def float64():
    with jax.enable_x64(True):
        yield


MASK = np.array([[1, 1, 1, 1, 1], [0, 1, 1, 0, 0], [1, 0, 0, 1, 1], [0, 0, 0, 0, 0], [1, 0, 0, 0, 0]])


def test_deviations_and_variance_of_rows():
    x = np.random.default_rng(0).normal(size=(5, 5))
    poisoned = np.where(MASK, x, np.nan)
    d = deviations(poisoned, MASK > 0)
    v = variance(d, MASK > 0, ddof=1)
    for i in range(5):
        kept = x[i][MASK[i] > 0]
        for t in range(5):
            expected = x[i, t] - sum(kept) / len(kept) if MASK[i, t] and len(kept) > 1 else 0.0
            np.testing.assert_allclose(d[i, t], expected, atol=1e-14)
        np.testing.assert_allclose(v[i, 0], np.var(kept, ddof=1) if len(kept) > 1 else 0.0, atol=1e-14)


@pytest.mark.parametrize("ddof", [0, 1])
def test_whitening_is_over_what_counts(ddof):
    x = np.random.default_rng(1).normal(2, 3, size=(5, 5))
    kept = x[MASK > 0]
    expected = np.where(MASK, (x - kept.mean()) / np.sqrt(kept.var(ddof=ddof) + 1e-8), 0)
    actual = whiten(np.where(MASK, x, np.nan), MASK, ddof=ddof)
    np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-14)


def test_whitening_without_spread_gives_exact_zeros():
    np.testing.assert_array_equal(whiten(np.full((2, 3), 0.1, np.float32), np.ones((2, 3))), 0)
    np.testing.assert_array_equal(whiten(np.full((2, 3), np.nan), np.zeros((2, 3))), 0)
    np.testing.assert_array_equal(whiten(np.array([[5.0, np.nan]]), np.array([[1, 0]])), 0)
    assert np.isnan(whiten(np.array([[5.0, np.nan, 1.0]]), np.ones((1, 3)))).all()
