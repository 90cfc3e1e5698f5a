import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from jaxalign.controllers import prompt_statistics
from jaxalign.controllers.prompt_sampling import sample_prompts, sampling_probabilities
from jaxalign.controllers.prompt_statistics import effective_count, from_trials, recent_rate, success_rate

visits = st.lists(
    st.tuples(st.integers(0, 2), st.sampled_from([0.0, 0.25, 1.0, np.nan]), st.sampled_from([0.875, 0.96, 1.0])),
    min_size=6,
    max_size=6,
)


@hypothesis.settings(deadline=None, max_examples=40, derandomize=True)
@hypothesis.given(visits)
def test_it_is_what_a_loop_over_the_visits_gives(batch):
    state = prompt_statistics.init(3, successes=0.5, failures=jnp.array([0.5, 1, 2]), window=2)
    found, rates = prompt_statistics.update(state, *(jnp.array(column) for column in zip(*batch, strict=True)))
    alpha, beta, seen = [0.5] * 3, [0.5, 1.0, 2.0], {0: [], 1: [], 2: []}
    for prompt, outcome, kept in batch:
        if not np.isnan(outcome):
            alpha[prompt] = kept * alpha[prompt] + outcome
            beta[prompt] = kept * beta[prompt] + 1 - outcome
            seen[prompt].append(outcome)
    np.testing.assert_allclose(found.successes, alpha, rtol=1e-5)
    np.testing.assert_allclose(found.failures, beta, rtol=1e-5)
    np.testing.assert_array_equal(found.visits, [len(outcomes) for outcomes in seen.values()])
    expected = [np.mean(outcomes[-2:]) if outcomes else 0 for outcomes in seen.values()]
    np.testing.assert_allclose(recent_rate(found), expected, rtol=1e-6)
    np.testing.assert_allclose(rates, success_rate(found)[np.array([prompt for prompt, *_ in batch])])


def test_the_update_is_a_moving_average():
    """v <- v + (r - v) / (rho N + 1)."""
    state = prompt_statistics.init(1, successes=3.0, failures=2.0)
    for outcome, rho in ((1.0, 0.9), (0.3, 0.875), (0.0, 0.96)):
        before, count = success_rate(state)[0], effective_count(state)[0]
        state, rate = prompt_statistics.update(state, jnp.array([0]), jnp.array([outcome]), rho)
        np.testing.assert_allclose(rate[0], before + (outcome - before) / (rho * count + 1), rtol=1e-5)


@pytest.mark.parametrize(("rho", "worth"), [(0.875, 8), (0.96, 25)])
def test_what_is_remembered_is_bounded(rho, worth):
    state = prompt_statistics.init(1, successes=0.5, failures=0.5)
    for _ in range(4):
        state, rate = prompt_statistics.update(state, jnp.zeros(100, int), jnp.full(100, 0.25), rho)
    np.testing.assert_allclose(effective_count(state), worth, rtol=1e-3)
    np.testing.assert_allclose(rate[-1], 0.25, rtol=1e-3)


def test_trials_before_training_are_smoothed():
    state = from_trials(jnp.array([0.0, 8.0, 2.0]), 8)
    np.testing.assert_allclose(success_rate(state), [0.5 / 9, 8.5 / 9, 2.5 / 9], rtol=1e-6)
    np.testing.assert_allclose(effective_count(state), 8, rtol=1e-6)
    untried = from_trials(jnp.zeros(2), 0)
    np.testing.assert_array_equal(untried.successes, [0.5, 0.5])
    np.testing.assert_array_equal(untried.failures, [0.5, 0.5])


def test_the_rate_of_all_outcomes_and_before_the_first():
    state = prompt_statistics.init(2)
    np.testing.assert_array_equal(recent_rate(state), [0, 0])
    state, _ = prompt_statistics.update(state, jnp.array([1, 1, 1]), jnp.array([1.0, 0, 0]))
    np.testing.assert_allclose(recent_rate(state), [0, 1 / 3], rtol=1e-6)


def test_uncertain_prompts_come_more_often():
    state = prompt_statistics.init(3, successes=jnp.array([4.0, 8, 1]), failures=jnp.array([4.0, 0, 3]))
    raw = np.array([0.5 / 8, 0, np.sqrt(3) / 4 / 4]) + 0.05
    np.testing.assert_allclose(sampling_probabilities(state, exponent=1.0), raw / raw.sum(), rtol=1e-6)
    plain = np.array([0.5, 0, np.sqrt(3) / 4]) + 0.05
    np.testing.assert_allclose(sampling_probabilities(state), plain / plain.sum(), rtol=1e-6)


def test_prompts_are_drawn_without_replacement_in_proportion():
    probabilities = jnp.array([0.1, 0.2, 0.3, 0.4])
    draw = jax.jit(jax.vmap(lambda key: sample_prompts(key, probabilities, 2)))
    drawn = np.asarray(draw(jax.random.split(jax.random.key(0), 20_000)))
    assert (drawn[:, 0] != drawn[:, 1]).all()
    np.testing.assert_allclose(np.bincount(drawn[:, 0]) / 20_000, probabilities, atol=0.015)
    second = np.bincount(drawn[drawn[:, 0] == 3, 1], minlength=4)[:3]
    np.testing.assert_allclose(second / second.sum(), [1 / 6, 2 / 6, 3 / 6], atol=0.02)
    assert sorted(sample_prompts(jax.random.key(1), probabilities, 4).tolist()) == [0, 1, 2, 3]


def test_mistakes_are_named():
    state = prompt_statistics.init(3)
    for prompt in (-1, 3):
        with pytest.raises(ValueError, match=f"prompt {prompt} is not among the 3"):
            prompt_statistics.update(state, jnp.array([0, prompt]), jnp.zeros(2))
    with pytest.raises(ValueError, match="must lie in"):
        prompt_statistics.update(state, jnp.array([0]), jnp.array([1.5]))
    with pytest.raises(ValueError, match="0 prompts"):
        prompt_statistics.init(0)
    with pytest.raises(ValueError, match="floor=0"):
        sampling_probabilities(state, floor=0.0)
    with pytest.raises(ValueError, match="5 different prompts cannot be drawn from 4"):
        sample_prompts(jax.random.key(0), jnp.full(4, 0.25), 5)
