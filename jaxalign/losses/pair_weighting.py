"""Losses of pairs of embeddings, read as weights of their similarities (general pair weighting).

A pair loss is a function of similarities S [M, N] (anchors by candidates) and of which pairs are positive and negative,
[M, N] bool; it gives one number an anchor. All that it does to the embeddings is

    w_ij = |dL / dS_ij|,   L = sum_i loss_i

since its gradient is that of sum_i [ sum_neg w_ij S_ij - sum_pos w_ij S_ij ] with w held constant, wherever L falls in
the similarities of positives and rises in those of negatives. Two losses differ in what their weights look at: a pair's
own similarity, or also how it compares with the other negatives and positives of the anchor.

Entries that are neither positive nor negative have no effect. arXiv 1904.06627.
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from jaxalign.losses.ring import NEVER
from jaxalign.objective import safe_divide

PairLoss = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]  # (S, positive, negative) [M, N] -> loss [M]


def _log_sum_exp(x: jax.Array, where: jax.Array) -> jax.Array:
    """log sum_j e^{x_ij} over the entries chosen, [M]; where there is none about NEVER, with zero gradient."""
    return jax.nn.logsumexp(jnp.where(where, x, NEVER), axis=-1)


def contrastive(s: jax.Array, positive: jax.Array, negative: jax.Array, *, threshold: float = 0.5) -> jax.Array:
    """sum_neg [S - threshold]_+ - sum_pos S.   w_pos = 1, w_neg = 1[S > threshold].   [M]"""
    return (jnp.where(negative, jax.nn.relu(s - threshold), 0) - jnp.where(positive, s, 0)).sum(-1)


def triplet(s: jax.Array, positive: jax.Array, negative: jax.Array, *, margin: float = 0.1) -> jax.Array:
    """sum_{j pos, k neg} [S_ik - S_ij + margin]_+.   w = number of active triplets of the pair.   [M]

    Holds [M, N, N] numbers: give few anchors at a time.
    """
    active = positive[:, :, None] & negative[:, None, :]
    return jnp.where(active, jax.nn.relu(s[:, None, :] - s[:, :, None] + margin), 0).sum((1, 2))


def lifted_structure(s: jax.Array, positive: jax.Array, negative: jax.Array, *, margin: float = 0.5) -> jax.Array:
    """[ log sum_pos e^{margin - S} + log sum_neg e^S ]_+ in the form over all positives of an anchor.   [M]

    Where it is active, w_pos = e^{-S_ij} / sum_pos e^{-S_ik} and w_neg = e^{S_ij} / sum_neg e^{S_ik}. An anchor without
    positives or without negatives has loss 0.
    """
    return jax.nn.relu(_log_sum_exp(margin - s, positive) + _log_sum_exp(s, negative))


def binomial_deviance(
    s: jax.Array,
    positive: jax.Array,
    negative: jax.Array,
    *,
    alpha: float = 2.0,
    beta: float = 50.0,
    threshold: float = 0.5,
) -> jax.Array:
    """mean_pos log(1 + e^{alpha (threshold - S)}) + mean_neg log(1 + e^{beta (S - threshold)}).   [M]

    w_pos = alpha sigmoid(alpha (threshold - S)) / |pos| and w_neg = beta sigmoid(beta (S - threshold)) / |neg|: each
    weight looks at its own similarity alone.
    """
    parts = ((positive, jax.nn.softplus(alpha * (threshold - s))), (negative, jax.nn.softplus(beta * (s - threshold))))
    means = [safe_divide(jnp.where(mask, x, 0).sum(-1), mask.sum(-1).astype(x.dtype)) for mask, x in parts]
    return means[0] + means[1]


def multi_similarity(
    s: jax.Array,
    positive: jax.Array,
    negative: jax.Array,
    *,
    alpha: float = 2.0,
    beta: float = 50.0,
    threshold: float = 0.5,
) -> jax.Array:
    """log[1 + sum_pos e^{-alpha (S - threshold)}] / alpha + log[1 + sum_neg e^{beta (S - threshold)}] / beta.   [M]

    w_neg = 1 / ( e^{beta (threshold - S_ij)} + sum_neg e^{beta (S_ik - S_ij)} ), and w_pos likewise with -alpha: the
    first term looks at the pair's own similarity, the second at how it compares with the anchor's others. An anchor
    without positives or without negatives has loss 0.
    """
    # log(1 + sum) = softplus(log sum) overflows nowhere, whatever the scale.
    pulled = jax.nn.softplus(_log_sum_exp(-alpha * (s - threshold), positive)) / alpha
    pushed = jax.nn.softplus(_log_sum_exp(beta * (s - threshold), negative)) / beta
    return jnp.where(positive.any(-1) & negative.any(-1), pulled + pushed, 0)


PAIR_LOSSES: dict[str, PairLoss] = {
    function.__name__: function
    for function in (contrastive, triplet, lifted_structure, binomial_deviance, multi_similarity)
}


def pair_weights(pair_loss: PairLoss, s: jax.Array, positive: jax.Array, negative: jax.Array) -> jax.Array:
    """w = |dL / dS| [M, N], L the sum over anchors; constants."""
    chex.assert_equal_shape([s, positive, negative])
    gradient = jax.grad(lambda s: pair_loss(s, positive, negative).sum())(s)
    return jax.lax.stop_gradient(jnp.abs(gradient))


def weighted_surrogate(weights: jax.Array, s: jax.Array, positive: jax.Array, negative: jax.Array) -> jax.Array:
    """sum_i [ sum_neg w_ij S_ij - sum_pos w_ij S_ij ] with w held constant; scalar."""
    weights = jax.lax.stop_gradient(weights)
    return jnp.where(negative, weights * s, 0).sum() - jnp.where(positive, weights * s, 0).sum()


def mine(s: jax.Array, positive: jax.Array, negative: jax.Array, margin: float) -> tuple[jax.Array, jax.Array]:
    """Pairs that compete with the hardest of the other kind: (positive, negative) [M, N] bool, constants.

        negative kept:  S_ij + margin > min_{k pos} S_ik
        positive kept:  S_ij - margin < max_{k neg} S_ik

    Of an anchor either both kinds are left or none: if the hardest positive is below margin + the hardest negative,
    both of these stay, and otherwise nothing does.
    """
    s = jax.lax.stop_gradient(s)
    hardest_positive = jnp.where(positive, s, jnp.inf).min(-1, keepdims=True, initial=jnp.inf)
    hardest_negative = jnp.where(negative, s, -jnp.inf).max(-1, keepdims=True, initial=-jnp.inf)
    # Without a pair of the other kind the bounds are infinite, and nothing is kept. The comparisons are negated so that
    # a NaN keeps its pairs, and is seen in the loss.
    return positive & ~(s - margin >= hardest_negative), negative & ~(s + margin <= hardest_positive)
