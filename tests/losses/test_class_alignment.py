"""Class Gaussians and the losses of test-time adaptation against plain NumPy and what they must not depend on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.distance import mahalanobis

from jaxalign.losses import class_alignment as ca

CLASSES, DIM, ROWS = 3, 4, 40


def problem(seed=0):
    """(features, logits, labels, features of a batch): float64."""
    random = np.random.default_rng(seed)
    labels = np.arange(ROWS) % CLASSES
    mix = random.normal(size=(CLASSES, DIM, DIM))
    features = np.einsum("nd,nde->ne", random.normal(size=(ROWS, DIM)), mix[labels]) + 2 * labels[:, None]
    return features, random.normal(size=(12, CLASSES)), labels, random.normal(size=(12, DIM)) + 1


def gaussians_of(features, labels, **options):
    return ca.fit(moments_of(features, labels, CLASSES), **options)


moments_of = jax.jit(ca.class_moments, static_argnums=2)


def test_moments_of_parts_are_those_of_the_whole():
    features, _, labels, _ = problem()
    features = features + 1000  # raw sums of squares in float32 would lose the spread
    parts = []
    for part in (slice(0, 7), slice(7, 25), slice(25, ROWS)):
        padded = np.concatenate([features[part], np.full((2, DIM), np.nan)]).astype(np.float32)
        valid = np.arange(len(padded)) < len(padded) - 2
        parts.append(moments_of(padded, np.append(labels[part], [0, -5]), CLASSES, valid))
    moments, together = jax.jit(lambda a, b, c: ((m := ca.merge(ca.merge(a, b), c)), ca.whole(m)))(*parts)
    for c in range(CLASSES):
        own = features[labels == c]
        np.testing.assert_allclose(moments.rows[c], len(own))
        np.testing.assert_allclose(moments.mean[c], own.mean(0), rtol=1e-6)
        np.testing.assert_allclose(moments.scatter[c], np.cov(own.T, bias=True) * len(own), rtol=2e-3, atol=2e-2)
    np.testing.assert_allclose(together.mean, features.mean(0), rtol=1e-6)
    np.testing.assert_allclose(together.covariance, np.cov(features.T, bias=True), rtol=2e-3, atol=2e-2)


@pytest.mark.parametrize("tied", [False, True])
def test_loss_against_a_loop_over_rows_and_classes(tied):
    features, logits, labels, batch = problem()
    valid = np.arange(len(batch)) != 3
    with jax.enable_x64(True):
        gaussians = gaussians_of(features, labels, tied=tied, shrinkage=0.0)
        got = jax.device_get(jax.jit(ca.cafa_loss)(batch, logits, gaussians, valid))
    covariances = [np.cov(features[labels == c].T, bias=True) for c in range(CLASSES)]
    if tied:
        counts = np.bincount(labels)
        covariances = [sum(n * s for n, s in zip(counts, covariances, strict=True)) / ROWS] * CLASSES
    total, nearest = 0.0, 0
    intras, inters = [], []
    for i in np.flatnonzero(valid):
        squares = [
            mahalanobis(batch[i], features[labels == c].mean(0), np.linalg.inv(covariances[c])) ** 2
            for c in range(CLASSES)
        ]
        own = logits[i].argmax()
        intras.append(squares[own])
        inters.append((sum(squares) - squares[own]) / (CLASSES - 1))
        total += np.log(intras[-1] + 1e-6) - np.log(inters[-1] + 1e-6)
        nearest += np.argmin(squares) == own
    np.testing.assert_allclose(got.total, total, rtol=1e-8)
    assert got.weight == valid.sum()
    for name, want in {"intra_distance": intras, "inter_distance": inters}.items():
        np.testing.assert_allclose(got.metrics[name], [np.sum(want), len(want)], rtol=1e-8)
    np.testing.assert_allclose(got.metrics["log_distance_ratio"][0], -total, rtol=1e-8)
    assert got.metrics["nearest_agreement"][0] == nearest


def test_only_relative_distances_matter():
    """One factor on all covariances, and one affine map of features and statistics, change nothing."""
    features, logits, labels, batch = problem()
    change = np.random.default_rng(5).normal(size=(DIM, DIM)) + 2 * np.eye(DIM)

    @jax.jit
    @jax.value_and_grad
    def value_and_gradient(batch, gaussians):
        return ca.cafa_loss(batch, logits, gaussians, epsilon=0.0).total

    with jax.enable_x64(True):
        gaussians = gaussians_of(features, labels, tied=False, shrinkage=0.0)
        value, gradient = value_and_gradient(batch, gaussians)
        scaled = value_and_gradient(batch, gaussians._replace(whitening=3 * gaussians.whitening))
        moved = value_and_gradient(
            batch @ change + 1, gaussians_of(features @ change + 1, labels, tied=False, shrinkage=0)
        )
    np.testing.assert_allclose(scaled[0], value, rtol=1e-9)
    np.testing.assert_allclose(scaled[1], gradient, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(moved[0], value, rtol=1e-6)
    np.testing.assert_allclose(np.asarray(moved[1]) @ change.T, gradient, rtol=1e-5, atol=1e-8)


def test_a_feature_on_its_mean_has_no_gradient():
    features, _, labels, _ = problem()
    gaussians = gaussians_of(features, labels)
    logits = np.eye(CLASSES)[:1] * 9
    function = jax.value_and_grad(lambda x: ca.cafa_loss(x, logits, gaussians, inter_weight=0.0).total)
    loss, gradient = jax.jit(function)(np.asarray(gaussians.mean)[:1])
    assert float(loss) == pytest.approx(np.log(1e-6), rel=1e-3) and (np.asarray(gradient) == 0).all()


def test_what_cannot_be_fitted():
    features, _, labels, _ = problem()
    moments = moments_of(features, labels, CLASSES + 1)
    with pytest.raises(ValueError, match="class 3 has no source samples"):
        ca.fit(moments)
    with pytest.raises(ValueError, match="at least two classes"):
        ca.fit(moments_of(features, jnp.zeros(ROWS, int), 1))
    dead = features * (np.arange(DIM) != 1)
    with pytest.raises(ValueError, match="covariance of class 0 of 4 features is singular"):
        ca.fit(moments_of(dead, labels, CLASSES), tied=False, shrinkage=0.0)
    assert np.isfinite(ca.fit(moments_of(dead, labels, CLASSES)).whitening).all()
    few = moments_of(features[:9], labels[:9], CLASSES)
    assert ca.fit(few).whitening.shape == (DIM, DIM)  # too few rows for one covariance a class


def test_entropy_and_global_alignment_against_numpy():
    features, logits, _, batch = problem()
    valid = np.arange(len(batch)) % 5 != 4
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    with jax.enable_x64(True):
        source = ca.Gaussian(features.mean(0), np.cov(features.T, bias=True))
        entropy = jax.device_get(jax.jit(ca.entropy_loss)(logits, valid))
        aligned = jax.device_get(jax.jit(ca.global_alignment_loss)(batch, source, valid))
    np.testing.assert_allclose(entropy.total / entropy.weight, -(p * np.log(p)).sum(-1)[valid].mean(), rtol=1e-8)
    kept = batch[valid]
    want = ((kept.mean(0) - features.mean(0)) ** 2).sum()
    want += ((np.cov(kept.T, bias=True) - np.cov(features.T, bias=True)) ** 2).sum()
    np.testing.assert_allclose(aligned.total / aligned.weight, want, rtol=1e-6)


@pytest.mark.devices(4)
def test_global_alignment_over_devices_is_that_of_the_whole_batch():
    features, _, _, batch = problem()
    source = ca.Gaussian(features.mean(0), np.cov(features.T, bias=True))
    valid = np.arange(12) != 2
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:4]), ("data",))
    rows = jax.sharding.PartitionSpec("data")

    def total(x, axis_name):
        def of_part(x, valid):
            found = ca.global_alignment_loss(x, source, valid, axis_name=axis_name)
            return jax.tree.map(lambda part: part if axis_name is None else jax.lax.psum(part, "data"), found)

        function = of_part
        if axis_name is not None:
            function = jax.shard_map(of_part, mesh=mesh, in_specs=(rows, rows), out_specs=jax.sharding.PartitionSpec())
        found = function(x, jnp.asarray(valid))
        return found.total, found

    with jax.enable_x64(True):
        function = jax.jit(jax.value_and_grad(total, has_aux=True), static_argnums=1)
        want, got = (jax.device_get(function(batch, name)) for name in (None, "data"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-10), got, want)
