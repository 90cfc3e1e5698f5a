"""How per-token values become one number: four weighted sums, each with the weight that divides it."""

from typing import Literal, get_args

import chex
import jax
import jax.numpy as jnp

from jaxalign.objective import Metrics, safe_divide

Aggregation = Literal["token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-scale"]


def sum_type(x: jax.Array) -> jnp.dtype:
    """The type in which long sums of `x` are taken: float32, or float64 if it came as float64."""
    return jnp.promote_types(jnp.float32, x.dtype)


def float_sums(x: jax.Array) -> jax.Array:
    """`x` in the type in which long sums of it are taken."""
    return x.astype(sum_type(x))


def masked(x: jax.Array, mask: jax.Array) -> jax.Array:
    """`x * mask` for sums, where whatever stands at mask 0 (NaN, infinity) has no effect.

    The choice comes before the product because 0 * NaN is NaN, in the value and in the gradient.
    """
    x = float_sums(x)
    return jnp.where(mask != 0, x, 0) * mask.astype(x.dtype)


def where_counted(x: jax.Array, mask: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
    """`x` in `dtype` with 0 at mask 0: what stands there, and its gradient, gets no further.

    The first thing to do with an input of a loss: a NaN that enters a product comes back in the gradient
    even if the value is dropped later.
    """
    return jnp.where(mask != 0, jnp.asarray(x, dtype), 0)


def token_means(values: dict[str, jax.Array], mask: jax.Array, dtype: jax.typing.DTypeLike) -> Metrics:
    """[B, T] values (bool or numbers) as metrics: (sum over tokens that count, their number), without gradient."""
    constants = {name: jax.lax.stop_gradient(x).astype(dtype) for name, x in values.items()}
    return {name: aggregate(x, mask, "token-mean") for name, x in constants.items()}


def aggregate(
    x: jax.Array,
    mask: jax.Array,
    mode: Aggregation,
    *,
    scale_length: float | None = None,
    count_empty: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Reduces `x` to (total, weight); the aggregated value is `total / weight`.

    With m the mask, n_i = sum_t m_it, N = sum_i n_i and S the number of rows with n_i > 0:

    | mode                 | total                       | weight |
    |----------------------|-----------------------------|--------|
    | token-mean           | sum_it x m                  | N      |
    | seq-mean-token-mean  | sum_i (sum_t x m) / n_i     | S      |
    | seq-mean-token-sum   | sum_it x m                  | S      |
    | seq-mean-token-scale | sum_it x m / scale_length   | S      |

    Totals and weights of disjoint sets of rows add up to those of their union. Sums are float32
    (float64 for float64 input). Gradient flows into `x` where the mask is not 0.

    Args:
      x: [B, T] values per token.
      mask: [B, T], 1 = counts. Rows without any counting token contribute nothing.
      mode: one of the four names above.
      scale_length: the constant of seq-mean-token-scale, in tokens (Dr. GRPO, arXiv 2503.20783: the
        generation budget). Never the padded width of the batch: the loss would depend on padding.
      count_empty: the weight of the three seq modes is B instead of S.

    Raises:
      ValueError: unknown mode, or a `scale_length` that is missing, not positive or not used.
    """
    chex.assert_rank([x, mask], 2)
    chex.assert_equal_shape([x, mask])
    if mode not in get_args(Aggregation):
        raise ValueError(f"unknown aggregation {mode!r}; choose one of {get_args(Aggregation)}")
    if (mode == "seq-mean-token-scale") != (scale_length is not None):
        raise ValueError(
            f"scale_length={scale_length} with aggregation {mode!r}: give the generation budget in "
            "tokens for 'seq-mean-token-scale' and leave it out for the other modes"
        )
    if scale_length is not None and scale_length <= 0:
        raise ValueError(f"scale_length must be a positive number of tokens, not {scale_length}")

    values = masked(x, mask)
    lengths = mask.astype(values.dtype).sum(axis=1)
    if mode == "token-mean":
        return values.sum(), lengths.sum()
    rows = jnp.ones_like(lengths) if count_empty else (lengths > 0).astype(values.dtype)
    per_row = values.sum(axis=1)
    if mode == "seq-mean-token-mean":
        per_row = safe_divide(per_row, lengths)
    elif scale_length is not None:  # seq-mean-token-scale
        per_row = per_row / scale_length
    return per_row.sum(), rows.sum()
