"""Edge prediction: an encoder of nodes learns to tell the edges of its graph from other pairs of nodes."""

import chex
import jax
import jax.numpy as jnp

from jaxalign.losses.aggregation import sum_type
from jaxalign.objective import Objective


def edge_prediction_loss(
    nodes: jax.Array, edges: jax.Array, others: jax.Array, *, valid: jax.Array | None = None
) -> Objective:
    """Sum over p of -log sigma(s(edges_p)) - log sigma(-s(others_p)), s(a, b) = <nodes_a, nodes_b>, in nats.

    Logistic regression with one other pair for each edge, as in a graph autoencoder (arXiv 1611.07308), whose decoder
    s is. Gradient flows into `nodes`.

    Args:
      nodes: [V, D] embeddings, not normalised.
      edges, others: [P, 2] int, pairs of nodes (see `draw_pairs`).
      valid: [P], false for padding.

    Returns:
      An Objective with weight P (of those that are valid), and the metric accuracy of all 2 P decisions at s = 0.

    Against the paper: pairs are drawn instead of the whole matrix weighed; others may be edges by chance.
    """
    chex.assert_rank([nodes, edges, others], 2)
    chex.assert_equal_shape([edges, others])
    nodes = nodes.astype(sum_type(nodes))
    counts = jnp.ones(len(edges), bool) if valid is None else jnp.asarray(valid) != 0

    def scores(pairs):
        pairs = jnp.where(counts[:, None], pairs, 0)
        return jnp.sum(nodes[pairs[:, 0]] * nodes[pairs[:, 1]], -1)

    joined, apart = scores(edges), scores(others)
    total = jnp.sum(jnp.where(counts, jax.nn.softplus(-joined) + jax.nn.softplus(apart), 0))
    right = jnp.sum(jnp.where(counts, (joined > 0).astype(total.dtype) + (apart < 0), 0))
    weight = counts.sum().astype(total.dtype)
    return Objective(total, weight, {"accuracy": (right, 2 * weight)})


def draw_pairs(
    key: jax.Array, edges: jax.Array, *, pairs: int, nodes: int, number: int | jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """(edges [pairs, 2], pairs of any nodes [pairs, 2]), drawn uniformly with replacement.

    Args:
      edges: [E, 2], of which the first `number` are drawn from (all, if None: what follows may be padding).
      nodes: V.
    """
    of_edges, of_nodes = jax.random.split(key)
    chosen = jax.random.randint(of_edges, (pairs,), 0, len(edges) if number is None else number)
    return edges[chosen], jax.random.randint(of_nodes, (pairs, 2), 0, nodes)
