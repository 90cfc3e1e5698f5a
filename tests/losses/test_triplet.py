"""Triplet loss against a loop over all triplets."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.losses.triplet import triplet_loss
from jaxalign.objective import loss

LABELS = np.array([0, 1, 0, 2, 1, 0, 1])
VALID = np.array([1, 1, 1, 1, 1, 1, 0])
SETTINGS = [("euclidean", False, "mean"), ("euclidean", False, "active"), ("cosine", True, "mean")]


def reference(x, distance, smooth, reduction, margin, rows):
    u = x / np.linalg.norm(x, axis=1, keepdims=True)

    def d(i, j):
        return np.linalg.norm(u[i] - u[j]) if distance == "euclidean" else 1 - u[i] @ u[j]

    values = []
    for a, p, n in itertools.product(rows, repeat=3):
        if a != p and LABELS[a] == LABELS[p] and LABELS[a] != LABELS[n]:
            excess = d(a, p) - d(a, n) + margin
            values.append(np.log1p(np.exp(excess)) if smooth else max(excess, 0))
    active = [value for value in values if value > 0]
    return sum(values) / len(active if reduction == "active" else values), len(active) / len(values)


def test_value_gradient_and_chunks():
    x, margin, rows = np.random.default_rng(0).normal(size=(7, 3)), 0.2, range(6)

    @jax.jit
    def all_of_it(x):
        def value(x, distance, smooth, reduction, chunk):
            options = dict(distance=distance, smooth=smooth, reduction=reduction, valid=VALID, chunk=chunk)
            objective = triplet_loss(x, LABELS, margin, **options)
            return loss(objective), objective.metrics["active"]

        return [
            [jax.value_and_grad(value, has_aux=True)(x, *setting, chunk) for chunk in (None, 3)] for setting in SETTINGS
        ]

    with jax.enable_x64(True):
        found = all_of_it(x)
    for both, setting in zip(found, SETTINGS, strict=True):
        want, share = reference(x, *setting, margin, rows)
        assert setting[1] or 0.2 < share < 0.97
        slopes = np.zeros_like(x)
        for at in np.ndindex(x.shape):
            step = np.zeros_like(x)
            step[at] = 1e-6
            slopes[at] = np.subtract(*[reference(x + s, *setting, margin, rows)[0] for s in (step, -step)]) / 2e-6
        for (value, (active, triplets)), gradient in both:
            np.testing.assert_allclose([value, active / triplets], [want, share], rtol=1e-10)
            np.testing.assert_allclose(gradient, slopes, atol=1e-8)


def test_special_batches():
    value = jax.jit(jax.value_and_grad(lambda x, labels: loss(triplet_loss(x, labels, 0.2))))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 2)), jnp.float32)
    for labels in (jnp.arange(4), jnp.zeros(4, int)):  # no positive, no negative
        found, gradient = value(x, labels)
        assert float(found) == 0 and not np.any(gradient)
    pairs = jnp.array([0, 0, 1, 1])
    for same in (jnp.ones((4, 2)), jnp.zeros((4, 2))):  # all distances equal
        found, gradient = value(same, pairs)
        np.testing.assert_allclose(found, 0.2, rtol=1e-5)
        assert np.isfinite(gradient).all()
    assert np.isnan(value(x.at[0, 0].set(np.nan), pairs)[0])


def test_unknown_names():
    x = jnp.ones((2, 2))
    with pytest.raises(ValueError, match="unknown distance 'l2'"):
        triplet_loss(x, jnp.arange(2), 0.2, distance="l2")
    with pytest.raises(ValueError, match="unknown reduction 'sum'"):
        triplet_loss(x, jnp.arange(2), 0.2, reduction="sum")
