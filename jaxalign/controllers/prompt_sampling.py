"""Which prompts come next: more often those whose outcome is uncertain (SPO)."""

import jax
import jax.numpy as jnp

from jaxalign.controllers.prompt_statistics import PromptStatistics, effective_count, success_rate


def sampling_probabilities(state: PromptStatistics, *, exponent: float = 0.0, floor: float = 0.05) -> jax.Array:
    """[X]: proportional to sqrt(v (1 - v)) / N^exponent + floor, with v the success rate and N what it is worth.

    Args:
      state: the statistics; N > 0 everywhere unless the exponent is 0.
      exponent: gamma; 0 in the released code.
      floor: > 0, so that no prompt is given up.

    Raises:
      ValueError: a floor that is not positive.

    SPO: arXiv 2509.13232.
    """
    if floor <= 0:
        raise ValueError(
            f"floor={floor} of the sampling weights must be more than 0, or solved prompts never come again"
        )
    rate = success_rate(state)
    weights = jnp.sqrt(rate * (1 - rate)) * effective_count(state) ** -exponent + floor
    return weights / weights.sum()


def sample_prompts(key: jax.Array, probabilities: jax.Array, count: int) -> jax.Array:
    """[count] different indices: one after the other in proportion to `probabilities` [X] among those left.

    Raises:
      ValueError: more than X are wanted.
    """
    if not 1 <= count <= probabilities.shape[0]:
        raise ValueError(f"{count} different prompts cannot be drawn from {probabilities.shape[0]}")
    # The largest of log p + Gumbel noise are such a draw (Gumbel top-k).
    return jax.lax.top_k(jnp.log(probabilities) + jax.random.gumbel(key, probabilities.shape), count)[1]
