"""Text encoders: BERT and its sentence encoders (MiniLM), and the text halves of CLIP and SigLIP."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from jaxalign.errors import UserError
from jaxalign.models.encoder_layers import LayerNorm, StackConfig, TransformerEncoder, dropout, stacked_blocks
from jaxalign.models.layers import Linear, Precision
from jaxalign.placement import spread_looked_up, spread_rows

POOLING = ("mean", "cls", "last")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextEncoderConfig(StackConfig):
    """Shape and options of a text encoder. Hashable, hence usable as a static argument of `jax.jit`.

    pooling: "mean" of the hidden states of the tokens of a text, "cls" the first of them, "last" the last.
    """

    vocab_size: int
    max_positions: int
    token_types: int = 0  # rows of the table of token types; BERT has 2
    causal: bool = False  # CLIP: a token sees earlier ones only
    final_norm: bool = False
    pooling: str = "mean"
    fill_id: int | None = None  # SigLIP: rows are filled up to max_positions with this token, which counts as text

    def __post_init__(self):
        super().__post_init__()
        if self.pooling not in POOLING:
            raise UserError(f"pooling={self.pooling!r} is not known; use one of {', '.join(POOLING)}")


class TextEmbedding(nnx.Module):
    """Token + position (+ token type) embeddings, normalised or not."""

    def __init__(self, config: TextEncoderConfig, rngs: nnx.Rngs):
        def table(rows):
            return nnx.Param(jax.random.normal(rngs.params(), (rows, config.embed_dim)) * 0.02)

        self.tokens = table(config.vocab_size)
        self.positions = table(config.max_positions)
        self.types = table(config.token_types) if config.token_types else None
        self.norm = LayerNorm(config.embed_dim, config.norm_epsilon) if config.embed_norm else None

    def __call__(self, tokens, types):
        x = spread_rows(spread_looked_up(self.tokens[...][tokens]))
        x = x + self.positions[...][: tokens.shape[1]]
        if self.types is not None:
            x = x + (self.types[...][0] if types is None else self.types[...][types])
        return x if self.norm is None else self.norm(x)


class TextTransformer(nnx.Module):
    def __init__(self, config: TextEncoderConfig, precision: Precision, rngs: nnx.Rngs):
        self.embed = TextEmbedding(config, rngs)
        self.layers = stacked_blocks(config, precision, rngs)
        if config.final_norm:
            self.final_norm = LayerNorm(config.embed_dim, config.norm_epsilon)
        if config.projection_dim is not None:
            self.projection = Linear(
                config.embed_dim, config.projection_dim, precision, rngs, use_bias=config.projection_bias
            )


@dataclasses.dataclass(frozen=True)
class TextEncoder(TransformerEncoder):
    """`config` is a TextEncoderConfig; see `TransformerEncoder` for the other fields."""

    module = TextTransformer

    def hidden(self, params, inputs, *, key=None):
        """Hidden states [B, T, embed_dim] behind the last layer (and the final norm), and the lengths [B] of the rows.

        With `fill_id` T is max_positions and so are the lengths. What a hidden state of padding is has no meaning.
        """
        config = self.config
        tokens, lengths = self._rows(inputs["tokens"], inputs["lengths"])
        types = inputs.get("types")
        if types is not None and types.shape != tokens.shape:
            raise UserError(f"token types have shape {types.shape}, tokens {tokens.shape}; give a type for each token")
        index = jnp.arange(tokens.shape[1])
        # The first token is seen in a row without any too, so that no softmax is empty.
        visible = (index < jnp.maximum(lengths, 1)[:, None])[:, None, :]
        if config.causal:
            visible = visible & (index[:, None] >= index[None, :])
        embed_key, layer_key = (None, None) if key is None else jax.random.split(key)
        x = dropout(self._part(params, "embed")(tokens, types), self.dropout, embed_key)
        x = self._layers(params, x, visible, layer_key)
        return (self._part(params, "final_norm")(x) if config.final_norm else x), lengths

    def embed(self, params, inputs, *, key=None) -> jax.Array:
        """Embeddings [B, D] in float32, not normalised.

        Args:
          params: the parameter tree.
          inputs: {"tokens": [B, T] right-padded ids, special tokens included; "lengths": [B] tokens of each row}, and
            "types" [B, T] if the token types are not all 0. What stands behind a length has no influence.
          key: turns dropout on.

        Raises UserError: rows longer than max_positions.
        """
        hidden, lengths = self.hidden(params, inputs, key=key)
        x = _pooled(hidden, lengths, self.config.pooling)
        if self.config.projection_dim is not None:
            x = self._part(params, "projection")(x)
        return x.astype(jnp.float32)

    def _rows(self, tokens, lengths):
        length, limit, fill = tokens.shape[1], self.config.max_positions, self.config.fill_id
        if length > limit:
            raise UserError(f"rows of {length} tokens do not fit the {limit} positions of the encoder; cut the texts")
        if fill is None:
            return tokens, lengths
        tokens = jnp.pad(tokens, ((0, 0), (0, limit - length)))
        tokens = jnp.where(jnp.arange(limit) < lengths[:, None], tokens, fill)
        return tokens, jnp.full_like(lengths, limit)


def _pooled(hidden, lengths, pooling: str):
    """[B, D] of hidden [B, T, D], in float32 where it is a mean."""
    if pooling == "cls":
        return hidden[:, 0]
    if pooling == "last":
        return hidden[jnp.arange(hidden.shape[0]), jnp.maximum(lengths, 1) - 1]
    counts = (jnp.arange(hidden.shape[1]) < lengths[:, None])[..., None]
    # where and not a product: what stands in padding may be anything.
    total = jnp.sum(jnp.where(counts, hidden.astype(jnp.float32), 0), axis=1)
    return total / jnp.maximum(lengths, 1)[:, None]
