"""KL divergence of a policy from its reference on its own completions, exact and estimated."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxalign.losses.kl import kl_estimate


class KlReport(NamedTuple):
    """KL(policy || reference). Arrays [B] are sums over each completion: nats per sequence."""

    exact: jax.Array  # over the whole vocabulary, at the contexts that were sampled
    k1: jax.Array
    k2: jax.Array
    k3: jax.Array
    tokens: jax.Array  # [B], that count
    per_token: jax.Array  # scalar: sum of `exact` by sum of `tokens`


def kl_report(policy_logits, reference_logits, tokens, mask) -> KlReport:
    """Exact KL at every sampled context, and the sample estimates k1, k2, k3 of the same tokens.

        exact = sum_t sum_v p_t(v) ( log p_t(v) - log q_t(v) )

    The tokens must have been sampled from the policy, at the temperature that the logits are given
    for; on other tokens none of these is a KL to the reference. Compare with `jaxalign.losses.kl`
    for the estimators. Average `exact` over completions for nats per sequence; `per_token` weights
    each token equally, whatever its completion's length.

    Args:
        policy_logits, reference_logits: [B, T, V]; column t is the distribution of `tokens[:, t]`.
        tokens: int [B, T].
        mask: [B, T], 1 = counts. What stands elsewhere has no influence, NaN included.

    An empty completion has KL 0. For evaluation of small batches: the [B, T, V] arrays are
    materialised.
    """
    chex.assert_rank([policy_logits, reference_logits, tokens, mask], [3, 3, 2, 2])
    chex.assert_equal_shape([policy_logits, reference_logits])
    chex.assert_equal_shape([tokens, mask, policy_logits[..., 0]])
    counts = mask.astype(bool)
    log_p = jax.nn.log_softmax(policy_logits.astype(jnp.float32))
    log_q = jax.nn.log_softmax(reference_logits.astype(jnp.float32))
    # A token of probability 0 adds 0, though its log-prob is -inf.
    terms = jnp.where(jnp.isneginf(log_p), 0.0, jnp.exp(log_p) * (log_p - log_q))
    chosen = jnp.where(counts, tokens, 0)[..., None]
    log_p, log_q = (jnp.take_along_axis(x, chosen, axis=-1)[..., 0] for x in (log_p, log_q))
    exact = _sum(terms.sum(-1), counts)
    estimates = [_sum(kl_estimate(log_p, log_q, kind), counts) for kind in ("k1", "k2", "k3")]
    number = counts.sum(-1).astype(jnp.float32)
    return KlReport(exact, *estimates, number, exact.sum() / jnp.maximum(number.sum(), 1))


def _sum(values: jax.Array, counts: jax.Array) -> jax.Array:
    return jnp.where(counts, values, 0.0).sum(-1)
