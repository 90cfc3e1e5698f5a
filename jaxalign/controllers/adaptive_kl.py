"""A KL coefficient that is raised while the policy is too far from the reference and lowered while it is too near."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class AdaptiveKl(NamedTuple):
    coefficient: jax.Array  # scalar beta, in units of reward (or of the loss) per nat


def init(coefficient: float) -> AdaptiveKl:
    """The state before the first batch.

    Raises:
      ValueError: a coefficient that is not positive; it is multiplied only, so 0 would stay 0.
    """
    if coefficient <= 0:
        raise ValueError(f"the KL coefficient starts at {coefficient}; it must be more than 0 to adapt")
    return AdaptiveKl(jnp.asarray(coefficient, jnp.float32))


def update(
    state: AdaptiveKl,
    kl: jax.Array,
    *,
    target: float,
    samples: float | jax.Array,
    horizon: float = 10_000.0,
    limit: float = 0.2,
) -> tuple[AdaptiveKl, jax.Array]:
    """beta <- beta (1 + clip(kl / target - 1, -limit, limit) samples / horizon).

    Args:
      state: from `init` or the last `update`.
      kl: measured on the batch just used, in nats, per token or per completion as `target` is. If it is
        not finite nothing changes.
      target: the KL to stay near, > 0.
      samples: completions in that batch.
      horizon: completions over which a relative error acts in full.
      limit: of the relative error.

    Returns:
      (state, beta []): the coefficient for the NEXT batch, which is the one in the state. A constant.

    Raises:
      ValueError: a target or horizon that is not positive.

    arXiv 1909.08593, section 2.2, there with samples / horizon fixed to 0.1.
    """
    if target <= 0 or horizon <= 0:
        raise ValueError(f"target={target} and horizon={horizon} of the adaptive KL must be more than 0")
    kl = jax.lax.stop_gradient(jnp.asarray(kl, state.coefficient.dtype))
    error = jnp.clip(kl / target - 1, -limit, limit)
    factor = jnp.where(jnp.isfinite(kl), 1 + error * samples / horizon, 1)
    coefficient = (state.coefficient * factor).astype(state.coefficient.dtype)
    return AdaptiveKl(coefficient), coefficient
