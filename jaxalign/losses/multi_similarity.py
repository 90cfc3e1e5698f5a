"""The multi-similarity loss, and any other pair loss, of labelled embeddings.

The losses themselves are functions of similarities and live in `pair_weighting`; here similarities and pairs are made
of embeddings and labels, a chunk of anchors at a time, from the batch itself or from a gallery.
"""

import functools
from typing import Literal, get_args

import chex
import jax
import jax.numpy as jnp

from jaxalign.losses import pair_weighting
from jaxalign.losses.aggregation import float_sums
from jaxalign.losses.pair_weighting import PairLoss
from jaxalign.losses.similarity import row_numbers, sum_rows, unit
from jaxalign.objective import Objective

Reduction = Literal["mean", "active"]

DUPLICATE = 1 - 1e-5  # cosine from which the released code takes two embeddings for the same


def pair_masks(
    labels: jax.Array,
    labels_ref: jax.Array,
    *,
    valid: jax.Array | None = None,
    valid_ref: jax.Array | None = None,
    ids: jax.Array | None = None,
    ids_ref: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Pairs of equal and of different labels, (positive, negative) [M, N] bool.

    Args:
      labels, labels_ref: [M], [N] int of anchors and candidates; negative: unknown, in no pair.
      valid, valid_ref: [M], [N] bool; False: in no pair.
      ids, ids_ref: [M], [N]; equal ids are the same item and no pair. None: there are none such.
    """
    known = (labels >= 0) if valid is None else (labels >= 0) & (valid != 0)
    known_ref = (labels_ref >= 0) if valid_ref is None else (labels_ref >= 0) & (valid_ref != 0)
    pair = known[:, None] & known_ref[None, :]
    if ids is not None and ids_ref is not None:
        pair &= ids[:, None] != ids_ref[None, :]
    same = labels[:, None] == labels_ref[None, :]
    return pair & same, pair & ~same


def labelled_pair_loss(
    pair_loss: PairLoss,
    x: jax.Array,
    labels: jax.Array,
    *,
    x_ref: jax.Array | None = None,
    labels_ref: jax.Array | None = None,
    valid: jax.Array | None = None,
    valid_ref: jax.Array | None = None,
    mining_margin: float | None = None,
    normalize: bool = True,
    drop_duplicates: bool = False,
    reduction: Reduction = "mean",
    chunk: int | None = None,
    axis_name: str | tuple[str, ...] | None = None,
) -> Objective:
    """Sum over anchors of `pair_loss` at the similarities S = u(x) u(x_ref)^T of its (mined) pairs.

    Anchors are the rows that are valid and have a label. Gradient flows into x and x_ref, not through the choice of
    pairs. What stands in rows that are not valid has no effect.

    Args:
      pair_loss: of `pair_weighting`, or one of your own.
      x: [M, D] embeddings.
      labels: [M] int; negative: unknown, neither anchor nor candidate.
      x_ref, labels_ref: [N, D], [N] candidates (a memory bank; stop its gradient yourself if wanted). None: the batch,
        whose rows are no pairs with themselves.
      valid, valid_ref: [M], [N] bool. None: all.
      mining_margin: of `mine`. None: all pairs.
      normalize: False takes inner products of x as it is; thresholds and margins then lose their meaning.
      drop_duplicates: positives with S >= 1 - 1e-5 are no pairs either: the rule by value of the released code, which
        there also removes the row itself.
      reduction: "mean" has the number of anchors as weight, "active" that of the anchors with positives and negatives
        left, so that the size of a step does not fall as pairs become easy.
      chunk: anchors at a time. Memory is that of [chunk, N] numbers instead of [M, N].
      axis_name: axes over which rows are spread, inside `jax.shard_map`: candidates are those of all devices, and the
        objective is this device's part.

    Returns:
      An Objective with metrics active (share of anchors with pairs of both kinds), mined_positives and mined_negatives
      (shares of the pairs that were kept).

    Raises:
      ValueError: one of x_ref and labels_ref without the other, valid_ref without them, an unknown reduction.
    """
    if (x_ref is None) != (labels_ref is None) or (x_ref is None and valid_ref is not None):
        raise ValueError("a gallery needs x_ref and labels_ref together; valid_ref belongs to them")
    if reduction not in get_args(Reduction):
        raise ValueError(f"unknown reduction {reduction!r}; choose one of {get_args(Reduction)}")
    chex.assert_rank([x, labels], [2, 1])
    chex.assert_equal_shape_prefix([x, labels], 1)

    def rows(x, labels, valid):
        labels = jnp.asarray(labels)
        valid = jnp.ones(labels.shape, bool) if valid is None else jnp.asarray(valid) != 0
        x = float_sums(jnp.where(valid[:, None], x, 0))
        return {"x": unit(x) if normalize else x, "labels": labels, "valid": valid & (labels >= 0)}

    anchors = rows(x, labels, valid)
    if x_ref is None:
        anchors["id"] = row_numbers(x.shape[0], axis_name)
        candidates = anchors
    else:
        chex.assert_rank([x_ref, labels_ref], [2, 1])
        chex.assert_equal_shape_prefix([x_ref, labels_ref], 1)
        candidates = rows(x_ref, labels_ref, valid_ref)

    def of_anchors(a, c):
        s = a["x"] @ c["x"].T
        positive, negative = pair_masks(
            a["labels"], c["labels"], valid=a["valid"], valid_ref=c["valid"], ids=a.get("id"), ids_ref=c.get("id")
        )
        if drop_duplicates:
            positive &= jax.lax.stop_gradient(s) < DUPLICATE
        kept = (positive, negative)
        if mining_margin is not None:
            kept = pair_weighting.mine(s, positive, negative, mining_margin)
        loss = pair_loss(s, *kept)
        counts = {"positives": positive, "negatives": negative, "mined_positives": kept[0], "mined_negatives": kept[1]}
        found = {name: mask.sum(-1).astype(loss.dtype) for name, mask in counts.items()}
        used = (found["mined_positives"] > 0) & (found["mined_negatives"] > 0)
        return {"loss": loss, "used": used.astype(loss.dtype)} | found

    total = sum_rows(of_anchors, anchors, candidates, chunk=chunk, axis_name=axis_name)
    anchors_sum = anchors["valid"].astype(total["loss"].dtype).sum()
    return Objective(
        total["loss"],
        anchors_sum if reduction == "mean" else total["used"],
        {
            "active": (total["used"], anchors_sum),
            "mined_positives": (total["mined_positives"], total["positives"]),
            "mined_negatives": (total["mined_negatives"], total["negatives"]),
        },
    )


def multi_similarity_loss(
    x: jax.Array,
    labels: jax.Array,
    *,
    alpha: float = 2.0,
    beta: float = 50.0,
    threshold: float = 0.5,
    mining_margin: float | None = 0.1,
    x_ref: jax.Array | None = None,
    labels_ref: jax.Array | None = None,
    valid: jax.Array | None = None,
    valid_ref: jax.Array | None = None,
    normalize: bool = True,
    drop_duplicates: bool = False,
    reduction: Reduction = "mean",
    chunk: int | None = None,
    axis_name: str | tuple[str, ...] | None = None,
) -> Objective:
    """With P_i and N_i the mined positives and negatives of anchor i, both or neither empty:

      sum_i  log[1 + sum_{P_i} e^{-alpha (S_ik - threshold)}] / alpha
           + log[1 + sum_{N_i} e^{beta (S_ik - threshold)}] / beta

    over the number of all anchors, S being cosines. An anchor without pairs adds 0. The weights of pairs that follow
    are in `pair_weighting.multi_similarity`, the mining is `pair_weighting.mine`, the other arguments, gradient,
    metrics and errors are those of `labelled_pair_loss`.

    Args:
      alpha, beta: scales of positives and negatives, at least above 0 (paper: 2 and 50; released config: 2 and 40).
      threshold: a cosine (0.5 in the released code, 1 in the text of the paper).
      mining_margin: 0.1. None: no mining.

    Raises:
      ValueError: alpha or beta not positive, and as `labelled_pair_loss` does.

    arXiv 1904.06627. Differences from the released code: a row is no pair with itself by its index, not because its
    cosine is 1 (`drop_duplicates` does as there), and an anchor without positives or negatives is skipped.
    """
    if alpha <= 0 or beta <= 0:
        raise ValueError(f"alpha={alpha} and beta={beta} are scales and must be positive")
    return labelled_pair_loss(
        functools.partial(pair_weighting.multi_similarity, alpha=alpha, beta=beta, threshold=threshold),
        x,
        labels,
        x_ref=x_ref,
        labels_ref=labels_ref,
        valid=valid,
        valid_ref=valid_ref,
        mining_margin=mining_margin,
        normalize=normalize,
        drop_duplicates=drop_duplicates,
        reduction=reduction,
        chunk=chunk,
        axis_name=axis_name,
    )
