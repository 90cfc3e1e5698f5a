"""A moving average of the reward, as the baseline of REINFORCE."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxalign.objective import safe_divide


class EmaBaseline(NamedTuple):
    value: jax.Array  # scalar, in units of reward


def init(value: float = 0.0) -> EmaBaseline:
    """The state before the first batch. `value` is the baseline of that batch: the reward one expects at the start."""
    return EmaBaseline(jnp.asarray(value, jnp.float32))


def update(state: EmaBaseline, rewards: jax.Array, *, decay: float = 0.9) -> tuple[EmaBaseline, jax.Array]:
    """b <- decay b + (1 - decay) mean(rewards), and the b from BEFORE this update as the decision.

    A baseline that holds the rewards it is subtracted from would be correlated with them and bias the
    gradient, so a batch is measured by what came before it:

      state, b = update(state, rewards)
      advantages = baseline_advantages(rewards, b)

    Args:
      state: from `init` or the last `update`.
      rewards: [B]; NaN = not scorable, left out. A batch with nothing scorable changes nothing.
      decay: in [0, 1).

    Returns:
      (state, baseline []), both constants.

    REINFORCE with a reinforcement baseline: R. J. Williams, Machine Learning 8 (1992), section 4.
    """
    rewards = jax.lax.stop_gradient(jnp.asarray(rewards))
    scorable = ~jnp.isnan(rewards)
    count = scorable.sum()
    mean = safe_divide(jnp.where(scorable, rewards, 0).sum(), count)
    value = jnp.where(count > 0, decay * state.value + (1 - decay) * mean, state.value)
    return EmaBaseline(value.astype(state.value.dtype)), state.value
