"""The result of every loss: a weighted sum, the weight it is divided by, and metrics in the same form.

A loss never divides. The sum and its weight are added over micro-batches, devices and hosts, and whoever
owns the global batch divides once. The mean of micro-batch means is a different (wrong) number as soon
as the micro-batches hold different numbers of tokens.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

Metrics = dict[str, tuple[jax.Array, jax.Array]]


class Objective(NamedTuple):
    """A loss before its division; the loss value is `total / weight`.

    Only `total` carries gradient. `weight` and the metrics are counts and sums to be reported.
    """

    total: jax.Array  # scalar: weighted sum of the loss
    weight: jax.Array  # scalar: what `total` is divided by, once
    metrics: Metrics  # name -> (sum, weight), both scalars


def safe_divide(total: jax.Array, weight: jax.Array) -> jax.Array:
    """`total / weight`, and 0 (value and gradient) where the weight is 0.

    A NaN that came in with a positive weight stays a NaN.
    """
    counts = weight > 0
    return jnp.where(counts, total, 0) / jnp.where(counts, weight, 1)


def add(first: Objective, second: Objective) -> Objective:
    """The objective of two micro-batches together.

    Raises:
      ValueError: the two carry different metrics, so that they do not come from the same loss.
    """
    different = set(first.metrics) ^ set(second.metrics)
    if different:
        raise ValueError(
            f"objectives with different metrics cannot be added: {sorted(different)} "
            "appear in only one of them; report a metric in every micro-batch or in none"
        )
    return jax.tree.map(jnp.add, first, second)


def loss(objective: Objective) -> jax.Array:
    """The loss value `total / weight`; 0 with zero gradient if nothing counted."""
    chex.assert_rank([objective.total, objective.weight], 0)
    return safe_divide(objective.total, objective.weight)


def metric_means(metrics: Metrics) -> dict[str, jax.Array]:
    """`{name: sum / weight}`; 0 for a metric to which nothing contributed."""
    return {name: safe_divide(total, weight) for name, (total, weight) in metrics.items()}
