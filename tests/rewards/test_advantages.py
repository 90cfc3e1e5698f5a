import itertools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from jaxalign.errors import UserError
from jaxalign.rewards.advantages import (
    ADVANTAGES,
    advantages,
    baseline_advantages,
    batch_mean_advantages,
    combine_rewards,
    group_advantages,
    groups_with_signal,
    leave_one_out_advantages,
)
from tests.compiled import compiled

advantages, baseline_advantages, batch_mean_advantages = map(
    compiled, (advantages, baseline_advantages, batch_mean_advantages)
)
combine_rewards, group_advantages, leave_one_out_advantages = map(
    compiled, (combine_rewards, group_advantages, leave_one_out_advantages)
)
PROMPTS, GROUP = 3, 4
NAN = np.nan

with_examples = hypothesis.settings(deadline=None, max_examples=40, derandomize=True)
some_rewards = st.lists(
    st.integers(-8, 8).map(lambda i: i / 8), min_size=PROMPTS * GROUP, max_size=PROMPTS * GROUP
).map(np.array)


@pytest.fixture(autouse=True, scope="module")
def float64():
    with jax.enable_x64(True):
        yield


def rewards_with_gaps():
    random = np.random.default_rng(0)
    rewards = random.normal(size=5 * GROUP)
    rewards[[2, 5, 6, 7]] = NAN  # the second group has one scorable reward left
    rewards[8:12] = NAN  # the third has none
    rewards[12:16] = 0.1  # the fourth has no spread
    return rewards


def std(values, ddof):
    values = [v for v in values if not np.isnan(v)]
    if len(values) <= ddof:
        return 0.0
    mean = sum(values) / len(values)
    return (sum((v - mean) ** 2 for v in values) / (len(values) - ddof)) ** 0.5


def reference_group_advantages(rewards, group_size, scale, ddof, epsilon):
    result = []
    for start in range(0, len(rewards), group_size):
        group = rewards[start : start + group_size]
        known = [r for r in group if not np.isnan(r)]
        for r in group:
            if np.isnan(r) or len(set(known)) < 2:
                result.append(0.0)
                continue
            spread = {"group": std(group, ddof), "batch": std(rewards, ddof), "none": 1 - epsilon}[scale]
            result.append((r - sum(known) / len(known)) / (spread + epsilon))
    return result


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("ddof", [0, 1])
@pytest.mark.parametrize("epsilon", [1e-4, 1e-6])
def test_group_advantages_are_those_of_the_loops(scale, ddof, epsilon):
    rewards = rewards_with_gaps()
    expected = reference_group_advantages(rewards, GROUP, scale, ddof, epsilon)
    actual = group_advantages(rewards, GROUP, scale=scale, ddof=ddof, epsilon=epsilon)
    np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-14)


def test_a_group_by_hand():
    """Rewards 1, 0, 0, 0: mean 1/4, variance (9/16 + 3/16) / 3 = 1/4."""
    actual = group_advantages(np.array([1.0, 0, 0, 0]), 4, epsilon=0.0)
    np.testing.assert_allclose(actual, [1.5, -0.5, -0.5, -0.5], rtol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32])
@pytest.mark.parametrize("kind", sorted(ADVANTAGES))
def test_equal_rewards_give_exact_zeros(kind, dtype):
    """0.1 has no exact mean of three; divided by a spread of rounding errors that would be a signal."""
    for value in (0.1, 1 / 3, 1e6 + 0.1, 0, -7):
        rewards = np.full(12, value).astype(dtype)
        np.testing.assert_array_equal(advantages(kind, rewards, 3), np.zeros(12))
    options = {
        "batch_mean": {"whiten": True},
        "group": {"scale": "batch", "epsilon": 0.0},
        "leave_one_out": {"standardise": True, "epsilon": 0.0},
        "median": {"scale": "mad", "epsilon": 0.0},
        "reference": {"include_reference": False, "epsilon": 0.0},
    }[kind]
    np.testing.assert_array_equal(advantages(kind, np.full(12, 0.1, np.float32), 3, **options), np.zeros(12))


@pytest.mark.parametrize("kind", ["group", "leave_one_out"])
def test_a_group_of_one_has_no_signal(kind):
    np.testing.assert_array_equal(advantages(kind, np.arange(5.0), 1), np.zeros(5))
    np.testing.assert_array_equal(groups_with_signal(np.arange(5.0), 1), [False] * 5)


@pytest.mark.parametrize("kind", sorted(ADVANTAGES))
def test_nothing_scorable_gives_zeros(kind):
    np.testing.assert_array_equal(advantages(kind, np.full(8, NAN), 4), np.zeros(8))


