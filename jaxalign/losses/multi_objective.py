"""Losses of pairs judged by several objectives at once: DPO of each, their weighted sum, and AMoPO.

A pair has completions a and b and for each of m objectives a sign: +1 prefers a, -1 prefers b, 0 is a tie or unjudged.
Here "chosen" of `PairLogProbs` is a and "rejected" is b, whatever an objective prefers. How gradients of conflicting
objectives are made into one is in `jaxalign.gradients.conflict_averse`.
"""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import log_sigmoid

from jaxalign.losses.aggregation import sum_type, where_counted
from jaxalign.losses.preference import PairLogProbs
from jaxalign.objective import Metrics, Objective, safe_divide

Difference = Literal["log_ratio", "mean_log_ratio", "mean_log_prob"]


def pair_difference(pairs: PairLogProbs, kind: Difference = "log_ratio") -> tuple[jax.Array, jax.Array]:
    """(delta [B], mask [B]): by how much the policy prefers completion a to b, nats, and which pairs count.

    | kind           | delta                                    |
    |----------------|------------------------------------------|
    | log_ratio      | (S_a - R_a) - (S_b - R_b)                |
    | mean_log_ratio | (S_a - R_a) / n_a - (S_b - R_b) / n_b    |
    | mean_log_prob  | S_a / n_a - S_b / n_b, without reference |

    Pairs with mask 0 or an empty completion have mask and delta 0. Gradient flows into the policy's sums alone.

    Raises:
      ValueError: unknown kind, no reference where one is needed.
    """
    if kind not in get_args(Difference):
        raise ValueError(f"unknown difference {kind!r}; choose one of {get_args(Difference)}")
    chex.assert_rank([x for x in pairs if x is not None], 1)
    dtype = sum_type(pairs.chosen)
    mask = jnp.asarray(pairs.mask).astype(dtype) * (pairs.chosen_length > 0) * (pairs.rejected_length > 0)
    first, second = (where_counted(x, mask, dtype) for x in (pairs.chosen, pairs.rejected))
    if kind != "mean_log_prob":
        if pairs.reference_chosen is None or pairs.reference_rejected is None:
            raise ValueError(f"difference {kind!r} needs the log-probs of a reference; 'mean_log_prob' does without")
        references = (where_counted(x, mask, dtype) for x in (pairs.reference_chosen, pairs.reference_rejected))
        first, second = (x - jax.lax.stop_gradient(r) for x, r in zip((first, second), references, strict=True))
    if kind != "log_ratio":
        lengths = (jnp.where(mask > 0, n, 1).astype(dtype) for n in (pairs.chosen_length, pairs.rejected_length))
        first, second = (x / n for x, n in zip((first, second), lengths, strict=True))
    return first - second, mask


def objective_losses(
    delta: jax.Array,
    signs: jax.Array,
    *,
    beta: float = 0.1,
    mask: jax.Array | None = None,
    drop_ties: bool = False,
) -> tuple[Objective, ...]:
    """DPO of each objective: L_i = mean over pairs of -log sigmoid(beta s_i delta), as one Objective each.

    A tie (s_i = 0) adds log 2 and no gradient. Gradient flows into `delta` alone; what stands at mask 0 has no
    effect. The rows do not interact. Signs equal for two objectives make their losses equal: they conflict only where
    their signs differ.

    Args:
      delta: [B], `pair_difference`.
      signs: [m, B] of +1, -1 and 0; constants.
      beta: > 0.
      mask: [B], weights >= 0 of pairs; all 1 if None.
      drop_ties: the mean is over pairs that are no ties.

    Returns:
      m Objectives, each of weight sum(mask), or that of its pairs that are no ties. Metrics of each, as means over
      pairs that are no ties: margin (beta s_i delta) and accuracy (margin > 0); over all: tied.

    Raises:
      ValueError: beta that is not positive.

    arXiv 2602.02495.
    """
    if beta <= 0:
        raise ValueError(f"beta={beta} must be more than 0")
    chex.assert_rank([delta, signs], [1, 2])
    chex.assert_equal_shape_suffix([delta, signs], 1)
    dtype = sum_type(delta)
    mask = jnp.ones_like(delta, dtype) if mask is None else jnp.asarray(mask).astype(dtype)
    delta = where_counted(delta, mask, dtype)

    def one(sign: jax.Array) -> Objective:
        sign = jax.lax.stop_gradient(where_counted(sign, mask, dtype))
        margin = beta * sign * delta
        judged = mask * (sign != 0)
        counted = judged if drop_ties else mask
        constant: jax.Array = jax.lax.stop_gradient(margin)
        metrics: Metrics = {
            "margin": ((judged * constant).sum(), judged.sum()),
            "accuracy": ((judged * (constant > 0)).sum(), judged.sum()),
            "tied": ((mask - judged).sum(), mask.sum()),
        }
        return Objective((counted * -log_sigmoid(margin)).sum(), counted.sum(), metrics)

    return tuple(one(sign) for sign in signs)


