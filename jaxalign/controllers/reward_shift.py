"""The reward at which a completion is neither good nor bad, followed from batch to batch: the shift of BCO."""

from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from jaxalign.losses.aggregation import where_counted
from jaxalign.objective import safe_divide

ShiftMode = Literal["ema", "cumulative", "batch", "none"]


class RewardShift(NamedTuple):
    """Scalars, float32. Rewards are beta (S - R)."""

    shift: jax.Array  # delta: the decision of the last update
    desirable: jax.Array  # moving average of the mean reward of each class
    undesirable: jax.Array
    pooled: jax.Array  # mean of all rewards seen, both classes together
    seen_desirable: jax.Array  # rows seen of each class
    seen_undesirable: jax.Array


def init() -> RewardShift:
    """The state before the first batch, with a shift of 0."""
    return RewardShift(*(jnp.zeros((), jnp.float32) for _ in RewardShift._fields))


def update(
    state: RewardShift,
    rewards: jax.Array,
    label: jax.Array,
    mask: jax.Array,
    *,
    mode: ShiftMode = "ema",
    decay: float = 0.9,
    axis_name: str | None = None,
) -> tuple[RewardShift, jax.Array]:
    """The state after a batch and its shift delta, which the loss of the SAME batch reads (once per optimizer step).

    With m+ and m- the mean rewards of the desirable and the undesirable rows of the batch:

    | mode       | shift                                                                                  |
    |------------|----------------------------------------------------------------------------------------|
    | ema        | (M+ + M-) / 2, M <- decay M + (1 - decay) m; the first batch of a class starts its M   |
    | cumulative | mean of all rewards seen so far, this batch included, the classes pooled               |
    | batch      | (m+ + m-) / 2                                                                          |
    | none       | 0                                                                                      |

    (M+ + M-) / 2 is the shift of the tightest bound (`diagnostics.classification_bound`). A class that was never seen
    is left out: the shift is the mean of the other. A class that is absent from a batch keeps its M. All means are
    kept in every mode, so that a mode may be changed between runs.

    Args:
      state: from `init` or the last `update`.
      rewards: [B] beta (S - R). What is not finite is left out.
      label: [B], 1 or True = desirable.
      mask: [B], 1 = the row counts.
      mode, decay: above; decay in [0, 1).
      axis_name: inside a shard_map, the axis over which sums and counts are added: one shift for all devices.

    Returns:
      (state, shift []), constants. A batch without rows changes nothing.

    Raises:
      ValueError: unknown mode, decay out of range.

    arXiv 2404.04656. The paper's moving average has no printed decay; "cumulative" is what TRL's trainer did, and is
    not class-balanced.
    """
    if mode not in get_args(ShiftMode):
        raise ValueError(f"unknown mode {mode!r} of the reward shift; choose one of {get_args(ShiftMode)}")
    if not 0 <= decay < 1:
        raise ValueError(f"decay={decay} of the reward shift must be in [0, 1)")
    rewards = jax.lax.stop_gradient(jnp.asarray(rewards))
    counts = jnp.asarray(mask, jnp.float32) * jnp.isfinite(rewards)
    rewards = where_counted(rewards, counts, jnp.float32)
    good = counts * (where_counted(jnp.asarray(label), counts, jnp.float32) > 0)
    bad = counts - good

    sums = jnp.stack([(good * rewards).sum(), (bad * rewards).sum(), good.sum(), bad.sum()])
    if axis_name is not None:
        sums = jax.lax.psum(sums, axis_name)
    good_sum, bad_sum, good_count, bad_count = sums
    good_mean, bad_mean = safe_divide(good_sum, good_count), safe_divide(bad_sum, bad_count)

    def followed(old: jax.Array, mean: jax.Array, count: jax.Array, seen: jax.Array) -> jax.Array:
        new = jnp.where(seen > 0, decay * old + (1 - decay) * mean, mean)
        return jnp.where(count > 0, new, old)

    desirable = followed(state.desirable, good_mean, good_count, state.seen_desirable)
    undesirable = followed(state.undesirable, bad_mean, bad_count, state.seen_undesirable)
    count = good_count + bad_count
    seen_desirable, seen_undesirable = state.seen_desirable + good_count, state.seen_undesirable + bad_count
    seen = seen_desirable + seen_undesirable
    # a running mean and not a sum: the sum would soon be too large for the digits of float32
    pooled = state.pooled + safe_divide(good_sum + bad_sum - count * state.pooled, seen)
    shifts = {
        "ema": _balanced(desirable, undesirable, seen_desirable, seen_undesirable),
        "cumulative": pooled,
        "batch": _balanced(good_mean, bad_mean, good_count, bad_count),
        "none": jnp.zeros(()),
    }
    shift = jnp.where(count > 0, shifts[mode], state.shift).astype(jnp.float32)
    return RewardShift(shift, desirable, undesirable, pooled, seen_desirable, seen_undesirable), shift


def _balanced(one: jax.Array, other: jax.Array, one_count: jax.Array, other_count: jax.Array) -> jax.Array:
    """The mean of the two, of which one without rows is left out."""
    there, others = one_count > 0, other_count > 0
    return safe_divide(there * one + others * other, jnp.asarray(there + 0.0 + others))
