"""The graph encoder against a loop over nodes and neighbours."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.errors import UserError
from jaxalign.models.graph_encoder import GraphEncoder, mean_aggregate

ENCODER = GraphEncoder(3, (5,), 2)


def graphs():
    random = np.random.default_rng(0)
    adjacency = (random.random((2, 4, 4)) < 0.5).astype(np.float32)
    adjacency[0, 1] = 0  # an isolated node
    nodes = random.normal(size=(2, 4, 3)).astype(np.float32)
    mask = np.array([[1, 1, 1, 1], [1, 1, 0, 0]])
    nodes[1, 2:] = np.nan
    return {"nodes": nodes, "adjacency": adjacency, "mask": mask}


def test_against_a_loop():
    params, inputs = ENCODER.init(jax.random.key(0)), graphs()
    found = jax.jit(ENCODER.embed_nodes)(params, inputs)
    for g in range(2):
        nodes = int(inputs["mask"][g].sum())
        x = inputs["nodes"][g, :nodes]
        for number in range(2):
            kernel, bias = (np.asarray(params[f"layer_{number}"][name]) for name in ("kernel", "bias"))
            read = []
            for i in range(nodes):
                near = [x[j] for j in range(nodes) if inputs["adjacency"][g, i, j]]
                read.append(np.concatenate([x[i], np.mean(near, 0) if near else np.zeros_like(x[i])]))
            x = np.stack(read) @ kernel + bias
            x = np.maximum(x, 0) if number == 0 else x
        np.testing.assert_allclose(found[g, :nodes], x, rtol=1e-4, atol=1e-5)
        assert (np.asarray(found[g, nodes:]) == 0).all()
        np.testing.assert_allclose(jax.jit(ENCODER.embed)(params, inputs)[g], x.mean(0), rtol=1e-4, atol=1e-5)
    gradient = jax.jit(jax.grad(lambda p: ENCODER.embed(p, inputs).sum()))(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_shapes_and_settings():
    assert jax.tree.map(jnp.shape, ENCODER.init(jax.random.key(0))) == jax.tree.map(
        lambda leaf: leaf.shape, ENCODER.abstract_params()
    )
    assert ENCODER.embedding_dim == 2 and hash(ENCODER) == hash(GraphEncoder(3, (5,), 2))
    with pytest.raises(UserError, match="nothing"):
        GraphEncoder(3, (5,), 2, activation="nothing")


def test_mean_over_edges_is_that_over_the_adjacency():
    x = np.random.default_rng(1).normal(size=(5, 2)).astype(np.float32)
    edges = np.array([[0, 1], [2, 1], [3, 4], [1, 0]])
    got = jax.jit(mean_aggregate, static_argnums=3)(x, edges[:, 0], edges[:, 1], 5)
    want = np.zeros((5, 2))
    want[1], want[4], want[0] = (x[0] + x[2]) / 2, x[3], x[1]
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_edges_are_read_as_an_adjacency_is():
    params, inputs = ENCODER.init(jax.random.key(0)), graphs()
    receivers, senders = np.nonzero(inputs["adjacency"][0])
    edges = {"nodes": inputs["nodes"][0], "senders": senders, "receivers": receivers}
    whole = {name: x[:1] for name, x in inputs.items()}

    def both(params):
        return ENCODER.embed_edges(params, edges), ENCODER.embed_nodes(params, whole)[0]

    found, wanted = jax.jit(both)(params)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
