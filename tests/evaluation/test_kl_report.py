"""kl_report against the definition, and its estimators against the exact value."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.evaluation.kl import kl_report


def log_softmax(x):
    x = np.asarray(x, np.float64)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def test_against_the_definition():
    random = np.random.default_rng(0)
    p, q = random.normal(size=(2, 3, 4, 7)).astype(np.float32)
    tokens = random.integers(0, 7, (3, 4))
    mask = np.asarray([[1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]], np.float32)
    p[0, 3] = np.nan  # not counted
    tokens = np.where(mask > 0, tokens, -1)
    report = jax.jit(kl_report)(p, q, tokens, mask)
    lp, lq = log_softmax(p), log_softmax(q)
    exact, k1, k2, k3 = np.zeros((4, 3))
    for b in range(3):
        for t in range(4):
            if mask[b, t]:
                exact[b] += (np.exp(lp[b, t]) * (lp[b, t] - lq[b, t])).sum()
                lr = lq[b, t, tokens[b, t]] - lp[b, t, tokens[b, t]]
                k1[b] += -lr
                k2[b] += lr**2 / 2
                k3[b] += np.exp(lr) - 1 - lr
    for found, expected in zip(report, (exact, k1, k2, k3, [3, 1, 0]), strict=False):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(report.per_token, exact.sum() / 4, rtol=1e-5)


def test_special_points():
    logits = jnp.asarray([[[0.0, 1.0, -jnp.inf]]])  # a token that cannot occur adds nothing
    report = kl_report(logits, logits, jnp.asarray([[1]]), jnp.ones((1, 1)))
    assert all(float(x.sum()) == 0 for x in (report.exact, report.k1, report.k2, report.k3))
    empty = kl_report(logits, logits, jnp.asarray([[1]]), jnp.zeros((1, 1)))
    assert float(empty.per_token) == 0


def test_estimators_agree_with_the_exact_value():
    p, q = jnp.asarray([0.5, 0.3, -0.4, 1.2, 0.0]), jnp.asarray([0.1, 0.9, -0.2, 0.8, 0.3])
    samples = 100_000
    tokens = jax.random.categorical(jax.random.key(0), p, shape=(samples, 1))
    shape = (samples, 1, 5)
    mask = jnp.ones((samples, 1))
    report = kl_report(jnp.broadcast_to(p, shape), jnp.broadcast_to(q, shape), tokens, mask)
    exact = float(report.exact[0])
    for estimate in (report.k1, report.k3):
        estimate = np.asarray(estimate, np.float64)
        assert abs(estimate.mean() - exact) < 3 * estimate.std() / np.sqrt(samples)
    assert report.k3.std() < report.k1.std()
