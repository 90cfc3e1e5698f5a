"""An encoder of plain feature vectors: linear maps with an activation between them."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
from flax import nnx

from jaxalign.models.encoder_layers import ACTIVATIONS, check_activation, check_dropout, dropout
from jaxalign.models.layers import Linear, Precision, default_precision


class LinearChain(nnx.Module):
    """`layer_0`, `layer_1`, ...: linear maps with biases between the sizes `dims`."""

    def __init__(self, dims: tuple[int, ...], precision: Precision, rngs: nnx.Rngs):
        for number, (inside, outside) in enumerate(itertools.pairwise(dims)):
            setattr(self, f"layer_{number}", Linear(inside, outside, precision, rngs, use_bias=True))


@functools.lru_cache(maxsize=32)
def _definition(dims: tuple[int, ...], precision: Precision):
    whole = nnx.eval_shape(lambda: LinearChain(dims, precision, nnx.Rngs(0)))
    return nnx.graphdef(whole), nnx.to_pure_dict(nnx.state(whole))


@dataclasses.dataclass(frozen=True)
class MlpEncoder:
    """features [B, in_dim] -> embeddings [B, out_dim]; with no `hidden_dims` one linear map.

    `activation` (a key of `encoder_layers.ACTIVATIONS`) follows every map but the last, `dropout` every activation,
    `input_dropout` comes before the first map. Dropout acts only where `embed` is given a key.

    Raises UserError: an activation that is not known, a dropout outside [0, 1).
    """

    in_dim: int
    hidden_dims: tuple[int, ...]
    out_dim: int
    activation: str = "relu"
    dropout: float = 0.0
    input_dropout: float = 0.0
    compute_dtype: str = "float32"

    def __post_init__(self):
        check_activation(self.activation)
        check_dropout(dropout=self.dropout, input_dropout=self.input_dropout)

    @property
    def dims(self) -> tuple[int, ...]:
        """Sizes from input to output."""
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
        return nnx.to_pure_dict(nnx.state(LinearChain(self.dims, self.precision, nnx.Rngs(params=key))))

    def abstract_params(self) -> dict:
        return _definition(self.dims, self.precision)[1]

    def embed(self, params, inputs, *, key=None) -> jax.Array:
        """Embeddings [B, out_dim], not normalised, of inputs {"features": [B, in_dim]}.

        `key` turns dropout on; the same key drops the same entries.
        """
        chain = nnx.merge(_definition(self.dims, self.precision)[0], params)
        keys = [None] * len(self.dims) if key is None else jax.random.split(key, len(self.dims))
        x = dropout(inputs["features"], self.input_dropout, keys[0])
        last = len(self.dims) - 2
        for number in range(last + 1):
            x = getattr(chain, f"layer_{number}")(x)
            if number < last:
                x = dropout(ACTIVATIONS[self.activation](x), self.dropout, keys[number + 1])
        return x.astype(jnp.promote_types(x.dtype, jnp.float32))
