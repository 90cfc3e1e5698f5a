import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.controllers import policy_drift
from jaxalign.controllers.policy_drift import drift, retention


def test_drift_is_the_mean_absolute_change_over_the_tokens_that_count():
    then = jnp.array([[-1.0, -2, np.nan], [-1, -1, -1], [np.nan, -1, -1], [-1, -1, -1]])
    now = jnp.array([[-1.5, -1, 5], [-1, -1, np.inf], [-1, -1, -1], [-2, -2, -2]])
    mask = jnp.array([[1, 1, 0], [1, 1, 0], [1, 1, 1], [0, 0, 0]])
    np.testing.assert_allclose(drift(then, now, mask), [0.75, 0, 0, 0])  # signed it would be 0.25


def test_what_is_kept_halves_with_the_half_life():
    np.testing.assert_allclose(
        retention(jnp.array([0.0, 0.06 * np.log2(1 / 0.9), 0.06, 9.0])), [0.96, 0.9, 0.875, 0.875], rtol=1e-6
    )
    np.testing.assert_allclose(retention(jnp.array([0.1, 0.2]), half_life=0.1, low=0.0, high=1.0), [0.5, 0.25])


def test_the_last_completion_of_a_prompt_is_remembered():
    state = policy_drift.init(4, 3)
    ids = jnp.array([[5, 6, 0], [7, 0, 0]])
    state, first = policy_drift.update(state, jnp.array([2, 0]), ids, jnp.array([2, 1]), -ids.astype(jnp.float32))
    np.testing.assert_array_equal(first, [True, True])
    state, first = policy_drift.update(
        state, jnp.array([1, 2]), jnp.array([[8, 8, 8], [9, 9, 0]]), jnp.array([3, 2]), jnp.full((2, 3), -0.5)
    )
    np.testing.assert_array_equal(first, [True, False])
    np.testing.assert_array_equal(state.ids, [[7, 0, 0], [8, 8, 8], [9, 9, 0], [0, 0, 0]])
    np.testing.assert_array_equal(state.lengths, [1, 3, 2, 0])
    np.testing.assert_array_equal(state.log_probs[0], [-7, 0, 0])


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="half_life=0"):
        retention(jnp.zeros(1), half_life=0.0)
    with pytest.raises(ValueError, match=r"low=0\.9, high=0\.5"):
        retention(jnp.zeros(1), low=0.9, high=0.5)
