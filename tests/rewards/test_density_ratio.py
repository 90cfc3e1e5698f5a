"""The balanced logistic fit: at its optimum the gradient of the objective is 0, whatever found it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.rewards.density_ratio import LogisticFit, density_ratio, fit_density_ratio
from tests.compiled import compiled

density_ratio, fit_density_ratio = compiled(density_ratio), compiled(fit_density_ratio)


def gradient(fit, good, bad, l2):
    """Of the objective as the docstring has it, by (weights, bias), in NumPy."""
    weights, bias = np.asarray(fit.weights, np.float64), float(fit.bias)
    total = len(good) + len(bad)
    by_weights, by_bias = l2 * weights, 0.0
    for rows, sign in ((good, 1), (bad, -1)):
        slope = -sign / (1 + np.exp(sign * (rows @ weights + bias))) * total / (2 * len(rows))
        by_weights, by_bias = by_weights + slope @ rows, by_bias + slope.sum()
    return np.append(by_weights, by_bias)


def test_the_fit_is_the_optimum():
    random = np.random.default_rng(0)
    with jax.enable_x64(True):
        for good, bad, l2 in (
            (random.normal(size=(30, 3)) + 0.5, 2 * random.normal(size=(7, 3)), 1.0),
            (10 + random.normal(size=(8, 2)), -10 + random.normal(size=(5, 2)), 0.1),  # separable
        ):
            fit = fit_density_ratio(good, bad, l2=l2)
            np.testing.assert_allclose(gradient(fit, good, bad, l2), 0, atol=1e-8)
    same = fit_density_ratio(np.ones((4, 2), np.float32), np.ones((90, 2), np.float32))
    np.testing.assert_allclose(density_ratio(same, np.ones((3, 2))), 1, rtol=1e-5)  # sizes are no density


def test_groups_get_their_ratio_and_limits_hold():
    """20 of 25 desirable prompts are of group 0, 5 of 25 undesirable ones: nearly 4 and 1/4 without a penalty."""
    groups = np.eye(2, dtype=np.float32)
    good, bad = groups[[0] * 20 + [1] * 5], groups[[0] * 5 + [1] * 20]
    fit = fit_density_ratio(good, bad, l2=1e-4)
    np.testing.assert_allclose(density_ratio(fit, groups, least=0.01), [4, 0.25], rtol=1e-2)
    np.testing.assert_allclose(density_ratio(fit, groups, most=3.0), [3, 0.5])
    extreme = density_ratio(LogisticFit(jnp.array([1e4]), jnp.array(0.0)), np.array([[1.0], [-1.0]]))
    np.testing.assert_array_equal(extreme, [10, 0.5])


def test_mistakes_are_named():
    ones = np.ones((2, 1))
    for call, words in (
        (lambda: fit_density_ratio(ones, ones[:0]), "of 2 and 0 examples"),
        (lambda: fit_density_ratio(ones, ones, l2=0.0), "l2=0.0"),
        (lambda: density_ratio(LogisticFit(jnp.ones(1), jnp.zeros(())), ones, least=2, most=1), "least=2 <= most=1"),
    ):
        with pytest.raises(ValueError, match=words):
            call()
