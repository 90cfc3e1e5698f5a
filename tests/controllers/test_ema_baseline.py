import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.controllers import ema_baseline
from jaxalign.rewards.advantages import baseline_advantages


def test_a_batch_is_measured_by_what_came_before_it():
    state = ema_baseline.init(0.5)
    value, batches = 0.5, [[1.0, 2.0], [3.0, 5.0], [-1.0, 0.0]]
    for rewards in batches:
        state, baseline = ema_baseline.update(state, jnp.array(rewards), decay=0.8)
        np.testing.assert_allclose(baseline, value, rtol=1e-6)
        np.testing.assert_allclose(
            baseline_advantages(jnp.array(rewards), baseline), np.array(rewards) - value, rtol=1e-6
        )
        value = 0.8 * value + 0.2 * sum(rewards) / 2
        np.testing.assert_allclose(state.value, value, rtol=1e-6)


def test_what_is_not_scorable_is_left_out():
    state, _ = ema_baseline.update(ema_baseline.init(), jnp.array([np.nan, 4.0]), decay=0.5)
    assert float(state.value) == 2
    unchanged, baseline = ema_baseline.update(state, jnp.full(3, np.nan))
    assert float(unchanged.value) == float(baseline) == 2


def test_the_state_keeps_its_form_in_a_scan():
    batches = jnp.arange(12.0).reshape(6, 2)
    last, baselines = jax.lax.scan(lambda state, r: ema_baseline.update(state, r), ema_baseline.init(), batches)
    state = ema_baseline.init()
    for rewards, expected in zip(batches, baselines, strict=True):
        state, baseline = ema_baseline.update(state, rewards)
        np.testing.assert_allclose(baseline, expected, rtol=1e-6)
    np.testing.assert_allclose(last.value, state.value, rtol=1e-6)


def test_rewards_get_no_gradient():
    state = ema_baseline.init()
    gradient = jax.grad(lambda r: ema_baseline.update(state, r)[0].value)(jnp.ones(3))
    np.testing.assert_array_equal(gradient, 0)
