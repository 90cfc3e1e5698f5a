"""The regression of a value function on returns, as PPO does it."""

import chex
import jax
import jax.numpy as jnp

from jaxalign.losses.aggregation import aggregate, sum_type, token_means, where_counted
from jaxalign.objective import Objective


def value_loss(
    values: jax.Array, old_values: jax.Array, returns: jax.Array, mask: jax.Array, *, clip: float | None = 0.2
) -> Objective:
    """0.5 max((v - R)^2, (clip(v, v_old - c, v_old + c) - R)^2), a mean over tokens.

    Gradient flows into `values` only. What stands at mask 0 has no effect.

    Args:
      values: [B, T], estimated by the value function being trained.
      old_values: [B, T], its estimates at the time of sampling.
      returns: [B, T] targets R (`jaxalign.rewards.gae.gae`).
      mask: [B, T], 1 = counts.
      clip: c, in units of reward; None: off.

    Returns:
      An Objective with the token means value, return and value_clip_fraction.

    Not in the PPO paper, but in its first implementation (openai/baselines, ppo2) and those after it.
    """
    chex.assert_rank([values, old_values, returns, mask], 2)
    chex.assert_equal_shape([values, old_values, returns, mask])
    chex.assert_type(values, float)
    mask = jnp.asarray(mask)
    dtype = sum_type(values)
    values, old_values, returns = (where_counted(x, mask, dtype) for x in (values, old_values, returns))
    old_values, returns = jax.lax.stop_gradient((old_values, returns))
    error = plain = (values - returns) ** 2
    if clip is not None:
        error = jnp.maximum(plain, (jnp.clip(values, old_values - clip, old_values + clip) - returns) ** 2)
    means = {"value": values, "return": returns, "value_clip_fraction": error > plain}
    total, weight = aggregate(0.5 * error, mask, "token-mean")
    return Objective(total, weight, token_means(means, mask, dtype))
