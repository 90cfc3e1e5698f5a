import jax
import numpy as np
import pytest

from jaxalign.losses.kl import kl_estimate
from jaxalign.rewards.gae import gae, kl_penalty, token_rewards
from tests.compiled import compiled

kl_estimate, gae, kl_penalty, token_rewards = map(compiled, (kl_estimate, gae, kl_penalty, token_rewards))


@pytest.fixture(autouse=True, scope="module")
def float64():
    with jax.enable_x64(True):
        yield


MASK = np.array([[1, 1, 1, 1, 1], [0, 1, 1, 0, 0], [1, 0, 0, 1, 1], [0, 0, 0, 0, 0], [1, 0, 0, 0, 0]], np.float64)


def draws(*shape):
    return np.random.default_rng(sum(shape)).normal(size=shape)


def where_it_counts(x, other=np.nan):
    return np.where(MASK, x, other)


def test_token_rewards_are_the_penalty_and_the_score_at_the_end():
    old, reference, scores = draws(5, 5), draws(5, 5) + 1, np.array([1.0, 2, 3, 4, np.nan])
    expected = np.zeros((5, 5))
    for i in range(5):
        places = [t for t in range(5) if MASK[i, t]]
        for t in places:
            expected[i, t] = -0.3 * (old[i, t] - reference[i, t])
        if places and not np.isnan(scores[i]):
            expected[i, places[-1]] += scores[i]
    for poison in (np.nan, np.inf):
        actual = token_rewards(scores, where_it_counts(old, poison), where_it_counts(reference, poison), MASK, 0.3)
        np.testing.assert_allclose(actual, expected, rtol=1e-12)


def test_the_kl_penalty_is_the_sum_of_k1():
    old, reference = draws(2, 5, 5)
    k1 = np.asarray(kl_estimate(old, reference, "k1"))
    actual = kl_penalty(*(np.where(MASK, x, np.nan) for x in (old, reference)), MASK, 0.05)
    np.testing.assert_allclose(actual, -0.05 * (k1 * MASK).sum(axis=1), rtol=1e-12)
    single = kl_penalty(old.astype(np.float32), reference.astype(np.float32), MASK.astype(bool), 0.05)
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, actual, rtol=1e-5)


def test_the_kl_penalty_gets_no_gradient():
    x = np.ones((5, 5))
    gradients = jax.jit(jax.grad(lambda *x: kl_penalty(*x, MASK, 0.1).sum(), argnums=(0, 1)))(x, 2 * x)
    np.testing.assert_array_equal(gradients, 0)


def test_token_rewards_sum_to_the_score_and_the_kl_penalty():
    old, reference, scores = draws(5, 5), draws(5, 5) + 1, draws(5)
    sums = token_rewards(scores, old, reference, MASK, 0.3).sum(axis=1)
    expected = np.where(MASK.any(axis=1), scores, 0) + kl_penalty(old, reference, MASK, 0.3)
    np.testing.assert_allclose(sums, expected, rtol=1e-12)


def reference_gae(rewards, values, mask, discount, trace_decay):
    advantages, returns = np.zeros(mask.shape), np.zeros(mask.shape)
    for i in range(mask.shape[0]):
        next_advantage = next_value = 0.0
        for t in reversed(range(mask.shape[1])):
            if mask[i, t]:
                delta = rewards[i, t] + discount * next_value - values[i, t]
                next_advantage = delta + discount * trace_decay * next_advantage
                next_value = values[i, t]
                advantages[i, t] = next_advantage
                returns[i, t] = next_advantage + values[i, t]
    return advantages, returns


@pytest.mark.parametrize(("discount", "trace_decay"), [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (0.97, 0.0)])
def test_gae_is_that_of_the_loops(discount, trace_decay):
    rewards, values = draws(5, 5), draws(5, 5) + 1
    expected = reference_gae(rewards, values, MASK, discount, trace_decay)
    options = {"discount": discount, "trace_decay": trace_decay}
    actual = gae(where_it_counts(rewards), where_it_counts(values), MASK, **options)
    np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-14)


def test_without_decay_returns_are_the_rewards_to_come():
    rewards, values = draws(1, 4), draws(1, 4)
    _, returns = gae(rewards, values, np.ones((1, 4)), discount=1.0, trace_decay=1.0)
    np.testing.assert_allclose(returns, np.cumsum(rewards[:, ::-1], axis=1)[:, ::-1], rtol=1e-12)


def test_perfect_values_leave_no_advantage():
    values = np.array([[3.0, 2.0, 2.0]])
    rewards = np.array([[1.0, 0.0, 2.0]])
    advantages, returns = gae(rewards, values, np.ones((1, 3)))
    np.testing.assert_array_equal(advantages, 0)
    np.testing.assert_array_equal(returns, values)


def test_nothing_gets_gradient():
    def total(scores, old, reference, values):
        rewards = token_rewards(scores, old, reference, MASK, 0.1)
        return sum(x.sum() for x in gae(rewards, values, MASK))

    gradients = jax.jit(jax.grad(total, argnums=(0, 1, 2, 3)))(draws(5), draws(5, 5), draws(5, 5), draws(5, 5))
    for gradient in gradients:
        np.testing.assert_array_equal(gradient, 0)