@with_examples
@hypothesis.given(some_rewards, st.integers(-40, 40), st.permutations(range(GROUP)), st.permutations(range(PROMPTS)))
def test_group_advantages_do_not_see_shift_order_or_other_groups(rewards, shift, inside, prompts):
    expected = np.asarray(group_advantages(rewards, GROUP))
    np.testing.assert_allclose(group_advantages(rewards + shift, GROUP), expected, atol=1e-9)
    order = np.arange(PROMPTS * GROUP).reshape(PROMPTS, GROUP)[np.array(prompts)][:, np.array(inside)].reshape(-1)
    np.testing.assert_allclose(group_advantages(rewards[order], GROUP), expected[order], atol=1e-9)
    np.testing.assert_allclose(expected.reshape(PROMPTS, GROUP).sum(axis=1), 0, atol=1e-9)
    changed = rewards.copy()
    changed[GROUP:] = 0
    np.testing.assert_allclose(group_advantages(changed, GROUP)[:GROUP], expected[:GROUP], atol=1e-12)


@with_examples
@hypothesis.given(some_rewards, st.floats(0.1, 100))
def test_the_scale_of_rewards_matters_by_epsilon_only(rewards, factor):
    exact = group_advantages(rewards, GROUP, epsilon=0.0)
    np.testing.assert_allclose(group_advantages(factor * rewards, GROUP, epsilon=0.0), exact, atol=1e-9)
    np.testing.assert_allclose(group_advantages(rewards, GROUP, epsilon=1e-6), exact, atol=1e-4)
    centred = group_advantages(rewards, GROUP, scale="none")
    np.testing.assert_allclose(group_advantages(factor * rewards, GROUP, scale="none"), factor * centred, atol=1e-9)


@with_examples
@hypothesis.given(some_rewards)
def test_leave_one_out_is_a_multiple_of_the_centred_reward(rewards):
    actual = leave_one_out_advantages(rewards, GROUP)
    np.testing.assert_allclose(actual, GROUP / (GROUP - 1) * group_advantages(rewards, GROUP, scale="none"), rtol=1e-12)
    expected = []
    for i, r in enumerate(rewards):
        start = i - i % GROUP
        expected.append(r - np.mean([rewards[j] for j in range(start, start + GROUP) if j != i]))
    np.testing.assert_allclose(actual, expected, atol=1e-12)


def test_leave_one_out_with_gaps_and_standardised():
    rewards = rewards_with_gaps()
    expected = []
    for i, r in enumerate(rewards):
        start = i - i % GROUP
        others = [rewards[j] for j in range(start, start + GROUP) if j != i and not np.isnan(rewards[j])]
        expected.append(r - np.mean(others) if others and not np.isnan(r) else 0.0)
    np.testing.assert_allclose(leave_one_out_advantages(rewards, GROUP), expected, atol=1e-12)
    known = ~np.isnan(rewards)
    values = np.array(expected)
    scaled = np.where(known, (values - values[known].mean()) / (values[known].std(ddof=1) + 1e-4), 0)
    np.testing.assert_allclose(leave_one_out_advantages(rewards, GROUP, standardise=True), scaled, atol=1e-12)


def test_leave_one_out_is_unbiased_and_the_group_mean_shrinks_the_gradient():
    """All groups of 3 draws from a policy over 4 answers, enumerated: E[sum_i A_i grad log p_i / G]."""
    random = np.random.default_rng(0)
    logits, rewards = random.normal(size=4), random.normal(size=4)
    p = np.exp(logits) / np.exp(logits).sum()
    truth = p * (rewards - p @ rewards)
    groups = np.array(list(itertools.product(range(4), repeat=3)))  # [64, 3]
    probability = p[groups].prod(axis=1)
    scores = np.eye(4)[groups] - p  # gradient of log p
    for function, factor in [
        (leave_one_out_advantages, 1),
        (lambda r, g: group_advantages(r, g, scale="none"), 2 / 3),
    ]:
        a = np.asarray(function(rewards[groups].reshape(-1), 3)).reshape(64, 3)
        gradient = np.einsum("n,ng,ngv->v", probability, a, scores) / 3
        np.testing.assert_allclose(gradient, factor * truth, atol=1e-12)


def test_baselines():
    rewards = np.array([1.0, 2.0, NAN, 6.0])
    np.testing.assert_allclose(baseline_advantages(rewards), [-2, -1, 0, 3])
    np.testing.assert_allclose(baseline_advantages(rewards, 0.5), [0.5, 1.5, 0, 5.5])
    np.testing.assert_allclose(baseline_advantages(rewards, jnp.array(2.0)), [-1, 0, 0, 4])
    np.testing.assert_allclose(baseline_advantages(rewards, np.array([0, 1, 2, 3.0])), [1, 1, 0, 3])
    np.testing.assert_allclose(batch_mean_advantages(rewards, 2), baseline_advantages(rewards))
    whitened = np.array([-2, -1, 0, 3]) / np.sqrt(7 + 1e-8)  # (4 + 1 + 9) / 2 = 7
    np.testing.assert_allclose(baseline_advantages(rewards, whiten=True), whitened, rtol=1e-12)
    np.testing.assert_allclose(baseline_advantages(rewards, 0.5, whiten=True), whitened, rtol=1e-12)
    with pytest.raises(UserError, match="baseline 'median' is not known"):
        baseline_advantages(rewards, "median")


