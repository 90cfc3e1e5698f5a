"""How much more likely an example is under one distribution than under another, by a classifier of the two."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import sigmoid, softplus


class LogisticFit(NamedTuple):
    weights: jax.Array  # [d]
    bias: jax.Array  # []


def fit_density_ratio(numerator: jax.Array, denominator: jax.Array, *, l2: float = 1.0, steps: int = 30) -> LogisticFit:
    """The logistic classifier of embeddings of two sets: n of label 1 and m of label 0, each set of total weight 1/2.

    Minimises l2 |w|^2 / 2 + sum_i s_i log(1 + exp(-y_i (w e_i + b))), s_i = (n + m) / (2 n) or (n + m) / (2 m), y_i
    = +-1 (the class-balanced logistic regression with C = 1 / l2, its bias not penalised), by Newton's method from 0.
    Balanced, because the ratio of unbalanced classes would hold their sizes. Without randomness.

    Args:
      numerator, denominator: [n, d] and [m, d]; n, m >= 1. bfloat16 is computed in float32.
      l2: > 0: keeps the classifier finite where the sets are separable.
      steps: of Newton's method; each halves its step until the objective falls.

    Raises:
      ValueError: an empty set, an l2 that is not positive.

    BCO's matching of the underlying distributions: arXiv 2404.04656 (v1).
    """
    if not len(numerator) or not len(denominator):
        raise ValueError(f"a density ratio of {len(numerator)} and {len(denominator)} examples: both must be there")
    if l2 <= 0:
        raise ValueError(f"l2={l2} of the density ratio must be more than 0")
    dtype = jnp.promote_types(jnp.float32, jnp.result_type(numerator, denominator))
    n, m = len(numerator), len(denominator)
    features = jnp.concatenate([jnp.asarray(numerator, dtype), jnp.asarray(denominator, dtype)])
    features = jnp.concatenate([features, jnp.ones((n + m, 1), dtype)], axis=1)
    sign = jnp.concatenate([jnp.ones(n, dtype), -jnp.ones(m, dtype)])
    balance = jnp.where(sign > 0, (n + m) / (2 * n), (n + m) / (2 * m)).astype(dtype)
    penalty = jnp.full(features.shape[1], l2, dtype).at[-1].set(0)
    halves = jnp.concatenate([2.0 ** -jnp.arange(12, dtype=dtype), jnp.zeros(1, dtype)])

    def value(theta: jax.Array) -> jax.Array:
        return (penalty * theta**2).sum() / 2 + (balance * softplus(-sign * (features @ theta))).sum()

    def newton(_: int, theta: jax.Array) -> jax.Array:
        p = sigmoid(features @ theta)
        gradient = penalty * theta + features.T @ (balance * (p - (sign > 0)))
        # a trace of ridge: where all is told apart nothing else bends the bias
        curvature = (features.T * (balance * p * (1 - p))) @ features + jnp.diag(penalty + 1e-6)
        candidates = theta - halves[:, None] * jnp.linalg.solve(curvature, gradient)
        values = jax.vmap(value)(candidates)
        return candidates[jnp.argmin(jnp.where(jnp.isnan(values), jnp.inf, values))]

    theta = jax.lax.fori_loop(0, steps, newton, jnp.zeros(features.shape[1], dtype))
    return LogisticFit(theta[:-1], theta[-1])


def density_ratio(fit: LogisticFit, embeddings: jax.Array, *, least: float = 0.5, most: float = 10.0) -> jax.Array:
    """clip(p / (1 - p + 1e-8), least, most) of embeddings [B, d] -> [B], constants: numerator over denominator.

    Rows of the denominator's set that are multiplied by it look like the numerator's.

    Raises:
      ValueError: limits that are not 0 <= least <= most.
    """
    if not 0 <= least <= most:
        raise ValueError(f"the limits of a density ratio are 0 <= least={least} <= most={most}")
    logits = jnp.asarray(embeddings).astype(fit.weights.dtype) @ fit.weights + fit.bias
    ratio = sigmoid(logits) / (sigmoid(-logits) + 1e-8)
    return jax.lax.stop_gradient(jnp.clip(ratio, least, most))
