"""Preference losses under labels that may be wrong: each pair is learned both ways, as sure as its label is (LCPO)."""

from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax.nn import log_sigmoid, softplus

from jaxalign.controllers.label_confidence import LabelConfidence, confidence, known
from jaxalign.losses.aggregation import sum_type, where_counted
from jaxalign.losses.preference import PairLogProbs, preference_loss
from jaxalign.losses.preference_table import PREFERENCE_LOSSES
from jaxalign.objective import Objective

Mode = Literal["gibbs", "weighted-loss"]


def swapped(pairs: PairLogProbs) -> PairLogProbs:
    """The pairs with chosen and rejected exchanged: sums, references and lengths."""
    return PairLogProbs(
        pairs.rejected,
        pairs.chosen,
        pairs.reference_rejected,
        pairs.reference_chosen,
        pairs.rejected_length,
        pairs.chosen_length,
        pairs.mask,
    )


def both_ways(pairs: PairLogProbs, *, offset: jax.Array | None = None, **options: Any) -> tuple[jax.Array, jax.Array]:
    """(L(chosen over rejected), L(rejected over chosen)) of every pair, [B]; 0 where a pair does not count.

    `options` are those of `preference_loss`. The loss of a pair is that of a batch of one, its likelihood term
    included: "token-mean" is then the mean over the tokens of that completion. An offset changes its sign on the way
    back.

    Raises:
      ValueError: a loss whose terms belong to ranks of the batch (aot); what `preference_loss` raises.
    """
    loss = options.get("loss", "dpo")
    if loss in PREFERENCE_LOSSES and PREFERENCE_LOSSES[loss].by_rank:
        raise ValueError(f"the terms of loss {loss!r} belong to ranks, not to pairs, so that no label can be doubted")
    pairs = pairs._replace(mask=(jnp.asarray(pairs.mask) > 0).astype(sum_type(pairs.chosen)))

    def each(pairs: PairLogProbs, offset: jax.Array | None) -> jax.Array:
        def one(pair: PairLogProbs, offset: jax.Array | None) -> jax.Array:
            pair, offset = jax.tree.map(lambda x: x[None], (pair, offset))
            return preference_loss(pair, offset=offset, **options).total

        return jax.vmap(one)(pairs, offset)

    return each(pairs, offset), each(swapped(pairs), None if offset is None else -offset)


def implied_margin(pairs: PairLogProbs, *, offset: jax.Array | None = None, **options: Any) -> jax.Array:
    """z = L(rejected over chosen) - L(chosen over rejected), [B]: logits of the belief that a loss stands for.

    p = exp(-L) / (exp(-L) + exp(-L reversed)) = sigmoid(z). For dpo z = beta D (Bradley-Terry exactly); for ipo
    2 D / beta; for cpo with the likelihood "sequence-sum" (beta + likelihood_weight)(S_w - S_l).
    """
    forward, reverse = both_ways(pairs, offset=offset, **options)
    return reverse - forward


def confidence_loss(
    pairs: PairLogProbs,
    state: LabelConfidence | jax.Array,
    annotator: jax.Array,
    *,
    mode: Mode = "gibbs",
    offset: jax.Array | None = None,
    **options: Any,
) -> Objective:
    """Any loss of `preference_loss` under the posterior probability w that the label of each pair is right.

    With L and L' the loss of a pair and of its reverse, z = L' - L, eta the reliability of the pair's annotator and
    w = sigmoid(z + logit(eta)), a constant:

    gibbs:         -w log sigmoid(z) - (1 - w) log sigmoid(-z)
    weighted-loss: w L + (1 - w) L'

    They are one for dpo (label smoothing with a rate 1 - w for every pair). The gradient of gibbs by z is
    sigmoid(z) - w: 0 at eta = 1/2, where a label says nothing.

    Gradient flows into `chosen` and `rejected` alone. Pairs with mask 0, with an empty completion or with an annotator
    outside [0, K) have weight 0 and no effect. The rows do not interact.

    Args:
      pairs: see `PairLogProbs`.
      state: `label_confidence.LabelConfidence`, or the reliabilities [K]; constants.
      annotator: [B], numbers in [0, K).
      mode: above.
      offset, options: of `preference_loss`.

    Returns:
      An Objective of weight sum(mask), with the metrics of the plain loss and, as means over pairs, confidence (w),
      flipped (w < 1/2), reliability (eta), and label_log_likelihood: log(p eta + (1 - p)(1 - eta)), which EM increases.

    Raises:
      ValueError: unknown mode, a loss by ranks, weights of pairs, what `preference_loss` raises.

    arXiv 2509.24159, equation 5 (gibbs; there a sum).
    """
    if mode not in get_args(Mode):
        raise ValueError(f"unknown mode {mode!r} of the confidence loss; choose one of {get_args(Mode)}")
    if options.get("weights") is not None:
        raise ValueError("the confidence loss weighs pairs itself and takes no weights; use the mask")
    dtype = sum_type(pairs.chosen)
    given = jnp.asarray(pairs.mask).astype(dtype) * (pairs.chosen_length > 0) * (pairs.rejected_length > 0)
    annotator = where_counted(jnp.asarray(annotator), given, dtype).astype(jnp.int32)
    size = len(state.reliability if isinstance(state, LabelConfidence) else state)
    mask = given * known(annotator, size)
    pairs = pairs._replace(mask=mask)

    forward, reverse = both_ways(pairs, offset=offset, **options)
    z = reverse - forward
    w, eta = confidence(z, state, annotator)
    if mode == "gibbs":
        per_pair = w * softplus(-z) + (1 - w) * softplus(z)
    else:
        per_pair = w * forward + (1 - w) * reverse
    total, weight = (mask * per_pair).sum(), mask.sum()

    belief: jax.Array = jax.lax.stop_gradient(z)
    likelihood = jnp.logaddexp(log_sigmoid(belief) + jnp.log(eta), log_sigmoid(-belief) + jnp.log1p(-eta))
    means = {"confidence": w, "flipped": w < 0.5, "reliability": eta, "label_log_likelihood": likelihood}
    plain = jax.lax.stop_gradient(preference_loss(pairs, offset=offset, **options).metrics)
    return Objective(total, weight, plain | {name: ((mask * x).sum(), weight) for name, x in means.items()})