def test_groups_with_signal():
    np.testing.assert_array_equal(groups_with_signal(rewards_with_gaps(), GROUP), [True, False, False, False, True])
    np.testing.assert_array_equal(groups_with_signal(np.array([0.1, 0.1, 0.1, NAN, 0, 1]), 3), [False, True])


def test_rewards_get_no_gradient():
    def total(rewards):
        return sum((advantages(kind, rewards, 2) * jnp.arange(4.0)).sum() for kind in ADVANTAGES)

    np.testing.assert_array_equal(jax.grad(total)(jnp.array([0.0, 1, 1, 1])), 0)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float32, np.float64])
def test_types(dtype):
    wide = np.float64 if dtype == np.float64 else np.float32
    for kind in ADVANTAGES:
        assert jax.jit(lambda r, kind=kind: advantages(kind, r, 2))(jnp.arange(4).astype(dtype)).dtype == wide


def test_a_group_size_that_does_not_divide_is_named_when_tracing():
    rewards = jax.ShapeDtypeStruct((10,), np.float32)
    functions = [groups_with_signal, *ADVANTAGES.values()]
    functions += [lambda r, g, kind=kind: advantages(kind, r, g) for kind in ADVANTAGES]
    functions.append(lambda r, g: combine_rewards(r[:, None], jnp.ones(1), g))
    for function in functions:
        with pytest.raises(UserError, match="group_size=4 does not divide the 10 rewards"):
            jax.eval_shape(lambda r, function=function: function(r, 4), rewards)
    with pytest.raises(UserError, match="group_size=0"):
        group_advantages(jnp.zeros(4), 0)


def test_unknown_kinds_and_options_are_named():
    rewards = jnp.zeros(4)
    with pytest.raises(UserError, match=r"kind 'mode' are not known; choose from batch_mean, group, leave"):
        advantages("mode", rewards, 2)
    with pytest.raises(UserError, match="have no option 'scale'; they have standardise, epsilon"):
        advantages("leave_one_out", rewards, 2, scale="none")
    with pytest.raises(UserError, match="scale='std'"):
        advantages("group", rewards, 2, scale="std")


def test_combining_by_weighted_sum_leaves_out_what_is_not_scorable():
    rewards = np.array([[1, 10], [NAN, 10], [2, NAN], [NAN, NAN]])
    actual = combine_rewards(rewards, np.array([2.0, 0.5]), 2)
    np.testing.assert_allclose(actual, [7, 5, 4, NAN])


def test_combining_after_normalising_each():
    """Against loops; and the result is what advantages without another division leave as it is."""
    random = np.random.default_rng(1)
    rewards = random.normal(size=(12, 3)) * [1, 100, 0.01]
    rewards[[1, 5], 0] = NAN
    rewards[6, :] = NAN
    weights = np.array([1.0, 2.0, 0.5])
    columns = [reference_group_advantages(rewards[:, k], 4, "group", 1, 1e-4) for k in range(3)]
    known = ~np.isnan(rewards).all(axis=1)
    total = np.array(columns).T @ weights
    expected = (total - total[known].mean()) / (total[known].std(ddof=1) + 1e-4)
    actual = combine_rewards(rewards, weights, 4, how="normalise_each")
    np.testing.assert_allclose(actual, np.where(known, expected, NAN), rtol=1e-10, atol=1e-12)
    again = group_advantages(actual, 4, scale="none")
    np.testing.assert_allclose(again, np.where(known, expected, 0), atol=1e-9)


def test_normalising_each_lets_no_reward_drown_another():
    rewards = np.array([[1.0, 0], [0, 1000], [0, 0], [1, 1000]])
    a = np.asarray(combine_rewards(rewards, np.ones(2), 4, how="normalise_each", epsilon=0.0))
    np.testing.assert_allclose(a[0], a[1], atol=1e-12)
    scaled = combine_rewards(rewards * [1, 1e-3], np.ones(2), 4, how="normalise_each", epsilon=0.0)
    np.testing.assert_allclose(a, scaled, atol=1e-12)


def test_mistakes_in_combining_are_named():
    with pytest.raises(UserError, match="3 weights are given for 2 rewards"):
        combine_rewards(jnp.zeros((4, 2)), jnp.zeros(3), 2)
    with pytest.raises(UserError, match="how='mean'"):
        combine_rewards(jnp.zeros((4, 2)), jnp.zeros(2), 2, how="mean")
