"""pass@k, avg@n, maj@k against enumeration of all subsets, and the bias pass@k is free of."""

import collections
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.evaluation.pass_at_k import avg_at_n, maj_at_k, pass_at_k


def test_pass_at_k_is_the_share_of_subsets_with_a_right_one():
    for n in range(1, 8):
        for c in range(n + 1):
            samples = [1] * c + [0] * (n - c)
            for k in range(1, n + 1):
                expected = np.mean([max(s) for s in itertools.combinations(samples, k)])
                assert pass_at_k(n, c, k) == pytest.approx(expected, abs=1e-12)


def test_pass_at_k_of_many_samples_in_float32_under_jit():
    n, c = np.repeat(512, 6), np.asarray([0, 1, 2, 100, 511, 512])
    for k in (1, 16, 256, 512):
        exact = pass_at_k(n, c, k)
        traced = jax.jit(pass_at_k, static_argnums=2)(jnp.asarray(n), jnp.asarray(c), k)
        assert traced.dtype == jnp.float32
        np.testing.assert_allclose(traced, exact, rtol=1e-4)
    assert pass_at_k(512, 1, 16) == pytest.approx(16 / 512, rel=1e-12)


def test_pass_at_k_bad_input():
    with pytest.raises(ValueError, match="pass@4 needs at least 4 samples per prompt; here are 3"):
        pass_at_k(np.asarray([5, 3]), np.asarray([1, 1]), 4)
    with pytest.raises(ValueError, match="number of right samples"):
        pass_at_k(3, 4, 1)
    with pytest.raises(ValueError, match="k >= 1"):
        pass_at_k(3, 1, 0)
    inside = jax.jit(pass_at_k, static_argnums=2)(jnp.asarray([5, 3]), jnp.asarray([1, 1]), 4)
    np.testing.assert_array_equal(np.isnan(inside), [False, True])


def test_pass_at_k_is_unbiased_and_the_plug_in_is_not():
    random = np.random.default_rng(0)
    p = random.beta(1, 3, 10_000)
    n, k = 10, 5
    c = random.binomial(n, p)
    truth = 1 - (1 - p) ** k
    difference = pass_at_k(np.full_like(c, n), c, k) - truth
    assert abs(difference.mean()) < 3 * difference.std() / np.sqrt(len(p))
    plug_in = 1 - (1 - c / n) ** k
    assert truth.mean() - plug_in.mean() > 0.02


def test_avg_at_n():
    correct = [[1, 0, 0, 1], [1, 1, 0, np.nan]]
    mask = [[1, 1, 1, 1], [1, 1, 0, 0]]
    np.testing.assert_allclose(avg_at_n(correct, mask), [0.5, 1])
    np.testing.assert_allclose(avg_at_n(correct[:1]), [0.5])
    with pytest.raises(ValueError, match="prompt 1 has no samples"):
        avg_at_n(correct, [[1, 1, 1, 1], [0, 0, 0, 0]])


def majority_by_hand(answers, right, k, weights=None):
    weights = weights if weights is not None else [1] * len(answers)
    shares = []
    for chosen in itertools.combinations(range(len(answers)), k):
        votes = collections.Counter()
        for i in chosen:
            if answers[i] >= 0:
                votes[answers[i]] += weights[i]
        best = [a for a, v in votes.items() if v == max(votes.values())]
        shares.append((right in best) / len(best) if best else 0)
    return np.mean(shares)


def test_maj_at_k_by_enumeration():
    random = np.random.default_rng(1)
    answers, right = random.integers(-1, 4, (20, 6)), random.integers(0, 4, 20)
    weights = random.integers(1, 4, (20, 6))
    for k in range(1, 7):
        expected = [majority_by_hand(list(a), r, k) for a, r in zip(answers, right, strict=True)]
        np.testing.assert_allclose(maj_at_k(None, answers, right, k), expected, atol=1e-12)
        expected = [majority_by_hand(list(a), r, k, list(w)) for a, r, w in zip(answers, right, weights, strict=True)]
        found = maj_at_k(None, answers, right, k, weights=weights)
        np.testing.assert_allclose(found, expected, atol=1e-12)


def test_maj_at_k_special_points():
    assert maj_at_k(None, [[-1, -1, -1]], [0], 3)[0] == 0  # nobody votes
    assert maj_at_k(None, [[-1, -1, 5]], [5], 3)[0] == 1  # "none" never wins
    assert maj_at_k(None, [[1, 2, 3]], [3], 3)[0] == pytest.approx(1 / 3)
    assert maj_at_k(None, [[1, 1, 2, 2]], [1], 4)[0] == 0.5
    # masked samples do not exist
    assert maj_at_k(None, [[1, 2, 2, 2]], [1], 1, mask=[[1, 0, 0, 0]])[0] == 1
    with pytest.raises(ValueError, match=r"maj@2 needs between 1 and 1 votes.* prompt 0"):
        maj_at_k(None, [[1, 2, 2, 2]], [1], 2, mask=[[1, 0, 0, 0]])


def test_maj_at_k_by_random_subsets():
    answers = [[0] * 9 + [1] * 5 + [2] * 4]
    exact = maj_at_k(None, answers, [0], 5, max_subsets=10_000)[0]
    drawn = maj_at_k(jax.random.key(0), answers, [0], 5, max_subsets=0, subsets=4_000)[0]
    assert abs(exact - drawn) < 3 * 0.5 / np.sqrt(4_000)
    with pytest.raises(ValueError, match="needs a key"):
        maj_at_k(None, answers, [0], 5)
