"""Feature alignment for test-time adaptation: class-aware (CAFA), of the whole distribution, and by entropy.

Before deployment `class_moments` and `fit` describe the features of each class of the source data by a Gaussian. At
test time a loss of a batch of features needs no label: the class of an image is the one its logits name.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.losses.aggregation import sum_type, where_counted
from jaxalign.objective import Metrics, Objective, safe_divide


class ClassMoments(NamedTuple):
    """Counts, means and scatters of features by class: what is kept of a data set that is read a batch at a time."""

    rows: jax.Array  # [C] how many
    mean: jax.Array  # [C, d]
    scatter: jax.Array  # [C, d, d]: sum of (f - mean)(f - mean)^T


class ClassGaussians(NamedTuple):
    """A Gaussian of the features of each class."""

    mean: jax.Array  # [C, d]
    # Inverse of the lower Cholesky factor of a covariance, which makes features white: [C, d, d], or [d, d] where all
    # classes share one.
    whitening: jax.Array


class Gaussian(NamedTuple):
    """Mean and covariance of the features of all classes together."""

    mean: jax.Array  # [d]
    covariance: jax.Array  # [d, d]


def class_moments(features: jax.Array, labels: jax.Array, classes: int, valid: jax.Array | None = None) -> ClassMoments:
    """The moments of one batch of features [n, d] with labels [n] in 0 .. classes - 1, without rows not `valid`."""
    chex.assert_rank([features, labels], [2, 1])
    valid = jnp.ones(len(features), bool) if valid is None else valid != 0
    features = where_counted(features, valid[:, None], sum_type(features))
    members = jax.nn.one_hot(labels, classes, dtype=features.dtype) * valid[:, None]
    count = members.sum(0)
    mean = safe_divide(members.T @ features, count[:, None])
    centred = jnp.where(valid[:, None], features - mean[jnp.where(valid, labels, 0)], 0)
    return ClassMoments(count, mean, jnp.einsum("nc,nd,ne->cde", members, centred, centred))


def merge(first: ClassMoments, second: ClassMoments) -> ClassMoments:
    """The moments of two sets of rows together, without the cancellation of raw sums of squares (Chan et al., 1979)."""
    count = first.rows + second.rows
    share = safe_divide(second.rows, count)
    step = second.mean - first.mean
    between = (first.rows * share)[:, None, None] * step[:, :, None] * step[:, None, :]
    return ClassMoments(count, first.mean + share[:, None] * step, first.scatter + second.scatter + between)


def whole(moments: ClassMoments) -> Gaussian:
    """Mean and covariance over all rows, whatever their class."""
    total = moments.rows.sum()
    mean = safe_divide(moments.rows @ moments.mean, total)
    offset = moments.mean - mean
    between = jnp.einsum("c,cd,ce->de", moments.rows, offset, offset)
    return Gaussian(mean, safe_divide(moments.scatter.sum(0) + between, total))


def fit(moments: ClassMoments, *, tied: bool | None = None, shrinkage: float = 0.05) -> ClassGaussians:
    """Gaussians from moments; outside `jit`, because it looks at the numbers.

    Sigma_c = scatter_c / N_c, or for all classes the same sum_c scatter_c / sum_c N_c; added to the diagonal is
    `shrinkage` times the mean of the diagonal of the common covariance.

    Args:
      tied: one covariance for all classes. None: if any class has fewer than 2 d rows.
      shrinkage: at least 0. At 0 a covariance of fewer rows than features, or with a feature that never fires, is
        singular.

    Raises ValueError: fewer than two classes, a class without rows, a covariance that is not positive definite.

    CAFA (arXiv 2206.00205) has one covariance a class; shrinkage and the choice of a common one are this project's.
    """
    count = np.asarray(moments.rows)
    classes, dim = moments.mean.shape
    if classes < 2:
        raise ValueError(f"class-aware alignment needs at least two classes, not {classes}: there is no other class")
    if (count == 0).any():
        raise ValueError(f"class {int(np.argmin(count))} has no source samples to fit a Gaussian to")
    common = moments.scatter.sum(0) / moments.rows.sum()
    tied = bool(count.min() < 2 * dim) if tied is None else tied
    covariance = common if tied else moments.scatter / moments.rows[:, None, None]
    factor = jnp.linalg.cholesky(covariance + shrinkage * jnp.trace(common) / dim * jnp.eye(dim, dtype=common.dtype))
    # Where a feature never varies the factor has a 0 on its diagonal, or a NaN.
    good = (np.diagonal(np.asarray(factor), axis1=-2, axis2=-1) > 0).all(axis=-1)
    if not good.all():
        which = "the common covariance" if tied else f"the covariance of class {int(np.argmin(good))}"
        raise ValueError(f"{which} of {dim} features is singular; raise shrinkage ({shrinkage})")
    identity = jnp.broadcast_to(jnp.eye(dim, dtype=common.dtype), factor.shape)
    return ClassGaussians(moments.mean, jax.lax.linalg.triangular_solve(factor, identity, left_side=True, lower=True))


def squared_distances(features: jax.Array, gaussians: ClassGaussians) -> jax.Array:
    """[n, C] squared Mahalanobis distances (f_i - mu_c)^T Sigma_c^{-1} (f_i - mu_c)."""
    offsets = features[:, None] - gaussians.mean
    own = "cde" if gaussians.whitening.ndim == 3 else "de"
    return jnp.sum(jnp.einsum(f"{own},nce->ncd", gaussians.whitening, offsets) ** 2, -1)


def _own_and_others(features, logits, gaussians, valid):
    """(distances [n] to the class that the logits name, mean [n] of those to the others, whether it is the nearest)."""
    chex.assert_rank([features, logits, valid], [2, 2, 1])
    dtype = sum_type(features)
    features = where_counted(features, valid[:, None], dtype)
    named = jnp.argmax(where_counted(logits, valid[:, None], dtype), -1)
    distances = squared_distances(features, gaussians)
    own = jax.nn.one_hot(named, distances.shape[1], dtype=bool)
    intra = jnp.where(own, distances, 0).sum(-1)
    inter = jnp.where(own, 0, distances).sum(-1) / (distances.shape[1] - 1)
    return intra, inter, jnp.argmin(distances, -1) == named


def class_distances(
    features: jax.Array,
    logits: jax.Array,
    gaussians: ClassGaussians,
    valid: jax.Array | None = None,
    *,
    epsilon: float = 1e-6,
) -> Metrics:
    """What `cafa_loss` reports, for any other loss: no gradient flows.

    intra_distance and inter_distance: squared distances to the class that the logits name and, on average, to the
    others; log_distance_ratio: mean of log inter - log intra; nearest_agreement: share of rows whose named class is
    the nearest one.
    """
    valid = jnp.ones(len(features), bool) if valid is None else valid != 0
    intra, inter, nearest = jax.lax.stop_gradient(_own_and_others(features, logits, gaussians, valid))
    return _metrics(intra, inter, nearest, valid, epsilon)


def _metrics(intra, inter, nearest, valid, epsilon) -> Metrics:
    values = {
        "intra_distance": intra,
        "inter_distance": inter,
        "log_distance_ratio": jnp.log(inter + epsilon) - jnp.log(intra + epsilon),
        "nearest_agreement": nearest,
    }
    weight = valid.sum().astype(intra.dtype)
    return {
        name: (jax.lax.stop_gradient(jnp.where(valid, x, 0).sum().astype(intra.dtype)), weight)
        for name, x in values.items()
    }


def cafa_loss(
    features: jax.Array,
    logits: jax.Array,
    gaussians: ClassGaussians,
    valid: jax.Array | None = None,
    *,
    inter_weight: float = 1.0,
    epsilon: float = 1e-6,
) -> Objective:
    """Sum over rows of log(D_intra + epsilon) - inter_weight log(D_inter + epsilon).

    D_intra is the squared Mahalanobis distance of a row's features to the class that its logits name, D_inter the mean
    of those to all other classes. Gradient flows into `features` only: a named class is a constant, and so are the
    Gaussians. Scaling all covariances by one factor changes nothing at inter_weight 1.

    Args:
      features: [n, d] as the last linear layer reads them.
      logits: [n, C] of the same forward pass.
      gaussians: of the source features, from `fit`.
      valid: [n]; false: padding, which has no effect.
      inter_weight: 0 only pulls features towards their class ("intra only").
      epsilon: keeps the logarithm finite where features stand on a mean (gradient 0 there).

    Returns:
      An Objective with weight = number of valid rows and the metrics of `class_distances`.

    CAFA: arXiv 2206.00205. Its equation was not at hand: the mean of log-ratios, with the own class left out of the
    denominator, is what descriptions of it agree on; epsilon and inter_weight are this project's.
    """
    valid = jnp.ones(len(features), bool) if valid is None else valid != 0
    intra, inter, nearest = _own_and_others(features, logits, jax.lax.stop_gradient(gaussians), valid)
    losses = jnp.log(intra + epsilon) - inter_weight * jnp.log(inter + epsilon)
    total = jnp.where(valid, losses, 0).sum()
    return Objective(total, valid.sum().astype(total.dtype), _metrics(intra, inter, nearest, valid, epsilon))


def entropy_loss(logits: jax.Array, valid: jax.Array | None = None) -> Objective:
    """Sum over rows of the entropy -sum_c p_c log p_c of softmax(logits [n, C]), in nats; weight = valid rows.

    Gradient flows into the logits of valid rows. Entropy minimisation at test time: Tent, arXiv 2006.10726, eq. 1.
    """
    chex.assert_rank(logits, 2)
    valid = jnp.ones(len(logits), bool) if valid is None else valid != 0
    log_p = jax.nn.log_softmax(where_counted(logits, valid[:, None], sum_type(logits)), -1)
    entropy = -jnp.sum(jnp.exp(log_p) * log_p, -1)
    total = jnp.where(valid, entropy, 0).sum()
    weight = valid.sum().astype(total.dtype)
    return Objective(total, weight, {"entropy": (jax.lax.stop_gradient(total), weight)})


def global_alignment_loss(
    features: jax.Array,
    source: Gaussian,
    valid: jax.Array | None = None,
    *,
    axis_name: str | tuple[str, ...] | None = None,
) -> Objective:
    """n times ||mean f - mu||^2 + ||cov f - Sigma||_F^2 of the batch, with weight n = its number of valid rows.

    The rows interact: two halves of a batch do not add up to the whole. Gradient flows into `features` [n, d] of valid
    rows; the source is a constant. With `axis_name` (inside `jax.shard_map`) mean and covariance are those of all
    devices, n is this device's. A batch without rows gives 0.
    """
    chex.assert_rank(features, 2)
    valid = jnp.ones(len(features), bool) if valid is None else valid != 0
    features = where_counted(features, valid[:, None], sum_type(features))
    rows = valid.sum().astype(features.dtype)

    def everywhere(x):
        return x if axis_name is None else jax.lax.psum(x, axis_name)

    count = everywhere(rows)
    mean = safe_divide(everywhere(features.sum(0)), count)
    centred = jnp.where(valid[:, None], features - mean, 0)
    covariance = safe_divide(everywhere(centred.T @ centred), count)
    source = jax.lax.stop_gradient(source)
    gaps = {
        "mean_gap": jnp.sum((mean - source.mean) ** 2),
        "covariance_gap": jnp.sum((covariance - source.covariance) ** 2),
    }
    total = rows * (gaps["mean_gap"] + gaps["covariance_gap"])
    metrics = {name: (jax.lax.stop_gradient(rows * gap), rows) for name, gap in gaps.items()}
    return Objective(total, rows, metrics)
