"""Whitening of embeddings over the batch: shuffled groups of channels as positives of each other (WhitenedCSE)."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxalign.losses.aggregation import float_sums
from jaxalign.losses.contrastive import info_nce
from jaxalign.losses.similarity import unit
from jaxalign.objective import Objective, safe_divide

AxisName = str | tuple[str, ...] | None


class Moments(NamedTuple):
    """What rows have in common."""

    rows: jax.Array  # scalar: their number, or the sum of their weights
    mean: jax.Array  # [D]
    covariance: jax.Array  # [D, D], divided by their number; or [G, k, k], of each group of channels


def moments(x: jax.Array, valid: jax.Array | None = None, groups: int = 1, axis_name: AxisName = None) -> Moments:
    """Count, mean and covariance within `groups` of consecutive channels of the rows x [B, D] that count.

    With `axis_name` (inside `jax.shard_map`) over the rows of all devices. In float32 or better; the rows are centred
    before they are multiplied. What stands in rows that are not valid has no effect.
    """
    valid = jnp.ones(x.shape[0], bool) if valid is None else jnp.asarray(valid) != 0
    x = float_sums(jnp.where(valid[:, None], x, 0))

    def total(values):
        return values if axis_name is None else jax.lax.psum(values, axis_name)

    count = total(valid.astype(x.dtype).sum())
    mean = safe_divide(total(x.sum(0)), count)
    centred = jnp.where(valid[:, None], x - mean, 0).reshape(x.shape[0], groups, -1)
    return Moments(count, mean, safe_divide(total(jnp.einsum("bgi,bgj->gij", centred, centred)), count))


def zca_matrices(covariance: jax.Array, epsilon: float = 0.0) -> jax.Array:
    """The symmetric roots U diag(s)^{-1/2} U^T of inverse covariances [..., k, k], U diag(s) U^T = C + epsilon v I.

    v = tr(C) / k is the mean variance. Directions without any variance (below what rounding leaves of the
    largest) are mapped to 0, so that the result is finite whatever the rank. Not to be differentiated: equal
    eigenvalues have infinite derivatives.
    """
    covariance = float_sums(covariance)
    size = covariance.shape[-1]
    ridge = epsilon * jnp.trace(covariance, axis1=-2, axis2=-1)[..., None, None] / size
    values, vectors = jnp.linalg.eigh(covariance + ridge * jnp.eye(size, dtype=covariance.dtype))
    smallest = size * jnp.finfo(values.dtype).eps * values[..., -1:]
    alive = values > jnp.maximum(smallest, 0)
    roots = jnp.where(alive, jax.lax.rsqrt(jnp.where(alive, values, 1)), 0)
    return jnp.einsum("...ij,...j,...kj->...ik", vectors, roots, vectors)


def shuffled_group_whiten(
    x: jax.Array,
    permutation: jax.Array,
    groups: int,
    *,
    epsilon: float = 1e-4,
    valid: jax.Array | None = None,
    axis_name: AxisName = None,
) -> jax.Array:
    """Channels in a random order, in groups, each group whitened over the batch, and put back in their places: [B, D].

      Y_g = (X_g - mean) zca(C_g),   X = x[:, permutation] in groups of k = D / groups channels

    With epsilon 0 and B > k every group has mean 0 and covariance I. One group is full ZCA whatever the permutation;
    groups of one channel standardise channels. Gradient flows through the centring and the product; the matrices are
    constants. Rows that are not valid become 0.

    Args:
      x: [B, D]; bfloat16 is taken to float32.
      permutation: [D] int, of one view; a new one for each view and step.
      groups: G, divides D. About 2 D / B where nothing else is known.
      epsilon: share of the mean variance of a group that is added to each direction. 0 in the released code.
      valid: [B] bool. None: all.
      axis_name: axes over which rows are spread: all devices use the statistics of the global batch.

    Raises:
      ValueError: groups does not divide D.

    WhitenedCSE: arXiv 2305.17746.
    """
    chex.assert_rank([x, permutation], [2, 1])
    width = x.shape[1]
    if groups < 1 or width % groups:
        raise ValueError(f"groups={groups} must divide the {width} channels")
    counts = jnp.ones(x.shape[0], bool) if valid is None else jnp.asarray(valid) != 0
    shuffled = float_sums(jnp.where(counts[:, None], x, 0))[:, permutation]
    found = moments(shuffled, counts, groups, axis_name)
    matrices = zca_matrices(jax.lax.stop_gradient(found.covariance), epsilon)
    centred = jnp.where(counts[:, None], shuffled - found.mean, 0).reshape(x.shape[0], groups, -1)
    whitened = jnp.einsum("bgi,gij->bgj", centred, matrices).reshape(x.shape)
    return whitened[:, jnp.argsort(permutation)]


def view_permutations(key: jax.Array, views: int, width: int) -> jax.Array:
    """An order of the channels for each view, [V, D]."""
    return jax.vmap(lambda key: jax.random.permutation(key, width))(jax.random.split(key, views))


def whitened_cse_loss(
    views: jax.Array,
    permutations: jax.Array,
    *,
    groups: int,
    temperature: float = 0.05,
    head: Callable[[jax.Array], jax.Array] | None = None,
    view_weights: Sequence[float] | None = None,
    epsilon: float = 1e-4,
    valid: jax.Array | None = None,
    chunk: int | None = None,
    axis_name: AxisName = None,
) -> Objective:
    """With z_v = head(shuffled_group_whiten(view v)), of view 1 against each other view v:

      sum_{v >= 2} view_weight_v sum_i [ log sum_j e^{cos(z_1i, z_vj) / temperature} - cos(z_1i, z_vi) / temperature ]

    over the number of rows. Each view has its own permutation and its own statistics. Negatives of the term of view v
    are the other rows of that view. Gradient flows into all views.

    Args:
      views: [V, B, D], encodings of the same inputs (dropout masks), before the projection.
      permutations: [V, D], see `view_permutations`.
      groups, epsilon: see `shuffled_group_whiten`.
      temperature: of cosines.
      head: [B, D] -> [B, E], applied after whitening (the paper: a linear map and tanh). It has no part in the
        embedding at test time, and neither has the whitening. None: the identity.
      view_weights: [V - 1]. None: 1 each, a sum and not a mean.
      valid: [B] bool; other rows are in no statistic, and neither anchors nor candidates.
      chunk: anchors at a time.
      axis_name: axes over which rows are spread, inside `jax.shard_map`: statistics and candidates are those of all
        devices, and the objective is this device's part.

    Returns:
      An Objective with alignment (mean squared distance of the unit z of view 1 and each other) and accuracy (how
      often the own row is the most similar), both means over rows and pairs of views.

    Raises:
      ValueError: fewer than two views or a batch of one row, weights of another number than V - 1, groups that do not
        divide D, temperature not positive.

    WhitenedCSE: arXiv 2305.17746. The released model mixes up views and rows; this is what the text describes.
    """
    chex.assert_rank([views, permutations], [3, 2])
    number, rows = views.shape[:2]
    if number < 2 or (rows < 2 and axis_name is None):
        raise ValueError(f"whitened_cse_loss needs two views of two rows at least, not {number} of {rows}")
    if temperature <= 0:
        raise ValueError(f"temperature={temperature} must be positive")
    weights = [1.0] * (number - 1) if view_weights is None else list(view_weights)
    if len(weights) != number - 1:
        raise ValueError(f"view_weights has {len(weights)} numbers for {number - 1} views beside the first")
    valid = jnp.ones(rows, bool) if valid is None else jnp.asarray(valid) != 0

    def projected(view, permutation):
        whitened = shuffled_group_whiten(view, permutation, groups, epsilon=epsilon, valid=valid, axis_name=axis_name)
        return unit(whitened if head is None else head(whitened))

    z = [projected(view, permutation) for view, permutation in zip(views, permutations, strict=True)]
    dtype = z[0].dtype
    total = apart = hits = jnp.zeros((), dtype)
    for weight, other in zip(weights, z[1:], strict=True):
        found = info_nce(z[0], other, temperature, valid=valid, chunk=chunk, axis_name=axis_name)
        distances = jax.lax.stop_gradient(2 - 2 * (z[0] * other).sum(-1))
        total += weight * found.total
        apart += jnp.where(valid, distances, 0).sum()
        hits += found.metrics["accuracy"][0]
    count = valid.astype(dtype).sum()
    pairs = count * len(weights)
    return Objective(total, count, {"alignment": (apart, pairs), "accuracy": (hits, pairs)})


def init_moments(width: int) -> Moments:
    """Statistics of no rows, to be filled by `update_moments`."""
    return Moments(jnp.zeros(()), jnp.zeros(width), jnp.zeros((width, width)))


def update_moments(
    state: Moments, x: jax.Array, decay: float = 1.0, valid: jax.Array | None = None, axis_name: AxisName = None
) -> Moments:
    """Running statistics for whitening at inference, where those of a batch of queries would make answers depend on it.

    Earlier rows count `decay` each, those of x [B, D] count 1. With decay 1 the result is the mean and the covariance
    of all rows ever seen.
    """
    new = moments(jax.lax.stop_gradient(x), valid, axis_name=axis_name)
    before = decay * state.rows
    count = before + new.rows
    difference = new.mean - state.mean
    share = safe_divide(new.rows, count)
    covariance = (1 - share) * state.covariance + share * new.covariance[0]
    covariance += share * (1 - share) * jnp.outer(difference, difference)
    return Moments(count, state.mean + share * difference, covariance)


def whiten_with(state: Moments, x: jax.Array, epsilon: float = 1e-4) -> jax.Array:
    """(x - mean) zca(covariance) with stored statistics, [B, D]; what it gives for a row depends on that row alone."""
    return (float_sums(x) - state.mean) @ zca_matrices(state.covariance, epsilon)
