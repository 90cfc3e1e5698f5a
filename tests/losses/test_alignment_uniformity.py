"""Alignment and uniformity against their definitions."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.losses.alignment_uniformity import alignment_loss, uniformity_loss
from jaxalign.objective import loss

VALID = np.array([1, 0, 1, 1, 1])


def reference(a, b, rows):
    """Alignment with alpha 2 and 1, and uniformity of a with t 2 and 0.5."""
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    apart = [np.linalg.norm(a[i] - b[i]) for i in rows]
    between = np.array([np.sum((a[i] - a[j]) ** 2) for i, j in itertools.combinations(rows, 2)])
    spread = [np.log(np.mean(np.exp(-t * between))) for t in (2, 0.5)]
    return np.array([np.mean(np.square(apart)), np.mean(apart), *spread])


def ours(a, b, valid, chunk):
    spread = [uniformity_loss(a, t=t, valid=valid, chunk=chunk) for t in (2.0, 0.5)]
    return jnp.stack([loss(o) for o in (*(alignment_loss(a, b, alpha=n, valid=valid) for n in (2, 1)), *spread)])


def test_values_and_gradients():
    a, b = np.random.default_rng(0).normal(size=(2, 5, 3))

    @jax.jit
    def all_of_it(a):
        given = ((None, None), (VALID, None), (VALID, 2))
        return [(ours(a, b, *some), jax.jacrev(ours)(a, b, *some)) for some in given]

    with jax.enable_x64(True):
        found = all_of_it(a)
    for (values, gradients), rows in zip(found, (range(5), [0, 2, 3, 4], [0, 2, 3, 4]), strict=True):
        np.testing.assert_allclose(values, reference(a, b, rows), rtol=1e-10)
        slopes = np.zeros((4, *a.shape))
        for at in np.ndindex(a.shape):
            step = np.zeros_like(a)
            step[at] = 1e-5
            slopes[(slice(None), *at)] = (reference(a + step, b, rows) - reference(a - step, b, rows)) / 2e-5
        np.testing.assert_allclose(gradients, slopes, atol=1e-8)


def test_special_batches():
    value = jax.jit(jax.value_and_grad(lambda a, valid: ours(a, a, valid, None).sum()))
    x = np.ones((4, 2))
    for valid in (np.ones(4), np.array([1.0, 0, 0, 0]), np.zeros(4)):  # all equal; one row; none
        found, gradient = value(x, valid)
        np.testing.assert_allclose(found, 0, atol=1e-5)
        np.testing.assert_allclose(gradient, 0, atol=1e-5)
    assert np.isnan(value(np.where(np.arange(8).reshape(4, 2) == 0, np.nan, x), np.ones(4))[0])
    circle = np.array([[1.0, 0], [-1, 0]])
    np.testing.assert_allclose(loss(jax.jit(uniformity_loss)(circle)), -8, rtol=1e-6)


def test_impossible_arguments():
    x = jnp.ones((2, 2))
    with pytest.raises(ValueError, match="must be at least 1"):
        alignment_loss(x, x, alpha=0.5)
    with pytest.raises(ValueError, match="t=0 must be positive"):
        uniformity_loss(x, t=0)
