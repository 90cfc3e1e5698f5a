"""The study of lengths: what it samples is what it computes, and the bias is there; 4 seeds of it in docs/claims."""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.studies.length_bias import POSITIONS, START, expected_lengths, run, sample


def test_the_table_starts_at_4_86_tokens():
    np.testing.assert_allclose(list(run("start", seed=0).values()), (1 - 0.8**16) / 0.2, rtol=1e-6)


def test_the_samples_have_the_expected_length():
    """Right and wrong lengths are drawn from the table whose expected length is computed."""
    logits = jnp.stack([jnp.full(POSITIONS, START), jnp.linspace(-2, 1, POSITIONS)])
    keys = jax.random.split(jax.random.key(3), 50)
    right, _, mask = jax.jit(jax.vmap(sample, (0, None)))(keys, logits)
    lengths = np.asarray(mask.sum(axis=2))
    for kind in (0, 1):
        chosen = lengths[np.asarray(right) == kind]
        error = chosen.std() / np.sqrt(chosen.size)
        assert abs(chosen.mean() - expected_lengths(logits)[kind]) < 4 * error
    np.testing.assert_allclose(right.mean(), 0.25, atol=0.02)


def test_grpo_makes_wrong_answers_long_and_right_ones_short():
    found = run("grpo", seed=0)
    assert found["wrong"] > 8
    assert found["right"] < 2


def test_dr_grpo_leaves_lengths_alone():
    assert all(4.3 < length < 5.4 for length in run("dr_grpo", seed=0).values())
