"""Weights of pair losses by derivative against their closed forms, losses against loops, and what mining keeps."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxalign.losses import pair_weighting as pw

ALPHA, BETA, THRESHOLD, MARGIN = 2.0, 8.0, 0.3, 0.25


def problem(seed=0, anchors=7, candidates=9):
    """Similarities and pairs; the first anchor has no positive, the second no negative."""
    random = np.random.default_rng(seed)
    s = random.uniform(-1, 1, (anchors, candidates))
    kind = random.integers(0, 3, s.shape)
    positive, negative = kind == 1, kind == 2
    positive[0] = False
    negative[1] = False
    return s, positive, negative


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def by_loops(name, s, positive, negative):
    """(loss [M], w [M, N]) of the formulas, one pair at a time."""
    losses, w = np.zeros(len(s)), np.zeros(s.shape)
    for i, row in enumerate(s):
        pos, neg = np.flatnonzero(positive[i]), np.flatnonzero(negative[i])
        if name == "contrastive":
            losses[i] = sum(max(row[k] - THRESHOLD, 0) for k in neg) - sum(row[j] for j in pos)
            w[i, pos] = 1
            w[i, neg] = row[neg] > THRESHOLD
        elif name == "triplet":
            for j in pos:
                for k in neg:
                    if row[k] - row[j] + MARGIN > 0:
                        losses[i] += row[k] - row[j] + MARGIN
                        w[i, j] += 1
                        w[i, k] += 1
        elif name == "lifted_structure" and len(pos) and len(neg):
            sums = [sum(math.exp(-row[j]) for j in pos), sum(math.exp(row[k]) for k in neg)]
            losses[i] = MARGIN + math.log(sums[0]) + math.log(sums[1])
            if losses[i] > 0:
                w[i, pos] = np.exp(-row[pos]) / sums[0]
                w[i, neg] = np.exp(row[neg]) / sums[1]
            losses[i] = max(losses[i], 0)
        elif name == "binomial_deviance":
            for j in pos:
                losses[i] += math.log1p(math.exp(ALPHA * (THRESHOLD - row[j]))) / len(pos)
                w[i, j] = ALPHA * sigmoid(ALPHA * (THRESHOLD - row[j])) / len(pos)
            for k in neg:
                losses[i] += math.log1p(math.exp(BETA * (row[k] - THRESHOLD))) / len(neg)
                w[i, k] = BETA * sigmoid(BETA * (row[k] - THRESHOLD)) / len(neg)
        elif name == "multi_similarity" and len(pos) and len(neg):
            pulled = 1 + sum(math.exp(-ALPHA * (row[j] - THRESHOLD)) for j in pos)
            losses[i] = math.log(pulled) / ALPHA
            w[i, pos] = np.exp(-ALPHA * (row[pos] - THRESHOLD)) / pulled
            losses[i] += math.log(1 + sum(math.exp(BETA * (row[k] - THRESHOLD)) for k in neg)) / BETA
            for j in neg:  # own similarity first, then relative ones
                relative = sum(math.exp(BETA * (row[k] - row[j])) for k in neg)
                w[i, j] = 1 / (math.exp(BETA * (THRESHOLD - row[j])) + relative)
    return losses, w


SCALES = dict(alpha=ALPHA, beta=BETA, threshold=THRESHOLD)
OPTIONS = {
    "contrastive": dict(threshold=THRESHOLD),
    "triplet": dict(margin=MARGIN),
    "lifted_structure": dict(margin=MARGIN),
    "binomial_deviance": SCALES,
    "multi_similarity": SCALES,
}


@pytest.mark.parametrize("name", pw.PAIR_LOSSES)
def test_losses_weights_and_surrogate(name):
    """The loss and |dL/dS| equal their formulas; the surrogate with those weights has the gradient of the loss."""
    s, positive, negative = problem()
    if name == "lifted_structure":
        s[2] = np.where(positive[2], 5.0, -5.0)  # an anchor whose loss is not active
    pair_loss = functools.partial(pw.PAIR_LOSSES[name], **OPTIONS[name])
    losses, w = by_loops(name, s, positive, negative)

    def surrogate(s):
        weights = pw.pair_weights(pair_loss, s, positive, negative)
        return pw.weighted_surrogate(weights, s, positive, negative), weights

    def direct(s):
        found = pair_loss(s, positive, negative)
        return found.sum(), found

    @jax.jit
    def gradients(s):
        return [jax.grad(function, has_aux=True)(s) for function in (surrogate, direct)]

    with jax.enable_x64(True):
        (slope, found), (expected_slope, found_losses) = gradients(s)
        np.testing.assert_allclose(found_losses, losses, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(found, w, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(slope, expected_slope, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("beta", [50.0, 500.0])
def test_large_scales_do_not_overflow(beta):
    s, positive, negative = problem()
    loss = functools.partial(pw.multi_similarity, alpha=beta, beta=beta, threshold=0.5)
    value, gradient = jax.jit(jax.value_and_grad(lambda s: loss(s, positive, negative).sum()))(s.astype(np.float32))
    assert np.isfinite(value) and np.isfinite(gradient).all()
    # The limit of a large scale: how far the hardest pair lies beyond the threshold.
    hardest = np.where(negative, s, -1).max(1), np.where(positive, s, 1).min(1)
    used = positive.any(1) & negative.any(1)
    limit = (np.maximum(hardest[0] - 0.5, 0) + np.maximum(0.5 - hardest[1], 0))[used].sum()
    np.testing.assert_allclose(value, limit, atol=2 * used.sum() * math.log(10) / beta)


@pytest.mark.parametrize("name", pw.PAIR_LOSSES)
def test_without_pairs_value_and_gradient_are_zero(name):
    nothing = np.zeros((3, 4), bool)
    loss = jax.jit(jax.value_and_grad(lambda s: pw.PAIR_LOSSES[name](s, nothing, nothing).sum()))
    value, gradient = loss(jnp.ones((3, 4)))
    assert value == 0
    assert (np.asarray(gradient) == 0).all()


@given(st.integers(0, 2**32 - 1), st.floats(0, 0.5))
def test_mining_keeps_pairs_that_compete_and_both_kinds_or_none(seed, margin):
    s, positive, negative = problem(seed, 5, 6)
    s = s.astype(np.float32)
    kept_positive, kept_negative = (np.asarray(x) for x in jax.jit(pw.mine)(s, positive, negative, margin))
    np.testing.assert_array_equal(kept_positive.any(1), kept_negative.any(1))
    margin = np.float32(margin)
    for i, row in enumerate(s):
        for j, value in enumerate(row):
            wanted = positive[i, j] and any(value - margin < row[k] for k in np.flatnonzero(negative[i]))
            assert kept_positive[i, j] == wanted
            wanted = negative[i, j] and any(value + margin > row[k] for k in np.flatnonzero(positive[i]))
            assert kept_negative[i, j] == wanted


def test_mining_hides_no_nan():
    s = jnp.array([[np.nan, 0.2, 0.1]])
    pairs = jnp.array([[True, False, False]]), jnp.array([[False, True, True]])
    assert np.isnan(jax.jit(lambda s: pw.multi_similarity(s, *pw.mine(s, *pairs, 0.1)))(s)).all()
