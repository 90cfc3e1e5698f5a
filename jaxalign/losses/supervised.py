"""Supervised fine-tuning: the negative log-likelihood of given completions."""

import chex
import jax

from jaxalign.losses.aggregation import Aggregation, aggregate, sum_type, token_means
from jaxalign.objective import Objective


def supervised_loss(
    log_probs: jax.Array,
    mask: jax.Array,
    *,
    aggregation: Aggregation = "token-mean",
    scale_length: float | None = None,
) -> Objective:
    """-log_prob of every token that counts, aggregated.

    Gradient flows into `log_probs` where the mask is not 0; what stands at mask 0 has no effect.

    Args:
      log_probs: [B, T] in nats, of the given tokens: position t is scored by the hidden state before it
        (the shift is the caller's, who knows where rows begin).
      mask: [B, T], 1 = a completion token; prompts and padding are 0.
      aggregation: "token-mean" gives every token one vote, "seq-mean-token-mean" every completion. With
        several completions packed into one row a "row" is no completion: use "token-mean".
      scale_length: of "seq-mean-token-scale", in tokens.

    Returns:
      An Objective with the metric token_nll: the mean over tokens, in nats, whatever the aggregation is. The
      perplexity is exp of that mean, taken once over everything that is reported together.

    Raises:
      ValueError: from `aggregate`.
    """
    chex.assert_rank([log_probs, mask], 2)
    chex.assert_type(log_probs, float)
    total, weight = aggregate(-log_probs, mask, aggregation, scale_length=scale_length)
    return Objective(total, weight, token_means({"token_nll": -log_probs}, mask, sum_type(log_probs)))