def weighted_loss(
    delta: jax.Array,
    signs: jax.Array,
    weights: Sequence[float],
    names: Sequence[str] = (),
    *,
    beta: float = 0.1,
    mask: jax.Array | None = None,
    drop_ties: bool = False,
) -> Objective:
    """sum_i w_i L_i of `objective_losses`: the weighted baseline (DPO-LW), RACO with radius 0.

    Its weight is sum(mask), whatever the ties; with `drop_ties` the rows interact through the number of each
    objective's ties. Metrics are those of the objectives with their name, or number, behind (`accuracy_0`), and
    `loss_0`, the loss of each.

    Args:
      delta: [B], or [m, B]: each objective's own. Then the gradient by row i is that of L_i, not w_i times it: for
        taking the gradients of the objectives apart (`jaxalign.gradients.conflict_averse`).
      weights: m numbers >= 0 with sum 1.
      names: of the m objectives.

    Raises:
      ValueError: other weights; what `objective_losses` raises.
    """
    given = np.asarray(weights, np.float64)
    if given.shape != signs.shape[:1] or not (given >= 0).all() or abs(given.sum() - 1) > 1e-5:
        raise ValueError(f"weights {given.tolist()} must be {len(signs)} numbers of at least 0 whose sum is 1")
    apart = jnp.ndim(delta) == 2
    deltas = delta if apart else [delta] * len(signs)
    objectives = [
        objective_losses(one, sign[None], beta=beta, mask=mask, drop_ties=drop_ties)[0]
        for one, sign in zip(deltas, signs, strict=True)
    ]
    weight = jnp.asarray(signs.shape[1] if mask is None else jnp.sum(mask), objectives[0].total.dtype)
    totals = jnp.stack([found.total * safe_divide(weight, found.weight) for found in objectives])
    metrics: Metrics = {}
    for name, objective in zip(names or range(len(objectives)), objectives, strict=True):
        metrics[f"loss_{name}"] = (jax.lax.stop_gradient(objective.total), objective.weight)
        metrics |= {f"{metric}_{name}": value for metric, value in objective.metrics.items()}
    total = jnp.asarray(given, totals.dtype) @ totals
    if apart:
        total = jax.lax.stop_gradient(total - totals.sum()) + totals.sum()
    return Objective(total, weight, metrics)


def multi_objective_loss(
    pairs: PairLogProbs | Sequence[PairLogProbs],
    signs: jax.Array,
    weights: Sequence[float],
    names: Sequence[str] = (),
    *,
    beta: float = 0.1,
    difference: Difference = "log_ratio",
    drop_ties: bool = False,
) -> Objective:
    """`weighted_loss` of `pair_difference`; of m equal copies of the pairs: objective i reads copy i alone.

    The gradient by copy i is then that of L_i, without its weight.

    Raises:
      ValueError: as the two.

    arXiv 2602.02495.
    """
    options: dict[str, Any] = {"beta": beta, "drop_ties": drop_ties}
    if isinstance(pairs, PairLogProbs):
        delta, mask = pair_difference(pairs, difference)
        return weighted_loss(delta, signs, weights, names, mask=mask, **options)
    deltas, masks = zip(*(pair_difference(one, difference) for one in pairs), strict=True)
    return weighted_loss(jnp.stack(deltas), signs, weights, names, mask=masks[0], **options)


def amopo_loss(pairs: PairLogProbs, signs: jax.Array, weights: Sequence[float], *, beta: float = 0.1) -> Objective:
    """sum_i w_i mean of -log sigmoid(beta s_i (S_a / n_a - S_b / n_b)): `weighted_loss` without a reference.

    The form in which AMoPO is a baseline of arXiv 2602.02495; no claim about AMoPO's own paper.

    Raises:
      ValueError: as `weighted_loss`.
    """
    return multi_objective_loss(pairs, signs, weights, beta=beta, difference="mean_log_prob")
