import itertools
import math

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from jaxalign.errors import UserError
from jaxalign.rewards.advantages import group_advantages
from jaxalign.rewards.groups import kept_completions
from jaxalign.rewards.median import median_advantages, sign_flip_rate
from tests.compiled import compiled

group_advantages, kept_completions, median_advantages, sign_flip_rate = map(
    compiled, (group_advantages, kept_completions, median_advantages, sign_flip_rate)
)

NAN = np.nan
GROUP = 5


def reference(rewards, group_size, scale, epsilon, compensate=False, limit=None):
    result = []
    for start in range(0, len(rewards), group_size):
        group = rewards[start : start + group_size]
        known = sorted(r for r in group if not np.isnan(r))
        if not known:
            result += [0.0] * group_size
            continue
        median = known[(len(known) - 1) // 2]
        deviations = sorted(abs(r - median) for r in known)
        std = np.std(known, ddof=1) if len(known) > 1 else 0.0
        spread = {"mad": deviations[(len(known) - 1) // 2], "std": std, "none": 1 - epsilon}[scale]
        row = [0.0 if np.isnan(r) else (r - median) / (spread + epsilon) for r in group]
        if compensate:
            active = sum(abs(a) > 1e-6 for a in row)
            row = [a * len(known) / active if active else 0.0 for a in row]
        result += row if limit is None else [min(max(a, -limit), limit) for a in row]
    return result


def some_rewards():
    random = np.random.default_rng(0)
    rewards = random.normal(size=6 * GROUP)
    rewards[[2, 5, 6, 7]] = NAN  # the second group has two scorable rewards left
    rewards[10:15] = NAN
    rewards[15:20] = 0.1
    rewards[20:25] = [0, 1, 0, 0, 1]
    return rewards


@pytest.mark.parametrize("scale", ["mad", "std", "none"])
@pytest.mark.parametrize("options", [{}, {"compensate": True}, {"limit": 0.7}, {"compensate": True, "limit": 3.0}])
def test_median_advantages_are_those_of_the_loops(scale, options):
    rewards = some_rewards()
    with jax.enable_x64(True):
        actual = median_advantages(rewards, GROUP, scale=scale, epsilon=1e-3, **options)
        np.testing.assert_allclose(actual, reference(rewards, GROUP, scale, 1e-3, **options), rtol=1e-9, atol=1e-9)


@hypothesis.settings(deadline=None, max_examples=40, derandomize=True)
@hypothesis.given(st.lists(st.integers(-16, 16).map(lambda i: i / 8), min_size=4, max_size=4), st.integers(-40, 40))
def test_an_even_group_takes_the_lower_median_and_shifts_do_not_matter(rewards, shift):
    """Sixteenths are exact, so that shifted rewards have the very same deviations."""
    actual = median_advantages(np.array(rewards), 4, scale="none")
    np.testing.assert_allclose(actual, np.array(rewards) - sorted(rewards)[1], atol=1e-6)
    np.testing.assert_allclose(median_advantages(np.array(rewards) + shift, 4, scale="none"), actual, atol=1e-6)


def test_binary_rewards_move_the_minority_only():
    actual = median_advantages(np.array([1.0, 0, 0, 1, 1, 0, 0, 0, 0]), 3)
    np.testing.assert_allclose(actual, [1000, 0, 0, 0, 0, -1000, 0, 0, 0], rtol=1e-5)
    limited = median_advantages(np.array([1.0, 0, 0]), 3, limit=5.0)
    np.testing.assert_allclose(limited, [5, 0, 0])


def test_one_completion_is_left_out_and_it_is_the_pivot():
    rewards = np.array([3.0, 1, 2, 9, 0, 5, 5, 5, 5, 5])
    advantages = median_advantages(rewards, GROUP)
    indices, kept = kept_completions(advantages, rewards, GROUP, 1)
    np.testing.assert_array_equal(indices, [[0, 1, 3, 4], [1, 2, 3, 4]])
    assert np.asarray(kept).all()


def test_what_is_not_scorable_is_never_kept():
    rewards = np.array([3.0, NAN, 2, 9, 0, NAN, NAN, 5, NAN, NAN, NAN, NAN, NAN, NAN, NAN])
    indices, kept = kept_completions(median_advantages(rewards, GROUP), rewards, GROUP, 1)
    np.testing.assert_array_equal(indices[0], [0, 3, 4, 1])  # the lower median, 2, is the pivot
    np.testing.assert_array_equal(kept, [[True, True, True, False], [False] * 4, [False] * 4])


def test_nothing_is_left_out_unless_asked():
    rewards = np.array([0.0, 1, 1, 1, NAN, 1])
    indices, kept = kept_completions(group_advantages(rewards, 3), rewards, 3, 0)
    np.testing.assert_array_equal(indices, [[0, 1, 2], [0, 2, 1]])
    np.testing.assert_array_equal(kept, [[True] * 3, [True, True, False]])


def closed_form(k):
    n = 2 * k + 1
    wrong = sum(math.comb(n, j) * (k - j if j <= k else j - k - 1) for j in range(n + 1))
    return wrong / 2**n / (2 * k)


def test_the_closed_form_by_enumeration():
    """Signs of 3 and 5 independent rewards around the population's median, all equally likely."""
    for k in (1, 2):
        rates = []
        for signs in itertools.product([-1, 1], repeat=2 * k + 1):
            below = signs.count(-1)
            rates.append((k - below if below <= k else below - k - 1) / (2 * k))
        np.testing.assert_allclose(np.mean(rates), closed_form(k))
    np.testing.assert_allclose([closed_form(k) for k in (1, 2, 3)], [1 / 8, 7 / 64, 19 / 192])


def flips(rewards, advantages, group_size, leave_out, baseline=0.0):
    indices, kept = map(np.asarray, kept_completions(advantages, rewards, group_size, leave_out))

    def taken(x):
        return np.take_along_axis(np.asarray(x).reshape(-1, group_size), indices, axis=1)

    return float(sign_flip_rate(taken(advantages), taken(rewards), baseline, kept))


def test_wrong_signs_are_fewer_than_with_the_mean():
    """The measured rates of 1e5 groups: normal rewards, heavy tails, and skewed ones where the median does not help."""
    random = np.random.default_rng(1)
    groups = 100_000
    for size, mean_rate, median_rate in ((2, 0.25, closed_form(1)), (4, 0.166, closed_form(2))):
        rewards = random.normal(size=groups * size)
        assert abs(flips(rewards, group_advantages(rewards, size), size, 0) - mean_rate) < 0.005
        more = random.normal(size=groups * (size + 1))
        assert abs(flips(more, median_advantages(more, size + 1), size + 1, 1) - median_rate) < 0.005
    heavy = random.standard_t(2, size=groups * 5)
    found = {
        "mean": flips(heavy[: groups * 4], group_advantages(heavy[: groups * 4], 4), 4, 0),
        "control": flips(heavy, group_advantages(heavy, 5), 5, 1),
        "median": flips(heavy, median_advantages(heavy, 5), 5, 1),
    }
    np.testing.assert_allclose(list(found.values()), [0.21, 0.139, 0.109], atol=0.006)
    skewed = 0.1 * random.normal(size=groups * 5) + 3 * (random.random(groups * 5) < 0.1)
    mean = flips(skewed[: groups * 4], group_advantages(skewed[: groups * 4], 4), 4, 0, baseline=0.3)
    median = flips(skewed, median_advantages(skewed, 5), 5, 1, baseline=0.3)
    assert median > mean + 0.02  # signs around the population's MEAN are no better


def test_mistakes_are_named():
    with pytest.raises(UserError, match="scale='group' of median"):
        median_advantages(jnp.zeros(3), 3, scale="group")
    with pytest.raises(UserError, match="group_size=3 does not divide the 4"):
        median_advantages(jnp.zeros(4), 3)
    for leave_out in (-1, 3):
        with pytest.raises(ValueError, match=f"leave_out={leave_out}"):
            kept_completions(jnp.zeros(3), jnp.zeros(3), 3, leave_out)
