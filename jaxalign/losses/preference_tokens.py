"""From per-token log-probs to what preference losses read, and weights of tokens and pairs that some papers add."""

import chex
import jax
import jax.numpy as jnp

from jaxalign.losses.aggregation import float_sums, masked, sum_type
from jaxalign.objective import safe_divide


def sequence_sums(
    log_probs: jax.Array, mask: jax.Array, token_weights: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """(sum over the tokens that count [...], their number [...]) of log-probs [..., T] in nats, at least float32.

    `token_weights` [..., T] multiply the log-probs (constants); give policy and reference the same. The number of
    tokens is without them. What stands at mask 0 has no effect, and a completion without tokens has sum 0.
    """
    chex.assert_equal_shape([log_probs, mask])
    values = masked(log_probs, mask)
    if token_weights is not None:
        values = masked(values * jax.lax.stop_gradient(token_weights), mask != 0)
    return values.sum(axis=-1), mask.astype(sum_type(log_probs)).sum(axis=-1)


def length_desensitised_weights(mask: jax.Array, alpha: float) -> jax.Array:
    """LD-DPO's token weights [B, 2, T] of pairs: `alpha` beyond the length of the shorter completion, else 1.

    Args:
      mask: [B, 2, T], 1 = a completion token that counts.
      alpha: in [0, 1]; 1 changes nothing.

    Raises:
      ValueError: alpha out of its range.

    arXiv 2409.06411.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha={alpha} of the length-desensitised weights must be in [0, 1]")
    counts = (mask != 0).astype(jnp.float32)
    rank = jnp.cumsum(counts, axis=-1)  # 1 for the first token that counts
    shorter = counts.sum(axis=-1).min(axis=-1)[:, None, None]
    return jnp.where(rank <= shorter, 1.0, alpha)


def policy_weights(log_probs: jax.Array, log_squared_sums: jax.Array, mask: jax.Array) -> jax.Array:
    """WPO's weight [B] of each pair: how likely the policy itself is to write the two completions.

    The product over both completions of exp(mean_t (log p(y_t) - log sum_v p_v^2)): the likelihood per token, over what
    the policy gives its own samples on average. A constant; for `preference_loss(weights=...)`.

    Args:
      log_probs: [B, 2, T] in nats, under the policy.
      log_squared_sums: [B, 2, T], log sum_v p_v^2 of the distribution that each token was drawn from.
      mask: [B, 2, T].

    arXiv 2406.11827.
    """
    values = masked(float_sums(log_probs) - jnp.where(mask != 0, log_squared_sums, 0), mask)
    means = safe_divide(values.sum(axis=-1), mask.astype(values.dtype).sum(axis=-1))
    return jax.lax.stop_gradient(jnp.exp(means.sum(axis=-1)))
