"""An encoder of graphs: in each layer a node reads itself and the mean of its neighbours."""

import dataclasses
import functools
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from jaxalign.models.encoder_layers import ACTIVATIONS, check_activation
from jaxalign.models.layers import Linear, Precision, default_precision


class GraphLayers(nnx.Module):
    """`layer_0`, `layer_1`, ...: linear maps with biases of [own, mean of neighbours] between the sizes `dims`."""

    def __init__(self, dims: tuple[int, ...], precision: Precision, rngs: nnx.Rngs):
        for number, (inside, outside) in enumerate(itertools.pairwise(dims)):
            setattr(self, f"layer_{number}", Linear(2 * inside, outside, precision, rngs, use_bias=True))


@functools.lru_cache(maxsize=32)
def _definition(dims: tuple[int, ...], precision: Precision):
    whole = nnx.eval_shape(lambda: GraphLayers(dims, precision, nnx.Rngs(0)))
    return nnx.graphdef(whole), nnx.to_pure_dict(nnx.state(whole))


def mean_aggregate(x: jax.Array, senders: jax.Array, receivers: jax.Array, nodes: int) -> jax.Array:
    """[nodes, F]: the mean of x [N, F] over the senders of each receiver's edges [E]; 0 for a node without any.

    For graphs too large for an adjacency matrix.
    """
    sums = jax.ops.segment_sum(x[senders], receivers, nodes)
    counts = jax.ops.segment_sum(jnp.ones(len(receivers), x.dtype), receivers, nodes)
    return sums / jnp.maximum(counts, 1)[:, None]


@dataclasses.dataclass(frozen=True)
class GraphEncoder:
    """nodes [G, V, in_dim] and edges -> embeddings of nodes or graphs; `activation` follows every layer but the last.

    Inputs are {"nodes": [G, V, F], "adjacency": [G, V, V], "mask": [G, V]}: adjacency[g, i, j] is the weight with which
    node i reads node j (weights are normalised to a mean; an isolated node reads 0), mask is 0 for padding nodes, which
    nobody reads.

    Raises UserError: an activation that is not known.
    """

    in_dim: int
    hidden_dims: tuple[int, ...]
    out_dim: int
    activation: str = "relu"
    compute_dtype: str = "float32"

    def __post_init__(self):
        check_activation(self.activation)

    @property
    def dims(self) -> tuple[int, ...]:
        return (self.in_dim, *self.hidden_dims, self.out_dim)

    @property
    def precision(self) -> Precision:
        return default_precision(self.compute_dtype)

    @property
    def embedding_dim(self) -> int:
        """D of what `embed` gives."""
        return self.out_dim

    def init(self, key) -> dict:
        """Random float32 parameters: kernels of variance 1 / inputs, biases 0."""
        return nnx.to_pure_dict(nnx.state(GraphLayers(self.dims, self.precision, nnx.Rngs(params=key))))

    def abstract_params(self) -> dict:
        return _definition(self.dims, self.precision)[1]

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
        layers = nnx.merge(_definition(self.dims, self.precision)[0], params)
        last = len(self.dims) - 2
        for number in range(last + 1):
            x = getattr(layers, f"layer_{number}")(jnp.concatenate([x, read(x)], -1))
            if number < last:
                x = ACTIVATIONS[self.activation](x)
            x = jnp.where(mask, x, 0)
        return x.astype(jnp.promote_types(x.dtype, jnp.float32))

    def embed(self, params, inputs) -> jax.Array:
        """Embeddings [G, out_dim] of graphs: the mean over their nodes; 0 for a graph without any."""
        found = self.embed_nodes(params, inputs)
        counts = (jnp.asarray(inputs["mask"]) != 0).sum(-1, keepdims=True)
        return found.sum(1) / jnp.maximum(counts, 1)
