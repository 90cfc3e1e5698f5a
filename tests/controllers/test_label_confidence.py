"""E-step and reliability of LCPO: plain loops, EM's own law, and the fixed point that its theorem promises."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.controllers import label_confidence as lc
from tests.compiled import compiled

confidence, update = compiled(lc.confidence), compiled(lc.update)


def sig(x):
    return 1 / (1 + np.exp(-x))


def test_confidences_are_posteriors():
    z, annotator = np.array([-1.0, 0.0, 2.0, 0.5, -3.0]), np.array([0, 1, 2, 0, 1])
    eta = np.array([0.9, 0.6, 0.3])
    w, used = confidence(z, eta, annotator)
    p, own = sig(z), eta[annotator]
    np.testing.assert_allclose(used, own, rtol=1e-6)
    np.testing.assert_allclose(w, p * own / (p * own + (1 - p) * (1 - own)), rtol=1e-5)
    # a label without a known annotator says nothing; extremes are exact
    np.testing.assert_allclose(confidence(np.ones(2), eta, np.array([-1, 3]))[0], sig(1.0), rtol=1e-6)
    far = confidence(np.array([1e4, -1e4]), np.array([1.0]), np.zeros(2, int))[0]
    np.testing.assert_array_equal(far, [1, 0])


def test_reliabilities_move_to_the_mean_of_each_annotator():
    w = np.array([0.9, 0.5, 0.2, np.nan, 0.7, 0.1])
    annotator, mask = np.array([0, 0, 2, 2, -1, 7]), np.array([1, 1, 1, 1, 1, 1.0])
    state = lc.init(3, 0.8)
    state, eta = update(state, w, annotator, mask, rate=0.25)
    np.testing.assert_allclose(eta, [0.75 * 0.8 + 0.25 * 0.7, 0.8, 0.75 * 0.8 + 0.25 * 0.2], rtol=1e-6)
    np.testing.assert_array_equal(state.seen, [2, 0, 1])
    state, eta = update(state, w, annotator, mask * (annotator < 1), estimate="full")
    np.testing.assert_allclose(eta, [0.7, 0.8, 0.75 * 0.8 + 0.25 * 0.2], rtol=1e-6)
    ones = update(state, np.ones(6), annotator, mask, estimate="full")[1]
    np.testing.assert_allclose(ones[0], 1 - lc.LEAST)  # its logit stays finite


def test_devices_hold_one_reliability():
    random = np.random.default_rng(0)
    w, annotator = random.uniform(size=(2, 4)).astype(np.float32), random.integers(0, 3, (2, 4))
    state = lc.init(3)

    def eta(w, annotator):
        return lc.update(state, w, annotator, jnp.ones(4), axis_name="devices")[1]

    whole = update(state, w.reshape(-1), annotator.reshape(-1), np.ones(8))[1]
    np.testing.assert_allclose(jax.jit(jax.vmap(eta, axis_name="devices"))(w, annotator), [whole, whole], rtol=1e-6)


def test_em_never_lowers_the_likelihood_and_finds_the_truth():
    """Labels of a calibrated model, right at rates .85 and .6: from any start the same point, near those."""
    random = np.random.default_rng(1)
    z = jnp.asarray(2 * random.normal(size=20_000))
    annotator = random.integers(0, 2, 20_000)
    right = random.uniform(size=20_000) < np.array([0.85, 0.6])[annotator]
    z = jnp.where((random.uniform(size=20_000) < sig(np.asarray(z))) == right, z, -z)  # as the labels have it
    p = sig(np.asarray(z, np.float64))

    def loop(state, _):
        state, eta = lc.update(
            state, lc.confidence(z, state, annotator)[0], annotator, jnp.ones(20_000), estimate="full"
        )
        return state, eta

    ends = []
    for start in (0.2, 0.9):
        _, etas = jax.jit(lambda s: jax.lax.scan(loop, s, length=60))(lc.init(2, start))
        own = np.asarray(etas, np.float64)[:, annotator]
        likelihoods = np.log(p * own + (1 - p) * (1 - own)).mean(axis=1)
        assert (np.diff(likelihoods) > -1e-7).all() and likelihoods[-1] > likelihoods[0]
        ends.append(etas[-1])
    np.testing.assert_allclose(ends[0], ends[1], atol=2e-3)
    np.testing.assert_allclose(ends[0], [0.85, 0.6], atol=0.03)


def test_mistakes_are_named():
    for arguments, words in (((0,), "annotators=0"), ((2, 1.0), r"reliability=1.0 must be in \(0, 1\)")):
        with pytest.raises(ValueError, match=words):
            lc.init(*arguments)
    for options, words in (
        ({"rate": 0.0}, r"rate=0.0 .* in \(0, 1\]"),
        ({"estimate": "all"}, "unknown estimate 'all'"),
    ):
        with pytest.raises(ValueError, match=words):
            lc.update(lc.init(1), jnp.ones(1), jnp.zeros(1, int), jnp.ones(1), **options)
