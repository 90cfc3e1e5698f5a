"""Edge prediction: against a plain loop over pairs, padding, and what is drawn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign import objective
from jaxalign.losses.edge_prediction import draw_pairs, edge_prediction_loss


def test_value_and_gradient_are_those_of_a_loop_over_pairs():
    random = np.random.default_rng(0)
    x = random.normal(size=(6, 3))
    edges, others = random.integers(6, size=(2, 5, 2))
    valid = np.array([1, 1, 0, 1, 1])
    total, gradient, right = 0.0, np.zeros_like(x), 0
    for (a, b), (c, d), counts in zip(edges, others, valid, strict=True):
        for i, j, sign in ((a, b, 1), (c, d, -1)):
            score = sign * (x[i] @ x[j])
            total += counts * np.log1p(np.exp(-score))
            slope = -counts * sign / (1 + np.exp(score))
            gradient[i] += slope * x[j]
            gradient[j] += slope * x[i]
            right += counts * (score > 0)
    nodes = jnp.asarray(x, jnp.float32)
    edges = np.where(valid[:, None], edges, 999)  # what is padded may hold anything
    loss = jax.jit(lambda nodes: edge_prediction_loss(nodes, edges, others, valid=valid))
    found = loss(nodes)
    assert found.total == pytest.approx(total, rel=1e-5) and found.weight == 4
    assert found.metrics["accuracy"] == (right, 8)
    np.testing.assert_allclose(jax.grad(lambda nodes: loss(nodes).total)(nodes), gradient, rtol=1e-4, atol=1e-5)
    nothing = edge_prediction_loss(nodes, edges, others, valid=np.zeros(5))
    assert objective.loss(nothing) == 0


def test_pairs_are_edges_and_any_nodes():
    edges = jnp.array([[0, 1], [2, 3], [4, 5], [-1, -1]])
    joined, others = draw_pairs(jax.random.key(0), edges, pairs=400, nodes=7, number=3)
    found, counts = np.unique(joined, axis=0, return_counts=True)
    assert found.tolist() == edges[:3].tolist() and counts.min() > 90
    assert len(np.unique(others, axis=0)) == 49  # a node may meet itself
    assert len(np.unique(draw_pairs(jax.random.key(0), edges, pairs=400, nodes=7)[0], axis=0)) == 4
