"""Advantages of own completions and of a given reference answer in one group, and the weights they come to (GRAO)."""

import chex
import jax
import jax.numpy as jnp

from jaxalign.objective import safe_divide
from jaxalign.rewards import statistics
from jaxalign.rewards.groups import grouped


def reference_advantages(
    rewards: jax.Array, group_size: int, *, include_reference: bool = True, epsilon: float = 1e-8
) -> jax.Array:
    """A = (R - mean) / (std + epsilon) of completions and of the reference answer y, the LAST of each group; ddof 0.

    With `include_reference` mean and std are those of all members; without it (equation 4 taken literally) those of
    the policy's own completions, so that a group that all loses against the reference teaches nothing. A group
    without any spread gives zeros for all.

    Args:
      rewards: [B], groups next to each other, for example -1, 0, 1 for losing, tying, winning against y and 0 for y
        itself; NaN = not scorable, left out.
      group_size: members of a group, own completions and y; divides B.
      include_reference: see above.
      epsilon: in units of reward.

    Returns:
      [B] advantages, constants.

    Raises:
      UserError: the group size does not divide B.

    GRAO: arXiv 2508.07750. That y belongs to the group, and the zeros, are read into the paper.
    """
    groups = grouped(rewards, group_size)
    known = ~jnp.isnan(groups)
    counts = known if include_reference else known.at[:, -1].set(False)
    values = jnp.where(known, groups, 0)
    deviations = statistics.deviations(values, counts)
    std = jnp.sqrt(statistics.variance(deviations, counts, ddof=0))
    if not include_reference:
        mean = safe_divide(jnp.where(counts, values, 0).sum(1, keepdims=True), counts.sum(1, keepdims=True))
        deviations = deviations.at[:, -1].set(values[:, -1] - mean[:, 0])
    return jnp.where(known & (std > 0), statistics.scaled(deviations, std + epsilon), 0).reshape(-1)


def reference_weights(
    advantages: jax.Array,
    reference_advantage: jax.Array,
    *,
    imitation: float = 0.5,
    alignment: float = 0.6,
    clamp_reference: bool = True,
) -> tuple[jax.Array, jax.Array]:
    """Exploration, imitation and the alignment regulariser as one weight for each log-likelihood:

      w_i = (1 + alignment) A_i / G,    w_y = imitation A_y - alignment mean_i(A_i)

    so that J = sum_i w_i J(o_i) + w_y J(y) is mean_i A_i J(o_i) + imitation A_y J(y) + alignment mean_i A_i (J(o_i) -
    J(y)).

    Where a group wins against the reference w_y is negative, and minimising the loss drives the reference's
    likelihood to 0 without bound.

    Args:
      advantages: [P, G].
      reference_advantage: [P].
      imitation: beta.
      alignment: lambda.
      clamp_reference: w_y is at least 0. Not in the paper (False there).

    Returns:
      (w [P, G], w_y [P]).

    GRAO: arXiv 2508.07750, the objective with its terms collected.
    """
    chex.assert_rank([advantages, reference_advantage], [2, 1])
    own = (1 + alignment) * advantages / advantages.shape[1]
    reference = imitation * reference_advantage - alignment * advantages.mean(axis=1)
    return own, jnp.maximum(reference, 0) if clamp_reference else reference
