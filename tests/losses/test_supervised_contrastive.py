"""SupCon against loops over rows, and as NT-Xent where every label is on two rows."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.losses.contrastive import nt_xent
from jaxalign.losses.supervised_contrastive import supcon_loss
from jaxalign.objective import loss

LABELS = np.array([0, 1, 0, 2, 0, 1, 3, 1])
VALID = np.array([1, 1, 1, 1, 1, 1, 1, 0])
TEMPERATURE = 0.4


def reference(x, rows):
    """(loss, accuracy, mean number of positives, anchors) from the definition."""
    u = x / np.linalg.norm(x, axis=1, keepdims=True)
    losses, hits, numbers = [], [], []
    for i in rows:
        s = {k: u[i] @ u[k] / TEMPERATURE for k in rows if k != i}
        positives = [k for k in s if LABELS[k] == LABELS[i]]
        if positives:
            losses.append(np.log(sum(np.exp(list(s.values())))) - np.mean([s[p] for p in positives]))
            hits.append(max(s, key=s.get) in positives)
            numbers.append(len(positives))
    return np.mean(losses), np.mean(hits), np.mean(numbers), len(losses)


def test_value_gradient_and_chunks():
    x = np.random.default_rng(0).normal(size=(8, 3))

    @jax.jit
    def all_of_it(x):
        def value(x, valid, chunk):
            objective = supcon_loss(x, LABELS, TEMPERATURE, valid=valid, chunk=chunk)
            return loss(objective), objective

        given = ((None, None), (VALID, None), (VALID, 3))
        return [jax.value_and_grad(value, has_aux=True)(x, *options) for options in given]

    with jax.enable_x64(True):
        found = all_of_it(x)
    for ((value, objective), gradient), rows in zip(found, (range(8), range(7), range(7)), strict=True):
        want, accuracy, positives, anchors = reference(x, rows)
        np.testing.assert_allclose(value, want, rtol=1e-10)
        means = {name: total / weight for name, (total, weight) in objective.metrics.items()}
        np.testing.assert_allclose([means["accuracy"], means["positives"]], [accuracy, positives])
        assert float(objective.weight) == anchors
        slopes = np.zeros_like(x)
        for at in np.ndindex(x.shape):
            step = np.zeros_like(x)
            step[at] = 1e-5
            slopes[at] = (reference(x + step, rows)[0] - reference(x - step, rows)[0]) / 2e-5
        np.testing.assert_allclose(gradient, slopes, atol=1e-8)


def test_two_rows_a_label_make_it_nt_xent():
    a, b = np.random.default_rng(1).normal(size=(2, 5, 4))
    twice = np.tile(np.arange(5), 2)
    supcon, pairs = jax.jit(lambda a, b: (supcon_loss(jnp.concatenate([a, b]), twice, 0.3), nt_xent(a, b, 0.3)))(a, b)
    np.testing.assert_allclose([supcon.total, supcon.weight], [pairs.total, pairs.weight], rtol=1e-5)


def test_nothing_to_learn_and_nothing_to_hide():
    """No label twice: 0. Zero vectors: log of the number of others. NaN: NaN."""

    @jax.jit
    def value(x, labels):
        return jax.value_and_grad(lambda x: loss(supcon_loss(x, labels, 0.1)))(x)

    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 2)), jnp.float32)
    found, gradient = value(x, jnp.arange(4))
    assert float(found) == 0 and not np.any(gradient)
    found, gradient = value(jnp.zeros((4, 2)), jnp.array([0, 0, 1, 1]))
    np.testing.assert_allclose(found, np.log(3), rtol=1e-6)
    assert not np.any(gradient)
    assert np.isnan(value(x.at[0, 0].set(np.nan), jnp.array([0, 0, 1, 1]))[0])
