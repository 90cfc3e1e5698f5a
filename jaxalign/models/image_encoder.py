"""Image encoders: ViT (Dosovitskiy et al., arXiv 2010.11929), and the image halves of CLIP and SigLIP."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from jaxalign.errors import UserError
from jaxalign.models.encoder_layers import (
    FeedForward,
    LayerNorm,
    MultiHeadAttention,
    StackConfig,
    TransformerEncoder,
    dropout,
    stacked_blocks,
)
from jaxalign.models.layers import Linear, Precision
from jaxalign.placement import spread_rows

POOLING = ("cls", "mean", "map")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageEncoderConfig(StackConfig):
    """Shape and options of an image encoder. Hashable, hence usable as a static argument of `jax.jit`.

    pooling: "cls" the hidden state of a learned token in front of the patches, "mean" that of the patches, "map" one
    learned query that attends to them, followed by a feed-forward (SigLIP). Only "cls" has the token in front.
    """

    image_size: int  # height and width in pixels
    patch_size: int
    channels: int = 3
    patch_bias: bool = True
    pooling: str = "cls"

    def __post_init__(self):
        super().__post_init__()
        if self.pooling not in POOLING:
            raise UserError(f"pooling={self.pooling!r} is not known; use one of {', '.join(POOLING)}")
        if self.patch_size > self.image_size:
            raise UserError(f"patch_size={self.patch_size} is larger than image_size={self.image_size}")

    @property
    def positions(self) -> int:
        """Rows of the position table: patches, and the token in front if there is one."""
        return (self.image_size // self.patch_size) ** 2 + (self.pooling == "cls")


def patches(images, size: int):
    """[B, H // size * W // size, size * size * C] pixels of each square of [B, H, W, C], row by row.

    What is left over at the right and the bottom is cut off.
    """
    rows, columns = images.shape[1] // size, images.shape[2] // size
    x = images[:, : rows * size, : columns * size]
    x = x.reshape(x.shape[0], rows, size, columns, size, x.shape[-1]).swapaxes(2, 3)
    return x.reshape(x.shape[0], rows * columns, -1)


class ImageEmbedding(nnx.Module):
    """A linear map of each patch + position embeddings, behind a learned token if pooling is "cls"."""

    def __init__(self, config: ImageEncoderConfig, precision: Precision, rngs: nnx.Rngs):
        pixels = config.patch_size**2 * config.channels
        self.patches = Linear(pixels, config.embed_dim, precision, rngs, use_bias=config.patch_bias)
        self.positions = nnx.Param(jax.random.normal(rngs.params(), (config.positions, config.embed_dim)) * 0.02)
        self.class_token = nnx.Param(jnp.zeros((config.embed_dim,))) if config.pooling == "cls" else None
        self.norm = LayerNorm(config.embed_dim, config.norm_epsilon) if config.embed_norm else None
        self.patch_size = config.patch_size

    def __call__(self, images):
        x = spread_rows(self.patches(patches(images, self.patch_size)))
        if self.class_token is not None:
            front = jnp.broadcast_to(self.class_token[...].astype(x.dtype), (x.shape[0], 1, x.shape[-1]))
            x = jnp.concatenate([front, x], axis=1)
        x = x + self.positions[...]
        return x if self.norm is None else self.norm(x)


class AttentionPool(nnx.Module):
    """One learned query over all patches: y = attention(probe, x), then y + feed_forward(norm(y))."""

    def __init__(self, config: ImageEncoderConfig, precision: Precision, rngs: nnx.Rngs):
        self.probe = nnx.Param(jax.random.normal(rngs.params(), (config.embed_dim,)) * config.embed_dim**-0.5)
        self.attention = MultiHeadAttention(config, precision, rngs)
        self.norm = LayerNorm(config.embed_dim, config.norm_epsilon)
        self.mlp = FeedForward(config, precision, rngs)

    def __call__(self, x, attend):
        probe = jnp.broadcast_to(self.probe[...].astype(x.dtype), (x.shape[0], 1, x.shape[-1]))
        y = self.attention(probe, x, attend)
        return (y + self.mlp(self.norm(y)))[:, 0]


class ImageTransformer(nnx.Module):
    def __init__(self, config: ImageEncoderConfig, precision: Precision, rngs: nnx.Rngs):
        self.embed = ImageEmbedding(config, precision, rngs)
        self.layers = stacked_blocks(config, precision, rngs)
        self.final_norm = LayerNorm(config.embed_dim, config.norm_epsilon)
        if config.pooling == "map":
            self.pool = AttentionPool(config, precision, rngs)
        if config.projection_dim is not None:
            self.projection = Linear(
                config.embed_dim, config.projection_dim, precision, rngs, use_bias=config.projection_bias
            )


@dataclasses.dataclass(frozen=True)
class ImageEncoder(TransformerEncoder):
    """`config` is an ImageEncoderConfig; see `TransformerEncoder` for the other fields."""

    module = ImageTransformer

    def hidden(self, params, inputs, *, key=None):
        """Hidden states [B, T, embed_dim] behind the final norm; the first is that of the token in front, if any.

        Raises UserError: images of another size or number of channels, or of integers.
        """
        images, config = inputs["images"], self.config
        expected = (config.image_size, config.image_size, config.channels)
        if images.shape[1:] != expected:
            raise UserError(f"images have shape {images.shape[1:]}, the image encoder takes {expected}; resize them")
        if not jnp.issubdtype(images.dtype, jnp.floating):
            raise UserError(f"images are of type {images.dtype}; scale them to floats as the encoder was trained with")
        embed_key, layer_key = (None, None) if key is None else jax.random.split(key)
        x = dropout(self._part(params, "embed")(images), self.dropout, embed_key)
        x = self._layers(params, x, jnp.ones((1, 1, 1), bool), layer_key)
        return self._part(params, "final_norm")(x)

    def embed(self, params, inputs, *, key=None) -> jax.Array:
        """Embeddings [B, D] in float32, not normalised, of inputs {"images": [B, H, W, C] float}.

        `key` turns dropout on. Raises UserError: as `hidden`.
        """
        x = self.hidden(params, inputs, key=key)
        if self.config.pooling == "map":
            everything = jnp.ones((1, 1, 1), bool)
            x = self._part(params, "pool")(x, lambda *arrays: self._attend(*arrays, visible=everything))
        else:
            x = x[:, 0] if self.config.pooling == "cls" else jnp.mean(x.astype(jnp.float32), axis=1)
        if self.config.projection_dim is not None:
            x = self._part(params, "projection")(x)
        return x.astype(jnp.float32)
