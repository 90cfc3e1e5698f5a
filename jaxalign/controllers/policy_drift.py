"""How far the policy has moved on a prompt since its last visit, and how much of its statistics to keep (SPO)."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxalign.losses.aggregation import masked
from jaxalign.objective import safe_divide


class LastCompletions(NamedTuple):
    """Of each prompt of a data set the completion of its last visit; length 0 before the first."""

    ids: jax.Array  # [X, T] int32
    lengths: jax.Array  # [X] int32
    log_probs: jax.Array  # [X, T] float32, nats, under the policy AFTER the update of that visit


def init(prompts: int, max_length: int) -> LastCompletions:
    """The state before the first visit: 8 bytes a token of the longest completion and prompt."""
    tokens = (prompts, max_length)
    return LastCompletions(jnp.zeros(tokens, jnp.int32), jnp.zeros(prompts, jnp.int32), jnp.zeros(tokens, jnp.float32))


def update(
    state: LastCompletions, prompts: jax.Array, ids: jax.Array, lengths: jax.Array, log_probs: jax.Array
) -> tuple[LastCompletions, jax.Array]:
    """Remembers the completions [B, T] of `prompts` [B] (all different) with their log-probs under the updated policy.

    Returns:
      (state, first [B]): whether the prompt had none before.
    """
    chex.assert_rank([prompts, ids, lengths, log_probs], [1, 2, 1, 2])
    first = state.lengths[prompts] == 0
    values = (ids, lengths, jax.lax.stop_gradient(log_probs))
    return LastCompletions(*(old.at[prompts].set(new) for old, new in zip(state, values, strict=True))), first


def drift(log_probs_then: jax.Array, log_probs_now: jax.Array, mask: jax.Array) -> jax.Array:
    """D [B]: the mean of |log_prob_now - log_prob_then| over the tokens of a completion, in nats per token.

    0 for an empty completion, and where a stored log-prob is not a number. A constant.

    Args:
      log_probs_then: [B, T] of the completion at its own visit, after the update that followed it.
      log_probs_now: [B, T] of the SAME completion, after the update of this visit.
      mask: [B, T], 1 = counts.

    SPO: arXiv 2509.13232.
    """
    chex.assert_rank([log_probs_then, log_probs_now, mask], 2)
    chex.assert_equal_shape([log_probs_then, log_probs_now, mask])
    moved = masked(jnp.abs(jnp.asarray(log_probs_now) - jnp.asarray(log_probs_then)), jnp.asarray(mask))
    mean = safe_divide(moved.sum(axis=1), jnp.asarray(mask, moved.dtype).sum(axis=1))
    return jax.lax.stop_gradient(jnp.nan_to_num(mean, nan=0.0))


def retention(drift: jax.Array, *, half_life: float = 0.06, low: float = 0.875, high: float = 0.96) -> jax.Array:
    """rho = clip(2^(-D / half_life), low, high), the share of a prompt's statistics to keep.

    Args:
      drift: D >= 0, nats per token.
      half_life: the drift that halves what is kept, > 0.
      low, high: limits within [0, 1]. With a constant rho the statistics are worth 1 / (1 - rho) outcomes: 8 to 25.

    Raises:
      ValueError: a half-life or limits out of their range.

    SPO: arXiv 2509.13232.
    """
    if half_life <= 0 or not 0 <= low <= high <= 1:
        raise ValueError(f"half_life={half_life}, low={low}, high={high}: want half_life > 0 and 0 <= low <= high <= 1")
    return jnp.clip(jnp.exp2(-jnp.asarray(drift) / half_life), low, high)
