"""Rewards [B] as groups [P, G], and which completions of a group take part in the update."""

import chex
import jax
import jax.numpy as jnp

from jaxalign.errors import UserError


def constants(rewards: jax.Array) -> jax.Array:
    """`rewards` without gradient, in float32 or wider."""
    rewards = jax.lax.stop_gradient(jnp.asarray(rewards))
    return rewards.astype(jnp.promote_types(jnp.float32, rewards.dtype))


def grouped(rewards: jax.Array, group_size: int) -> jax.Array:
    """Constants [B] as [P, G]. UserError if the group size does not divide B."""
    chex.assert_rank(rewards, 1)
    rewards = constants(rewards)
    if group_size < 1 or rewards.shape[0] % group_size:
        raise UserError(
            f"group_size={group_size} does not divide the {rewards.shape[0]} rewards of the batch; "
            "every prompt needs the same number of completions"
        )
    return rewards.reshape(-1, group_size)


def kept_completions(
    advantages: jax.Array, rewards: jax.Array, group_size: int, leave_out: int
) -> tuple[jax.Array, jax.Array]:
    """Which completions are trained on when each group leaves out those with the smallest |advantage|.

    With median advantages and `leave_out=1` the one left out is the pivot (MC-GRPO); with the mean it is the
    control of equal cost. Completions that are not scorable (NaN reward) are never kept.

    Args:
      advantages: [B], groups next to each other.
      rewards: [B]; NaN = not scorable.
      group_size: G; divides B.
      leave_out: completions of each group, 0 <= leave_out < G (all, if fewer are scorable). Of equal ones the first.

    Returns:
      (indices [P, G - leave_out], kept [P, G - leave_out]): positions within the group, those kept first and each
      part in the order of the group; `kept` is False where a row only fills up the shape and must be masked.

    Raises:
      UserError: G does not divide B. ValueError: `leave_out` out of its range.

    MC-GRPO: arXiv 2601.22582.
    """
    if not 0 <= leave_out < group_size:
        raise ValueError(f"leave_out={leave_out} of a group must be at least 0 and less than group_size={group_size}")
    size = jnp.abs(grouped(advantages, group_size))
    scorable = ~jnp.isnan(grouped(rewards, group_size))
    smallest_first = jnp.argsort(jnp.where(scorable, size, jnp.inf), axis=1, stable=True)
    rank = jnp.argsort(smallest_first, axis=1, stable=True)
    kept = scorable & (rank >= leave_out)
    indices = jnp.argsort(~kept, axis=1, stable=True)[:, : group_size - leave_out]
    return indices, jnp.take_along_axis(kept, indices, axis=1)
