"""Alignment and uniformity: are partners near each other, and do embeddings fill the sphere?"""

from typing import Any

import chex
import jax
import jax.numpy as jnp

from jaxalign.losses.ring import LOG_SUM, NEVER, over_candidates
from jaxalign.losses.similarity import gathered, row_numbers, unit
from jaxalign.objective import Objective


def alignment_loss(a: jax.Array, b: jax.Array, *, alpha: float = 2.0, valid: jax.Array | None = None) -> Objective:
    """sum_i ||u(a_i) - u(b_i)||^alpha over partners, with u the unit vector; 0 where all partners point the same way.

    Rows do not interact. Gradient flows into `a` and `b`; it is 0 where partners coincide.

    Args:
      a, b: [B, D].
      alpha: exponent, 1 or more.
      valid: [B], 0 for rows that do not count. None: all count.

    Returns:
      An Objective with weight = rows that count, and no metrics.

    Raises:
      ValueError: alpha below 1.

    arXiv 2005.10242.
    """
    if alpha < 1:
        raise ValueError(f"alpha={alpha} must be at least 1: below, the gradient of partners that meet is infinite")
    chex.assert_rank([a, b], 2)
    chex.assert_equal_shape([a, b])
    counts = jnp.ones(len(a), bool) if valid is None else jnp.asarray(valid) != 0
    a, b = (unit(jnp.where(counts[:, None], x, 0)) for x in (a, b))
    squared = jnp.sum((a - b) ** 2, -1)
    meet = squared <= 0
    distances = jnp.where(meet, 0, jnp.where(meet, 1, squared) ** (alpha / 2))
    total = jnp.where(counts, distances, 0).sum()
    return Objective(total, counts.astype(total.dtype).sum(), {})


def uniformity_loss(
    x: jax.Array,
    *,
    t: float = 2.0,
    valid: jax.Array | None = None,
    chunk: int | None = None,
    axis_name: str | tuple[str, ...] | None = None,
    ring: bool = False,
) -> Objective:
    """N log mean_{i < j} exp(-t ||u(x_i) - u(x_j)||^2), the mean over all pairs of rows, with weight N.

    0 if all rows point the same way, and negative otherwise. The squared distance is 2 - 2 cos. Every row carries the
    same value, so that parts of several devices add up to that of the whole. Gradient flows into `x`.

    Args:
      x: [N, D].
      t: positive.
      valid, chunk, axis_name, ring: see `jaxalign.losses.contrastive`.

    Returns:
      An Objective with weight = rows that count, 0 if there are fewer than two, and no metrics.

    Raises:
      ValueError: t not positive; from `over_candidates`.

    arXiv 2005.10242.
    """
    if t <= 0:
        raise ValueError(f"t={t} must be positive")
    chex.assert_rank(x, 2)
    counts = jnp.ones(len(x), bool) if valid is None else jnp.asarray(valid) != 0
    x = unit(jnp.where(counts[:, None], x, 0))

    def look(anchors, candidates):
        exponents = 2 * t * (anchors["x"] @ candidates["x"].T - 1)
        other = candidates["counts"] & (anchors["row"][:, None] != candidates["row"])
        return {"log_sum": jax.nn.logsumexp(jnp.where(other, exponents, NEVER), -1)}

    anchors = {"x": x, "row": row_numbers(len(x), axis_name)}
    how: dict[str, Any] = dict(chunk=chunk, axis_name=axis_name, ring=ring)
    found = over_candidates(look, {"log_sum": LOG_SUM}, anchors, anchors | {"counts": counts}, **how)
    log_sums, everywhere = gathered((jnp.where(counts, found["log_sum"], NEVER), counts), axis_name)
    rows = everywhere.astype(x.dtype).sum()
    several = rows > 1
    value = jax.nn.logsumexp(log_sums) - jnp.log(jnp.where(several, rows * (rows - 1), 1))
    weight = jnp.where(several, counts.astype(x.dtype).sum(), 0)
    return Objective(jnp.where(several, value, 0) * weight, weight, {})
