"""An encoder of plain feature vectors: linear maps with an activation between them."""

import dataclasses

import jax
import jax.numpy as jnp

from jaxalign.models.chain import ChainEncoder
from jaxalign.models.encoder_layers import ACTIVATIONS, check_dropout, dropout


@dataclasses.dataclass(frozen=True)
class MlpEncoder(ChainEncoder):
    """features [B, in_dim] -> embeddings [B, out_dim]; with no `hidden_dims` one linear map.

    `dropout` follows every activation, `input_dropout` comes before the first map. Dropout acts only where `embed` is
    given a key.

    Raises UserError: an activation that is not known, a dropout outside [0, 1).
    """

    dropout: float = 0.0
    input_dropout: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        check_dropout(dropout=self.dropout, input_dropout=self.input_dropout)

    def embed(self, params, inputs, *, key=None) -> jax.Array:
        """Embeddings [B, out_dim], not normalised, of inputs {"features": [B, in_dim]}.

        `key` turns dropout on; the same key drops the same entries.
        """
        *hidden, last = self.layers(params)
        keys = [None] * len(self.dims) if key is None else jax.random.split(key, len(self.dims))
        x = dropout(inputs["features"], self.input_dropout, keys[0])
        for layer, its_key in zip(hidden, keys[1:], strict=False):
            x = dropout(ACTIVATIONS[self.activation](layer(x)), self.dropout, its_key)
        x = last(x)
        return x.astype(jnp.promote_types(x.dtype, jnp.float32))
