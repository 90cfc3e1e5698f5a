"""Terms that are added to the reward of a completion: what it costs to be too long."""

import jax
import jax.numpy as jnp

from jaxalign.errors import UserError
from jaxalign.losses.aggregation import float_sums


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
    excess = float_sums(max_length - buffer - jnp.asarray(lengths))
    return jnp.clip(excess / buffer, -1, 0)
