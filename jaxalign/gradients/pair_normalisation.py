"""A step along g_w / |g_w| - g_l / |g_l|: to first order no pair's chosen log-prob falls and no rejected one rises.

arXiv 2410.13828 names gradients normalised pair by pair as a remedy of entanglement (`jaxalign.diagnostics.
entanglement`); its exact form there is not public, and this one follows from its conditions: the step is that of a loss
with d_w / d_l = |g_l| / |g_w|, and with cosine c of the two gradients it changes the log-probs by h |g_w| (1 - c) >= 0
and -h |g_l| (1 - c) <= 0, by Cauchy-Schwarz.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxalign.diagnostics.entanglement import PairScore, inner_product, pair_gradients
from jaxalign.objective import Metrics, safe_divide


def normalised_pair_gradient(chosen: Any, rejected: Any, *, keep_norm: bool = True) -> Any:
    """-(g_w / |g_w| - g_l / |g_l|): a gradient to descend along, a tree like the two.

    A gradient of 0 drops its half; two equal ones give 0.

    Args:
      chosen, rejected: g_w and g_l, gradients of log-probs, or those of a batch weighted by sensitivities.
      keep_norm: rescaled to |g_w - g_l|, the norm of the gradient it replaces: a learning rate keeps its meaning.
    """

    def inverse(norm):
        return safe_divide(jnp.ones_like(norm), norm)

    by_chosen, by_rejected = (inverse(jnp.sqrt(inner_product(g, g))) for g in (chosen, rejected))
    found = jax.tree.map(lambda w, r: r * by_rejected - w * by_chosen, chosen, rejected)
    if not keep_norm:
        return found
    plain = jax.tree.map(jnp.subtract, chosen, rejected)
    scale = jnp.sqrt(safe_divide(inner_product(plain, plain), inner_product(found, found)))
    return jax.tree.map(lambda g: g * scale, found)


def joined_halves(copies: tuple[Any, Any]) -> Any:
    """Outputs [rows, 2] whose first column is that of copy 0 and whose second that of copy 1: for the objective of a
    `CoupledLoss(combine=normalised_halves, copies=2)`."""
    return jax.tree.map(lambda first, second: jnp.stack([first[:, 0], second[:, 1]], axis=1), *copies)


def normalised_halves(by_chosen: Any, by_rejected: Any) -> tuple[Any, Metrics]:
    """(gradient, no metrics): the same from the two halves of a loss's gradient, -G_w and G_l; see `joined_halves`.

    The batch form: G are sums over the batch, weighted by the loss's sensitivities, and what is promised is promised
    for those sums. Keeps the norm of the loss's gradient.
    """
    return normalised_pair_gradient(jax.tree.map(jnp.negative, by_chosen), by_rejected), {}


def mean_of_normalised_pairs(
    log_probs: PairScore, params: Any, rows: Any, mask: jax.Array, *, keep_norm: bool = True
) -> Any:
    """The mean over the pairs that count of each pair's own `normalised_pair_gradient`, one pair after the other.

    The exact form, at the cost of a backward pass for each completion; `normalised_halves` promises the
    same for the means of a batch only.

    mask: [B], 0 = the pair is left out.
    """

    def add(total, inputs):
        row, counts = inputs
        alone = jax.tree.map(lambda leaf: leaf[None], row)
        one = normalised_pair_gradient(*pair_gradients(log_probs, params, alone, jnp.ones((1, 2))), keep_norm=keep_norm)
        return jax.tree.map(lambda t, g: t + jnp.where(counts > 0, g, 0), total, one), None

    total, _ = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, params), (rows, mask))
    number = (mask > 0).sum()
    return jax.tree.map(lambda t: safe_divide(t, number.astype(t.dtype)), total)
