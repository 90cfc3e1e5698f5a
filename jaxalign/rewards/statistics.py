"""Means and spreads over the entries that count, exact where nothing varies."""

import chex
import jax
import jax.numpy as jnp

from jaxalign.objective import safe_divide


def all_equal(values: jax.Array, counts: jax.Array, *, axis: int | None = -1) -> jax.Array:
    """Whether the counting entries along `axis` (kept, size 1) are one number; true for none or one."""
    low = jnp.where(counts, values, jnp.inf).min(axis=axis, keepdims=True)
    high = jnp.where(counts, values, -jnp.inf).max(axis=axis, keepdims=True)
    return low >= high


def deviations(values: jax.Array, counts: jax.Array, *, axis: int | None = -1) -> jax.Array:
    """`values - mean(values)` over the entries with `counts` true, and 0 at the others.

    Equal entries give exact zeros, although their rounded mean may be another number: divided by a
    spread that is about 0 too, the difference would look like a signal. Whatever stands where nothing
    counts has no effect; a NaN that counts stays a NaN.
    """
    kept = jnp.where(counts, values, 0)
    mean = safe_divide(kept.sum(axis=axis, keepdims=True), counts.sum(axis=axis, keepdims=True))
    return jnp.where(counts & ~all_equal(values, counts, axis=axis), kept - mean, 0)


def variance(deviations: jax.Array, counts: jax.Array, *, ddof: int, axis: int | None = -1) -> jax.Array:
    """sum(deviations^2) / (number that counts - ddof) along `axis` (kept, size 1); 0 if that is not above 0."""
    degrees = counts.sum(axis=axis, keepdims=True) - ddof
    return safe_divide((deviations**2).sum(axis=axis, keepdims=True), degrees)


def scaled(deviations: jax.Array, spread: jax.Array) -> jax.Array:
    """deviations / spread; where the spread is 0 (no variation, no epsilon) the deviations are 0 and stay so."""
    return deviations / jnp.where(spread == 0, 1, spread)


def whiten(x: jax.Array, mask: jax.Array, *, ddof: int = 1, epsilon: float = 1e-8) -> jax.Array:
    """(x - mean) / sqrt(variance + epsilon) over all entries with mask != 0; 0 at the others.

    Args:
      x: values of any shape, for example token advantages [B, T]. Taken as constants: no gradient.
      mask: same shape, 1 = counts.
      ddof: the variance is the sum of squares divided by (number that counts - ddof).
      epsilon: added to the variance, in the square of the unit of `x`.

    Returns:
      The shape of `x`, float32 or wider. Zeros if fewer than ddof + 1 entries count or all are equal.

    The masked whitening of PPO implementations for language models (TRL, verl).
    """
    chex.assert_equal_shape([x, mask])
    x = jax.lax.stop_gradient(jnp.asarray(x))
    x = x.astype(jnp.promote_types(jnp.float32, x.dtype))
    counts = jnp.asarray(mask) != 0
    centred = deviations(x, counts, axis=None)
    return scaled(centred, jnp.sqrt(variance(centred, counts, ddof=ddof, axis=None) + epsilon))
