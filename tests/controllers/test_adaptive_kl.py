import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.controllers import adaptive_kl


@pytest.mark.parametrize(
    ("kl", "factor"),
    [
        (0.1, 1.0),  # on target
        (0.11, 1 + 0.1 * 64 / 10_000),
        (0.09, 1 - 0.1 * 64 / 10_000),
        (5.0, 1 + 0.2 * 64 / 10_000),  # limited
        (0.0, 1 - 0.2 * 64 / 10_000),
        (np.nan, 1.0),
        (np.inf, 1.0),
    ],
)
def test_the_coefficient_follows_the_relative_error(kl, factor):
    state, coefficient = adaptive_kl.update(adaptive_kl.init(0.2), jnp.float32(kl), target=0.1, samples=64)
    np.testing.assert_allclose(coefficient, 0.2 * factor, rtol=1e-6)
    np.testing.assert_array_equal(state.coefficient, coefficient)


def test_it_settles_where_the_kl_is_on_target():
    """A policy whose KL is 0.02 / beta: the target 0.1 wants beta = 0.2, from both sides."""
    for start in (0.01, 5.0):

        def step(state, _):
            return adaptive_kl.update(state, 0.02 / state.coefficient, target=0.1, samples=500)

        state, _ = jax.lax.scan(step, adaptive_kl.init(start), None, length=2000)
        np.testing.assert_allclose(state.coefficient, 0.2, rtol=1e-3)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="starts at 0"):
        adaptive_kl.init(0.0)
    with pytest.raises(ValueError, match="target=0"):
        adaptive_kl.update(adaptive_kl.init(0.1), jnp.float32(1), target=0.0, samples=1)
