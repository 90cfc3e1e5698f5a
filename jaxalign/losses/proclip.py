"""Distillation of embeddings point by point and in their pairwise distances, and the two stages of ProCLIP built on it.

Both losses are of a batch as a whole: they are written as n times their value with weight n, its number of rows.
"""

from typing import Literal, get_args

import chex
import jax
import jax.numpy as jnp

from jaxalign.losses.contrastive import clip_loss
from jaxalign.losses.similarity import row_numbers, sum_rows, unit
from jaxalign.objective import Objective

Reduction = Literal["sum", "mean"]
Structure = Literal["huber", "squared"]


def _valid(x: jax.Array, valid: jax.Array | None) -> jax.Array:
    return jnp.ones(len(x), bool) if valid is None else jnp.asarray(valid) != 0


def _checked(x, y, valid, reduction: str) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(unit vectors of both, 0 in rows that do not count, which rows count); no gradient into the second."""
    chex.assert_rank([x, y], 2)
    chex.assert_equal_shape([x, y])
    if reduction not in get_args(Reduction):
        raise ValueError(f"unknown reduction {reduction!r}; choose one of {get_args(Reduction)}")
    valid = _valid(x, valid)
    x, y = (unit(jnp.where(valid[:, None], rows, 0)) for rows in (x, jax.lax.stop_gradient(y)))
    return x, y, valid


def instance_alignment(
    x: jax.Array, y: jax.Array, *, valid: jax.Array | None = None, reduction: Reduction = "sum"
) -> Objective:
    """sum_i ||u(x_i) - u(y_i)||^2 of the batch, or its mean over rows; weight = n rows, total = n times the value.

    x and y are [B, D]; gradient flows into `x` only. `valid` [B]: false for padding. With "sum" the value grows with
    the batch, as in the paper's code, and is that of a device's own rows where each device has a part.

    Raises ValueError: an unknown reduction.

    ProCLIP: arXiv 2510.18795, the instance term.
    """
    x, y, valid = _checked(x, y, valid, reduction)
    rows = valid.sum().astype(x.dtype)
    value = jnp.sum((x - y) ** 2)
    return _objective(value if reduction == "mean" else rows * value, rows, "instance")


def structure_alignment(
    x: jax.Array,
    y: jax.Array,
    *,
    valid: jax.Array | None = None,
    kind: Structure = "huber",
    reduction: Reduction = "sum",
    chunk: int | None = None,
) -> Objective:
    """sum_{i<j} h(||u(x_i) - u(x_j)|| - ||u(y_i) - u(y_j)||) of the batch, or its mean over pairs.

    h(z) = z^2 ("squared"), or z^2 / 2 below |z| = 1 and |z| - 1/2 above ("huber": half of it for small z). A rotation
    of all x, or of all y, changes nothing. Gradient flows into `x` [B, D] only, 0 from pairs of equal points.

    Args:
      valid: [B], false for padding.
      kind: "huber" is what the paper's code has, "squared" what its text has.
      reduction: "sum" grows with B^2, as in the paper; a batch of one row has no pair and gives 0.
      chunk: rows at a time; [chunk, B] distances exist at once. None: all.

    Returns:
      An Objective with weight = n rows that count and total = n times the value. Distances are taken between the rows
      given, never across devices (as the paper's code does it).

    Raises ValueError: an unknown kind or reduction.

    ProCLIP: arXiv 2510.18795, the structure term.
    """
    if kind not in get_args(Structure):
        raise ValueError(f"unknown kind {kind!r}; choose one of {get_args(Structure)}")
    x, y, valid = _checked(x, y, valid, reduction)
    side = {"x": x, "y": y, "valid": valid, "row": row_numbers(len(x))}

    def of_anchors(anchors, candidates):
        gap = _distances(anchors["x"], candidates["x"]) - _distances(anchors["y"], candidates["y"])
        small = gap**2 / 2
        penalty = gap**2 if kind == "squared" else jnp.where(jnp.abs(gap) < 1, small, jnp.abs(gap) - 0.5)
        other = anchors["row"][:, None] != candidates["row"]
        both = other & anchors["valid"][:, None] & candidates["valid"]
        return {"loss": jnp.where(both, penalty, 0).sum(-1)}

    twice = sum_rows(of_anchors, side, side, chunk=chunk)["loss"]
    rows = valid.sum().astype(x.dtype)
    value = twice / jnp.maximum(rows * (rows - 1), 1) if reduction == "mean" else twice / 2
    return _objective(rows * value, rows, "structure")


def _distances(a: jax.Array, b: jax.Array) -> jax.Array:
    """[n, N] Euclidean distances; 0, with zero gradient, where two points are equal."""
    squared = jnp.sum(a * a, -1)[:, None] + jnp.sum(b * b, -1) - 2 * a @ b.T
    # Rounding leaves equal points apart by about its own size: the root of that has a gradient, which must not count.
    apart = squared > 4 * jnp.finfo(squared.dtype).eps
    return jnp.where(apart, jnp.sqrt(jnp.where(apart, squared, 1)), 0)


def _objective(total: jax.Array, rows: jax.Array, name: str) -> Objective:
    return Objective(total, rows, {name: (jax.lax.stop_gradient(total), rows)})


def distillation_loss(
    embeddings: jax.Array,
    teacher: jax.Array,
    *,
    valid: jax.Array | None = None,
    structure_weight: float = 1.0,
    kind: Structure = "huber",
    reduction: Reduction = "sum",
    chunk: int | None = None,
) -> Objective:
    """Instance alignment + structure_weight times structure alignment: ProCLIP's stage 1, and what stage 2 holds on to.

    Stage 1: `embeddings` [B, D] of the adapter on an LLM's embeddings of texts, `teacher` of the old text encoder.
    Stage 2: of the image encoder and of its moving average (`jaxalign.training.ema`). The teacher gets no gradient.

    ProCLIP: arXiv 2510.18795, where structure_weight is 1.
    """
    instance = instance_alignment(embeddings, teacher, valid=valid, reduction=reduction)
    structure = structure_alignment(embeddings, teacher, valid=valid, kind=kind, reduction=reduction, chunk=chunk)
    total = instance.total + structure_weight * structure.total
    return Objective(total, instance.weight, instance.metrics | structure.metrics)


def proclip_loss(
    images: jax.Array,
    texts: jax.Array,
    average_images: jax.Array | None,
    log_scale: jax.Array | float,
    *,
    valid: jax.Array | None = None,
    regularisation: float = 4e-4,
    kind: Structure = "huber",
    reduction: Reduction = "sum",
    chunk: int | None = None,
    axis_name: str | tuple[str, ...] | None = None,
) -> Objective:
    """CLIP's loss + regularisation times the distillation of `images` from `average_images`: ProCLIP's stage 2.

    Args:
      images, texts: [B, D] of the image encoder and of the adapter, which both receive gradient.
      average_images: [B, D] of the moving average of the image encoder; no gradient. None only with regularisation 0.
      log_scale: of the logits, limited to log 100; see `clip_loss`.
      valid: [B], false for padding.
      regularisation: 4e-4 was set for sums over a device's rows (reduction "sum"); with "mean" it wants to be larger by
        about the number of rows.
      axis_name: axes of the mesh inside `jax.shard_map`: the contrastive part sees the rows of all devices, the
        distances are of this device's own rows, as in the paper's code.

    Returns:
      An Objective with weight = rows that count, the metrics of `clip_loss`, and instance and structure (values before
      the regularisation).

    Raises ValueError: no average with a regularisation; an unknown kind or reduction.

    ProCLIP: arXiv 2510.18795. The paper prints a sum over the batch for the contrastive part, its code has the mean.
    """
    contrastive = clip_loss(images, texts, log_scale, valid=valid, chunk=chunk, axis_name=axis_name)
    if average_images is None:
        if regularisation:
            raise ValueError(f"regularisation={regularisation} needs average_images, the embeddings to hold on to")
        return contrastive
    kept = distillation_loss(images, average_images, valid=valid, kind=kind, reduction=reduction, chunk=chunk)
    total = contrastive.total + regularisation * kept.total
    return Objective(total, contrastive.weight, contrastive.metrics | kept.metrics)
