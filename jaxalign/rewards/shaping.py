"""Terms that are added to the reward of a completion: what it costs to be too long, or far from the reference."""

import chex
import jax
import jax.numpy as jnp

from jaxalign.errors import UserError
from jaxalign.losses.aggregation import float_sums, masked


def kl_penalty(
    old_log_probs: jax.Array, reference_log_probs: jax.Array, mask: jax.Array, coefficient: float | jax.Array
) -> jax.Array:
    """[B]: -coefficient * sum_t mask (old_log_prob - reference_log_prob), to be added to rewards [B].

    The sum is the k1 estimate, in nats, of the KL of whole completions from the reference: as a reward
    it regularises, as a loss term it does nothing in expectation. A constant: no gradient flows.

    Args:
      old_log_probs: [B, T] in nats, under the policy that sampled the tokens.
      reference_log_probs: [B, T].
      mask: [B, T], 1 = counts; what stands at 0 has no effect. 0 for a row where nothing counts.
      coefficient: beta, in units of reward per nat (0.05 for RLOO in TRL).

    InstructGPT, arXiv 2203.02155, equation 2; RLOO, arXiv 2402.14740.
    """
    chex.assert_rank([old_log_probs, reference_log_probs, mask], 2)
    chex.assert_equal_shape([old_log_probs, reference_log_probs, mask])
    mask = jnp.asarray(mask)
    old, reference = (masked(jnp.asarray(x), mask) for x in (old_log_probs, reference_log_probs))
    return jax.lax.stop_gradient(-coefficient * (old - reference).sum(axis=1))


def overlong_penalty(lengths: jax.Array, max_length: int, buffer: int) -> jax.Array:
    """A penalty in [-1, 0] that grows over the last `buffer` tokens before `max_length`.

    0 up to max_length - buffer, then ((max_length - buffer) - length) / buffer, and -1 from
    `max_length` on. To be added to the reward. UserError unless 0 < buffer <= max_length.

    Args:
      lengths: [B] lengths in tokens (not characters).
      max_length: tokens; 20480 in the paper.
      buffer: tokens; 4096 in the paper.

    DAPO: arXiv 2503.14476, equation 13.
    """
    if not 0 < buffer <= max_length:
        raise UserError(f"the buffer of {buffer} tokens must be at least 1 and at most max_length={max_length}")
    lengths = jnp.asarray(lengths)
    excess = float_sums(max_length - buffer - lengths)
    return jnp.clip(excess / buffer, -1, 0)
