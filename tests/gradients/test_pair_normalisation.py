"""Normalised gradients of pairs: what they promise, and the same in micro-batches."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.gradients.pair_normalisation import (
    joined_halves,
    mean_of_normalised_pairs,
    normalised_halves,
    normalised_pair_gradient,
)
from jaxalign.losses.preference import PairLogProbs, preference_loss
from jaxalign.training.accumulation import CoupledLoss, sums
from tests.compiled import compiled
from tests.diagnostics.test_entanglement import flat_gradients, problem, scores

normalised_pair_gradient = compiled(normalised_pair_gradient)


def test_no_chosen_log_prob_falls_and_no_rejected_one_rises():
    params, rows = problem(5)
    g = flat_gradients(params, rows)
    for w, r in g:
        direction = -np.asarray(normalised_pair_gradient({"x": w}, {"x": r}, keep_norm=False)["x"])
        cosine = w @ r / np.linalg.norm(w) / np.linalg.norm(r)
        np.testing.assert_allclose(w @ direction, np.linalg.norm(w) * (1 - cosine), rtol=1e-4)
        np.testing.assert_allclose(r @ direction, -np.linalg.norm(r) * (1 - cosine), rtol=1e-4)
        kept = np.asarray(normalised_pair_gradient({"x": w}, {"x": r})["x"])
        np.testing.assert_allclose(kept, -direction * np.linalg.norm(w - r) / np.linalg.norm(direction), rtol=1e-4)


def test_gradients_of_zero_and_equal_ones():
    w, zero = {"x": np.array([3.0, 4.0])}, {"x": np.zeros(2)}
    np.testing.assert_allclose(normalised_pair_gradient(w, zero)["x"], [-3, -4], rtol=1e-6)
    np.testing.assert_allclose(normalised_pair_gradient(w, zero, keep_norm=False)["x"], [-0.6, -0.8], rtol=1e-6)
    np.testing.assert_allclose(normalised_pair_gradient(zero, w)["x"], [3, 4], rtol=1e-6)
    for pair in ((w, w), (zero, zero)):
        np.testing.assert_array_equal(normalised_pair_gradient(*pair)["x"], 0)


def test_the_mean_over_pairs_is_that_of_each_alone():
    params, rows = problem(4)
    mask = np.array([1, 0, 1, 1])
    found = jax.jit(mean_of_normalised_pairs, static_argnums=0)(scores, params, rows, mask)
    wanted = [normalised_pair_gradient(w, r) for w, r in flat_gradients(params, rows)]
    wanted = np.mean([wanted[i] for i in np.flatnonzero(mask)], axis=0)
    flat = np.concatenate([np.asarray(leaf).reshape(-1) for leaf in jax.tree.leaves(found)])
    np.testing.assert_allclose(flat, wanted, rtol=1e-4, atol=1e-5)


def test_halves_of_a_loss_in_micro_batches():
    """Together they are the loss's gradient; at equal norms they are the formula on d-weighted sums."""
    params, rows = problem(6)
    rows["reference"] = np.random.default_rng(3).normal(size=(6, 2)).astype(np.float32)

    def outputs(params, batch, key, extra):
        return scores(params, batch)

    def objective(found, batch, key, extra):
        found = found if isinstance(found, jax.Array) else joined_halves(found)
        one = jnp.ones(len(found))
        return preference_loss(PairLogProbs(*found.T, *batch["reference"].T, one, one, one), beta=0.5)

    def gradient(combine, parts):
        loss_fn = CoupledLoss(outputs, objective, combine=combine, copies=2 if combine else 1)
        found = jax.jit(lambda p: sums(loss_fn, p, rows, jax.random.key(0), {}, parts))(params)
        return found[0].total, np.concatenate([np.asarray(leaf).reshape(-1) for leaf in jax.tree.leaves(found[1])])

    plain = gradient(None, 1)
    both = gradient(lambda a, b: (jax.tree.map(jnp.add, a, b), {}), 2)
    np.testing.assert_allclose(both[0], plain[0], rtol=1e-5)
    np.testing.assert_allclose(both[1], plain[1], rtol=1e-4, atol=1e-5)
    g, s = flat_gradients(params, rows), np.asarray(scores(params, rows)) - rows["reference"]
    d = 0.5 / (1 + np.exp(0.5 * (s[:, 0] - s[:, 1])))
    w, r = (d[:, None] * g[:, 0]).sum(0), (d[:, None] * g[:, 1]).sum(0)
    u = r / np.linalg.norm(r) - w / np.linalg.norm(w)
    wanted = u * np.linalg.norm(r - w) / np.linalg.norm(u)
    for parts in (1, 3):
        np.testing.assert_allclose(gradient(normalised_halves, parts)[1], wanted, rtol=1e-4, atol=1e-5)
