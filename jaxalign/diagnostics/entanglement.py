"""Gradient entanglement of preference pairs: what raising the chosen log-prob does to the rejected one, and back.

With g_w and g_l the gradients of the log-probs S_w and S_l of a pair by the parameters, a loss pushes along
d_w g_w - d_l g_l (its sensitivities d, see `jaxalign.losses.preference.margin_sensitivities`), and to first order a
plain gradient step of size h changes them by

    dS_w = h (d_w |g_w|^2 - d_l <g_w, g_l>)        dS_l = h (d_w <g_w, g_l> - d_l |g_l|^2).

With d_w = d_l the margin never falls, and yet both log-probs fall when |g_w|^2 < <g_w, g_l> < |g_l|^2. Momentum and
Adam step elsewhere, so that for them this is the tendency of the loss and not a forecast. arXiv 2410.13828.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxalign.losses.aggregation import float_sums, sum_type
from jaxalign.objective import Metrics, safe_divide

# log_probs(params, rows) -> [B, 2]: summed log-probs (nats) of the chosen and the rejected completion of each row
PairScore = Callable[[Any, Any], jax.Array]

# What `Entanglement.case` counts: chosen up and rejected down; both down; both up; chosen down and rejected up.
CASES = ("ideal", "both_down", "both_up", "reversed")
NOT_FINITE = -1


class Products(NamedTuple):
    """Inner products of two gradients; scalars, or one of each per pair."""

    inner: jax.Array  # <g_w, g_l>
    chosen: jax.Array  # |g_w|^2
    rejected: jax.Array  # |g_l|^2


class Entanglement(NamedTuple):
    """Elementwise from `Products`."""

    cosine: jax.Array  # 0 where a gradient is 0
    condition_ratio: jax.Array  # <g_w, g_l> / min(|g_w|^2, |g_l|^2); above 1 the step of d_w = d_l is not ideal
    delta_chosen: jax.Array  # dS_w and dS_l, nats
    delta_rejected: jax.Array
    delta_margin: jax.Array  # dS_w - dS_l
    case: jax.Array  # int32, an index of CASES, or NOT_FINITE


def inner_product(first: Any, second: Any) -> jax.Array:
    """Sum over all leaves of elementwise products, float32 (float64 of float64). Leaves may be sharded."""
    # no vdot: flattening a leaf that lies over devices would collect it
    parts = jax.tree.map(lambda a, b: jnp.sum(float_sums(a) * float_sums(b)), first, second)
    return jax.tree.reduce(jnp.add, parts)


def products(chosen: Any, rejected: Any) -> Products:
    """Of two trees like the parameters."""
    return Products(inner_product(chosen, rejected), inner_product(chosen, chosen), inner_product(rejected, rejected))


def pair_gradients(log_probs: PairScore, params: Any, rows: Any, weights: jax.Array) -> tuple[Any, Any]:
    """(G_w, G_l): gradients of sum_i weights[i, 0] S_w,i and sum_i weights[i, 1] S_l,i, by two backward passes.

    weights: [B, 2], constants: sensitivities over the number of pairs give the two halves of a mean loss's gradient.
    """
    values, backward = jax.vjp(lambda p: log_probs(p, rows), params)
    weights = jax.lax.stop_gradient(jnp.asarray(weights, values.dtype))
    sides = jnp.eye(2, dtype=values.dtype)
    return backward(weights * sides[0])[0], backward(weights * sides[1])[0]


def pair_and_batch_products(
    log_probs: PairScore, params: Any, rows: Any, weights: jax.Array
) -> tuple[Products, Products]:
    """(`Products` [B] of each pair's own gradients, `Products` of the batch's `pair_gradients` under `weights` [B, 2]).

    The mean over a batch can hide what happens to its pairs, so both. One pair after the other: four gradients are
    held at a time, whatever B is.
    """

    def add(totals, inputs):
        row, weight = inputs
        alone = jax.tree.map(lambda leaf: leaf[None], row)
        pair = pair_gradients(log_probs, params, alone, jnp.ones((1, 2)))
        return tuple(_add_scaled(t, g, w) for t, g, w in zip(totals, pair, weight, strict=True)), products(*pair)

    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, sum_type(leaf)), params)
    batch, pairs = jax.lax.scan(add, (zeros, zeros), (rows, jax.lax.stop_gradient(weights)))
    return pairs, products(*batch)


def _add_scaled(total: Any, gradient: Any, weight: jax.Array) -> Any:
    # a pair of weight 0 adds nothing, whatever its gradient is
    return jax.tree.map(lambda t, g: t + jnp.where(weight == 0, 0, weight * g).astype(t.dtype), total, gradient)


def entanglement(
    found: Products, d_chosen: float | jax.Array = 1.0, d_rejected: float | jax.Array = 1.0, step_size: float = 1.0
) -> Entanglement:
    """What a plain gradient step of size `step_size` does to pairs with these products and sensitivities.

    Chosen counts as up if d_l <g_w, g_l> <= d_w |g_w|^2, rejected as down if d_w <g_w, g_l> <= d_l |g_l|^2.
    Sensitivities may be negative (IPO beyond its target). A gradient of 0 has cosine and ratio 0 (its condition holds
    with equality). With d_w = d_l "reversed" is impossible, by Cauchy-Schwarz.
    """
    inner, chosen, rejected = found
    delta_chosen = step_size * (d_chosen * chosen - d_rejected * inner)
    delta_rejected = step_size * (d_chosen * inner - d_rejected * rejected)
    up, down = delta_chosen >= 0, delta_rejected <= 0
    case = jnp.where(up, jnp.where(down, 0, 2), jnp.where(down, 1, 3))
    finite = jnp.isfinite(inner) & jnp.isfinite(chosen) & jnp.isfinite(rejected)
    return Entanglement(
        cosine=safe_divide(inner, jnp.sqrt(chosen) * jnp.sqrt(rejected)),
        condition_ratio=safe_divide(inner, jnp.minimum(chosen, rejected)),
        delta_chosen=delta_chosen,
        delta_rejected=delta_rejected,
        delta_margin=delta_chosen - delta_rejected,
        case=jnp.where(finite, case, NOT_FINITE).astype(jnp.int32),
    )


def pair_metrics(found: Products, report: Entanglement, mask: jax.Array) -> Metrics:
    """Means over the pairs that count and are finite: the numbers of the report, norms, and the share of each case.

    mask: [B], 0 where a completion is empty. `not_finite` is the share of the pairs that count.
    """
    counts = (mask > 0) & (report.case != NOT_FINITE)
    norms = {"norm_chosen": jnp.sqrt(found.chosen), "norm_rejected": jnp.sqrt(found.rejected), "inner": found.inner}
    values = norms | {name: value for name, value in report._asdict().items() if name != "case"}
    values |= {name: report.case == code for code, name in enumerate(CASES)}
    number = counts.sum().astype(found.inner.dtype)
    metrics = {name: (jnp.where(counts, value, 0).sum(), number) for name, value in values.items()}
    bad = (mask > 0) & ~counts
    return metrics | {"not_finite": (bad.sum().astype(number.dtype), (mask > 0).sum().astype(number.dtype))}
