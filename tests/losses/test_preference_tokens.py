import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.losses.preference_tokens import length_desensitised_weights, policy_weights, sequence_sums

MASK = np.array([[[1, 1, 1, 0], [1, 0, 1, 1]], [[1, 0, 0, 0], [1, 1, 1, 1]], [[0, 0, 0, 0], [1, 1, 0, 0]]], float)


def log_probs(seed=0):
    x = -np.random.default_rng(seed).uniform(0.1, 3, MASK.shape)
    return np.where(MASK > 0, x, np.nan)  # what stands at mask 0 has no effect


def test_sums_count_tokens_by_the_mask():
    x = log_probs()
    sums, lengths = sequence_sums(jnp.asarray(x), jnp.asarray(MASK))
    np.testing.assert_allclose(sums, np.nansum(x, -1), rtol=1e-6)
    np.testing.assert_array_equal(lengths, MASK.sum(-1))
    gradient = jax.grad(lambda x: sequence_sums(x, jnp.asarray(MASK))[0].sum())(jnp.asarray(x))
    np.testing.assert_array_equal(gradient, MASK)
    assert sequence_sums(jnp.asarray(x, jnp.bfloat16), jnp.asarray(MASK))[0].dtype == jnp.float32


def test_tokens_beyond_the_shorter_completion_weigh_alpha():
    weights = np.asarray(length_desensitised_weights(jnp.asarray(MASK), 0.25))
    for i in range(3):
        shorter = min(MASK[i].sum(-1))
        for k in range(2):
            seen = 0
            for t in range(4):
                if MASK[i, k, t]:
                    seen += 1
                    assert weights[i, k, t] == (1 if seen <= shorter else 0.25)
    x = log_probs(1)
    sums, lengths = sequence_sums(jnp.asarray(x), jnp.asarray(MASK), jnp.asarray(weights))
    np.testing.assert_allclose(sums, np.nansum(x * weights, -1), rtol=1e-6)
    np.testing.assert_array_equal(lengths, MASK.sum(-1))
    assert (length_desensitised_weights(jnp.asarray(MASK), 1.0) == 1).all()
    with pytest.raises(ValueError, match="must be in"):
        length_desensitised_weights(jnp.asarray(MASK), 1.5)


def test_policy_weights_are_those_of_the_formula():
    random = np.random.default_rng(2)
    logits = random.normal(size=(*MASK.shape, 7))
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    x = np.where(MASK > 0, np.log(p[..., 0]), np.nan)
    squares = np.where(MASK > 0, np.log((p**2).sum(-1)), np.inf)
    weights = policy_weights(jnp.asarray(x), jnp.asarray(squares), jnp.asarray(MASK))
    for i in range(3):
        product = 1.0
        for k in range(2):
            counted = [t for t in range(4) if MASK[i, k, t]]
            if counted:
                product *= np.exp(np.mean([x[i, k, t] - squares[i, k, t] for t in counted]))
        np.testing.assert_allclose(weights[i], product, rtol=1e-5)
    uniform = np.full(MASK.shape, -np.log(7.0))
    np.testing.assert_allclose(
        policy_weights(jnp.asarray(uniform), jnp.asarray(uniform), jnp.asarray(MASK)), 1, rtol=1e-6
    )
