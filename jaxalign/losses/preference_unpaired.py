"""Losses of single completions with a label, desirable or undesirable: KTO, BCO and the unpaired form of APO-zero."""

from typing import Literal, NamedTuple, get_args

import chex
import jax
import jax.numpy as jnp
from jax.nn import sigmoid, softplus

from jaxalign.losses.aggregation import sum_type, where_counted
from jaxalign.objective import Objective, safe_divide

UnpairedLoss = Literal["kto", "bco", "apo_zero_unpaired"]
Reduction = Literal["mean", "class-balanced"]


class UnpairedLogProbs(NamedTuple):
    """What a loss of labelled completions reads; every array is [B]."""

    completion: jax.Array  # S, nats: summed log-prob under the policy
    reference: jax.Array  # R, the same under the reference
    mismatched: jax.Array | None  # S and R of another prompt's completion behind this prompt; None but for kto
    reference_mismatched: jax.Array | None
    label: jax.Array  # 1 or True = desirable
    length: jax.Array  # tokens of the completion
    mask: jax.Array  # 1 = the row counts; a weight >= 0


def is_batch_coupled(loss: str, *, reduction: Reduction = "mean", **other: object) -> bool:
    """Whether the rows of a batch interact, so that micro-batches do not add up to the whole."""
    del other
    return loss == "kto" or reduction == "class-balanced"


def unpaired_loss(
    rows: UnpairedLogProbs,
    *,
    loss: UnpairedLoss = "kto",
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
    reward_shift: float | jax.Array = 0.0,
    reduction: Reduction = "mean",
    weights: jax.Array | None = None,
) -> Objective:
    """The loss of a batch of labelled completions, with a = S - R and r = beta a.

    | loss              | desirable                  | undesirable                |
    |-------------------|----------------------------|----------------------------|
    | kto               | 1 - sigmoid(beta (a - z0)) | 1 - sigmoid(beta (z0 - a)) |
    | apo_zero_unpaired | 1 - sigmoid(r)             | sigmoid(r)                 |
    | bco               | -log sigmoid(r - shift)    | -log sigmoid(shift - r)    |

    z0 = max(0, mean over the batch of a of the mismatched completions), a constant: an estimate of KL(policy ||
    reference) in nats, without beta.

    Gradient flows into `completion` alone. Rows with mask 0 or without a token have weight 0 and no effect.

    Args:
      rows: see `UnpairedLogProbs`. bfloat16 is computed in float32.
      beta: > 0, per nat.
      desirable_weight, undesirable_weight: factors of the two classes. KTO wants their ratio times n_desirable /
        n_undesirable to lie in [1, 4/3].
      reward_shift: delta of bco; a constant, which `controllers.reward_shift` follows from batch to batch.
      reduction: "mean" over all rows; "class-balanced": mean over desirable plus mean over undesirable rows (BCO's
        paper), where a class without rows adds 0.
      weights: [B], constants that multiply the loss of each row without entering the weight it is divided by (BCO's
        density ratios, `rewards.density_ratio`; desirable rows have 1).

    Returns:
      An Objective with the means reward_desirable, reward_undesirable (over rows of the class), log_prob, kl (z0) for
      kto, and reward_shift for bco. `accuracy` is the share of rows on the right side: r > shift (or beta z0) for
      desirable ones.

    Raises:
      ValueError: unknown names, beta or a factor out of range, kto without mismatched completions.

    KTO: arXiv 2402.01306; BCO: arXiv 2404.04656; APO: arXiv 2408.06266.
    """
    if loss not in get_args(UnpairedLoss):
        raise ValueError(f"unknown unpaired loss {loss!r}; choose one of {get_args(UnpairedLoss)}")
    if reduction not in get_args(Reduction):
        raise ValueError(f"unknown reduction {reduction!r}; choose one of {get_args(Reduction)}")
    if beta <= 0 or desirable_weight < 0 or undesirable_weight < 0:
        raise ValueError(
            f"beta={beta} must be more than 0, desirable_weight={desirable_weight} and "
            f"undesirable_weight={undesirable_weight} not negative"
        )
    chex.assert_rank([x for x in rows if x is not None], 1)
    chex.assert_equal_shape([x for x in (*rows, weights) if x is not None])
    dtype = sum_type(rows.completion)
    mask = jnp.asarray(rows.mask).astype(dtype) * (rows.length > 0)

    def counted(x: jax.Array) -> jax.Array:
        return where_counted(x, mask, dtype)

    ratio = counted(rows.completion) - jax.lax.stop_gradient(counted(rows.reference))
    desirable = mask * (counted(rows.label) > 0)
    undesirable = mask - desirable

    anchor = jnp.asarray(0, dtype)  # the reward at which a row is neither good nor bad
    metrics = {}
    if loss == "kto":
        if rows.mismatched is None or rows.reference_mismatched is None:
            raise ValueError("loss 'kto' needs the log-probs of mismatched completions")
        mismatch = counted(rows.mismatched) - counted(rows.reference_mismatched)
        z0 = jax.lax.stop_gradient(jnp.maximum(safe_divide((mask * mismatch).sum(), mask.sum()), 0))
        metrics["kl"] = (z0 * mask.sum(), mask.sum())
        anchor = beta * z0
    elif loss == "bco":
        anchor = jax.lax.stop_gradient(jnp.asarray(reward_shift, dtype))
        metrics["reward_shift"] = (anchor * mask.sum(), mask.sum())
    z = beta * ratio - anchor
    up, down = (softplus(-z), softplus(z)) if loss == "bco" else (sigmoid(-z), sigmoid(z))

    factor = 1 if weights is None else jax.lax.stop_gradient(counted(weights))
    good = (desirable * factor * up).sum() * desirable_weight
    bad = (undesirable * factor * down).sum() * undesirable_weight
    weight = mask.sum()
    if reduction == "class-balanced":
        total = weight * (safe_divide(good, desirable.sum()) + safe_divide(bad, undesirable.sum()))
    else:
        total = good + bad
    z, reward = jax.lax.stop_gradient((z, beta * ratio))
    metrics |= {
        "reward_desirable": ((desirable * reward).sum(), desirable.sum()),
        "reward_undesirable": ((undesirable * reward).sum(), undesirable.sum()),
        "accuracy": ((desirable * (z > 0) + undesirable * (z < 0)).sum(), weight),
        "log_prob": ((mask * jax.lax.stop_gradient(counted(rows.completion))).sum(), weight),
    }
    return Objective(total, weight, metrics)
