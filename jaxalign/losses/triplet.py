"""Triplet loss over all triplets of a labelled batch."""

from typing import Literal, get_args

import chex
import jax
import jax.numpy as jnp

from jaxalign.losses.similarity import row_numbers, sum_rows, unit
from jaxalign.objective import Objective

Distance = Literal["euclidean", "cosine"]
Reduction = Literal["mean", "active"]


def triplet_loss(
    x: jax.Array,
    labels: jax.Array,
    margin: float,
    *,
    distance: Distance = "euclidean",
    reduction: Reduction = "mean",
    smooth: bool = False,
    valid: jax.Array | None = None,
    chunk: int | None = None,
    axis_name: str | tuple[str, ...] | None = None,
) -> Objective:
    """sum over anchors a, positives p and negatives n of relu(d_ap - d_an + margin), or softplus of the same.

    d is taken between unit vectors: Euclidean sqrt(2 - 2 cos), or the cosine distance 1 - cos. (The cosine with a zero
    vector is 0.) Where two rows coincide the Euclidean distance has gradient 0. Gradient flows into `x`.

    Args:
      x: [N, D].
      labels: [N] integers: p has the label of a and is another row, n has another label.
      margin: m; 0.2 in the paper (squared distances there), 0.05 with cosine distances.
      distance: "euclidean" or "cosine".
      reduction: what the sum is divided by: the number of all triplets ("mean"), or of those whose loss is positive
        ("active"; a constant). Without any triplet the total and the weight are 0.
      smooth: softplus in place of relu; every triplet is active then.
      valid, chunk, axis_name: see `jaxalign.losses.contrastive`. [chunk, N, N] numbers exist at once.

    Returns:
      An Objective with weight = the number of triplets counted, and the metric active: the share of all triplets whose
      loss is positive.

    Raises:
      ValueError: an unknown distance or reduction; chunk below 1.

    FaceNet, arXiv 1503.03832, equation 2, without its selection of triplets and with unsquared distances.
    """
    for name, value, known in (("distance", distance, Distance), ("reduction", reduction, Reduction)):
        if value not in get_args(known):
            raise ValueError(f"unknown {name} {value!r}; choose one of {get_args(known)}")
    chex.assert_rank([x, labels], [2, 1])
    chex.assert_equal_shape_prefix([x, labels], 1)
    counts = jnp.ones(len(x), bool) if valid is None else jnp.asarray(valid) != 0
    x = unit(jnp.where(counts[:, None], x, 0))
    rows = {"x": x, "label": jnp.asarray(labels), "row": row_numbers(len(x), axis_name), "counts": counts}

    def look(anchors, candidates):
        d = _distances(anchors["x"], candidates["x"], distance)
        both = anchors["counts"][:, None] & candidates["counts"]
        same = anchors["label"][:, None] == candidates["label"]
        positive = both & same & (anchors["row"][:, None] != candidates["row"])
        triplets = positive[:, :, None] & (both & ~same)[:, None, :]
        excess = d[:, :, None] - d[:, None, :] + margin
        losses = jnp.where(triplets, jax.nn.softplus(excess) if smooth else jax.nn.relu(excess), 0)
        found = {"loss": losses, "triplets": triplets, "active": losses > 0}
        return {name: value.astype(d.dtype).sum((1, 2)) for name, value in found.items()}

    found = sum_rows(look, rows, rows, chunk=chunk, axis_name=axis_name)
    weight = found["active" if reduction == "active" else "triplets"]
    return Objective(found["loss"], weight, {"active": (found["active"], found["triplets"])})


def _distances(x: jax.Array, y: jax.Array, distance: Distance) -> jax.Array:
    """[n, N] between rows of unit length."""
    cosines = x @ y.T
    if distance == "cosine":
        return 1 - cosines
    squared = 2 - 2 * cosines
    meet = squared <= 0
    return jnp.where(meet, 0, jnp.sqrt(jnp.where(meet, 1, squared)))
