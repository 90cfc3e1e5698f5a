"""Does a policy find the better answers of a question more likely than the worse ones?"""

import chex
import jax
import jax.numpy as jnp


def compared(feedback: jax.Array, valid: jax.Array) -> jax.Array:
    """[B, N, N] bool: answer i of a question is better than answer j. Equal feedback makes no pair.

    Args:
      feedback: [B, N], right or wrong (bool), or any number that is higher for better answers.
      valid: [B, N], 0 = no answer (padding); it is in no pair whatever its feedback.
    """
    chex.assert_rank([feedback, valid], 2)
    chex.assert_equal_shape([feedback, valid])
    feedback, valid = jnp.asarray(feedback), jnp.asarray(valid) != 0
    both = valid[:, :, None] & valid[:, None, :]
    return both & (feedback[:, :, None] > feedback[:, None, :])


def assessment_accuracy(scores: jax.Array, feedback: jax.Array, valid: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(pairs whose better answer has the higher score, pairs); equal scores are half a pair.

    A metric in the form of all others: sums of several batches add up, `safe_divide` gives the share. Without gradient.

    Args:
      scores: [B, N], such as mean log-probs of the answers; may be anything where `valid` is 0.
      feedback, valid: of `compared`.

    Assessment accuracy of AFT, arXiv 2309.02144, there of right against wrong answers.
    """
    chex.assert_equal_shape([scores, feedback])
    scores = jax.lax.stop_gradient(jnp.where(jnp.asarray(valid) != 0, scores, 0))
    dtype = jnp.promote_types(jnp.float32, scores.dtype)
    first, second = scores[:, :, None], scores[:, None, :]
    agreement = (first > second) + 0.5 * (first == second)
    pairs = compared(feedback, valid).astype(dtype)
    return (pairs * agreement).sum(), pairs.sum()
