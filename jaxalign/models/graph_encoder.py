"""An encoder of graphs: in each layer a node reads itself and the mean of its neighbours."""

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxalign.models.chain import ChainEncoder
from jaxalign.models.encoder_layers import ACTIVATIONS


def mean_aggregate(x: jax.Array, senders: jax.Array, receivers: jax.Array, nodes: int) -> jax.Array:
    """[nodes, F]: the mean of x [N, F] over the senders of each receiver's edges [E]; 0 for a node without any.

    For graphs too large for an adjacency matrix.
    """
    sums = jax.ops.segment_sum(x[senders], receivers, nodes)
    counts = jax.ops.segment_sum(jnp.ones(len(receivers), x.dtype), receivers, nodes)
    return sums / jnp.maximum(counts, 1)[:, None]


@dataclasses.dataclass(frozen=True)
class GraphEncoder(ChainEncoder):
    """nodes [G, V, in_dim] and edges -> embeddings of nodes or graphs; `activation` follows every layer but the last.

    Inputs are {"nodes": [G, V, F], "adjacency": [G, V, V], "mask": [G, V]}: adjacency[g, i, j] is the weight with which
    node i reads node j (weights are normalised to a mean; an isolated node reads 0), mask is 0 for padding nodes, which
    nobody reads.

    Raises UserError: an activation that is not known.
    """

    reads: ClassVar[int] = 2  # itself and its neighbours

    def embed_nodes(self, params, inputs) -> jax.Array:
        """Embeddings [G, V, out_dim] of all nodes, not normalised; 0 for padding nodes."""
        mask = (jnp.asarray(inputs["mask"]) != 0)[..., None]
        x = jnp.where(mask, inputs["nodes"], 0)
        weights = jnp.where(jnp.swapaxes(mask, 1, 2), inputs["adjacency"], 0).astype(x.dtype)
        weights = weights / jnp.where((degree := weights.sum(-1, keepdims=True)) > 0, degree, 1)
        return self._layers(params, x, lambda x: weights @ x, mask)

    def embed_edges(self, params, inputs) -> jax.Array:
        """Embeddings [V, out_dim] of the nodes of one graph {"nodes": [V, F], "senders": [E], "receivers": [E]}.

        The node receivers[e] reads senders[e]. It is `embed_nodes` without the matrix, for graphs of many nodes.
        """
        nodes, senders, receivers = (jnp.asarray(inputs[name]) for name in ("nodes", "senders", "receivers"))
        return self._layers(params, nodes, lambda x: mean_aggregate(x, senders, receivers, len(nodes)), True)

    def _layers(self, params, x, read: Callable[[jax.Array], jax.Array], mask) -> jax.Array:
        """`read(x)` is the mean of what each node reads."""
        *hidden, last = self.layers(params)
        for layer in hidden:
            x = ACTIVATIONS[self.activation](layer(jnp.concatenate([x, read(x)], -1)))
            x = jnp.where(mask, x, 0)
        x = jnp.where(mask, last(jnp.concatenate([x, read(x)], -1)), 0)
        return x.astype(jnp.promote_types(x.dtype, jnp.float32))

    def embed(self, params, inputs) -> jax.Array:
        """Embeddings [G, out_dim] of graphs: the mean over their nodes; 0 for a graph without any."""
        found = self.embed_nodes(params, inputs)
        counts = (jnp.asarray(inputs["mask"]) != 0).sum(-1, keepdims=True)
        return found.sum(1) / jnp.maximum(counts, 1)
