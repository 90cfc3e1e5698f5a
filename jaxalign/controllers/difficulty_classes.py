"""Online classes of prompts by how often they are answered right, with hysteresis (GDRO)."""

from collections.abc import Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp


class DifficultyClasses(NamedTuple):
    last: jax.Array  # [X] int32: the class of each prompt of the data set, -1 before it was classified


def equal_edges(classes: int) -> tuple[float, ...]:
    """The inner edges of `classes` equal intervals of [0, 1]: 1/n, 2/n, ..."""
    return tuple(index / classes for index in range(1, classes))


def init(prompts: int) -> DifficultyClasses:
    return DifficultyClasses(jnp.full(prompts, -1, jnp.int32))


def update(
    state: DifficultyClasses, prompts: jax.Array, rates: jax.Array, edges: Sequence[float], *, hysteresis: float = 0.03
) -> tuple[DifficultyClasses, jax.Array]:
    """The class of each prompt: the number of edges <= its success rate, if it does not stay where it was.

    A prompt leaves its class only for a rate >= the upper edge + hysteresis or <= the lower edge - hysteresis, and
    goes to where its rate belongs. Class 0 is the hardest. To give prompts that are never (always) answered right a
    class of their own, let the first edge be just above 0 (the last one be 1).

    Args:
      state: from `init` or the last `update`.
      prompts: [B] int, indices of the data set. Of a prompt that comes twice, one of the rates counts.
      rates: [B] success rates in [0, 1] from BEFORE this step's outcomes
        (`jaxalign.controllers.prompt_statistics.recent_rate`).
      edges: increasing, within (0, 1]; one less than there are classes.
      hysteresis: delta >= 0.

    Returns:
      (state, classes [B] int32).

    Raises:
      ValueError: edges that do not increase.

    GDRO: arXiv 2601.19280. Its released code compares the rate of a falling prompt with the lower edge of the NEW
    class, so that with equal intervals no prompt ever falls; here it is the edge of the class it is in.
    """
    if not edges or list(edges) != sorted(set(edges)) or edges[0] <= 0 or edges[-1] > 1:
        raise ValueError(f"edges of difficulty classes must increase within (0, 1], not {tuple(edges)}")
    chex.assert_rank([prompts, rates], 1)
    # Compared in the type of the rates: floor(0.7 * 10) is 6 in float32.
    bounds = jnp.asarray(edges, rates.dtype)
    raw = (bounds <= rates[:, None]).sum(axis=1).astype(jnp.int32)
    current = state.last[prompts]
    infinite = jnp.full(1, jnp.inf, rates.dtype)
    upper = jnp.concatenate([bounds, infinite])[current] + hysteresis
    lower = jnp.concatenate([-infinite, bounds])[current] - hysteresis
    stays = (current >= 0) & (rates < upper) & (rates > lower)
    classes = jnp.where(stays, current, raw)
    return DifficultyClasses(state.last.at[prompts].set(classes)), classes
