"""Random encoders small enough for tests."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.models.dual_encoder import DualEncoder
from jaxalign.models.image_encoder import ImageEncoder, ImageEncoderConfig
from jaxalign.models.text_encoder import TextEncoder, TextEncoderConfig

SIZES = dict(num_layers=2, embed_dim=16, mlp_dim=24, num_heads=4)
# bert: post-norm with token types; clip, siglip: the text halves.
TEXT = {
    "bert": dict(pre_norm=False, embed_norm=True, token_types=2),
    "clip": dict(activation="quick_gelu", causal=True, final_norm=True, pooling="last", projection_dim=8),
    "siglip": dict(
        activation="gelu_tanh", final_norm=True, pooling="last", projection_dim=8, projection_bias=True, fill_id=1
    ),
}
IMAGE = {
    "vit": dict(),
    "clip": dict(activation="quick_gelu", patch_bias=False, embed_norm=True, projection_dim=8),
    "siglip": dict(activation="gelu_tanh", pooling="map", projection_dim=8),
    "mean": dict(pooling="mean"),
}


def text_encoder(name="bert", *, dropout=0.0, remat="full", **options):
    config = TextEncoderConfig(**SIZES | dict(vocab_size=32, max_positions=12) | TEXT[name] | options)
    return TextEncoder(config, compute_dtype="float32", dropout=dropout, remat=remat)


def image_encoder(name="vit", *, dropout=0.0, **options):
    config = ImageEncoderConfig(**SIZES | dict(image_size=8, patch_size=4) | IMAGE[name] | options)
    return ImageEncoder(config, compute_dtype="float32", dropout=dropout)


def dual_encoder(name="clip"):
    initial = dict(initial_scale=10.0, initial_bias=-10.0) if name == "siglip" else {}
    return DualEncoder(image=image_encoder(name), text=text_encoder(name), **initial)


def random_params(encoder, seed=0):
    """Random everywhere, so that a bias or a norm that is not applied shows."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        noise = rng.normal(size=leaf.shape)
        if path[-1].key == "kernel":
            noise = noise * leaf.shape[-2] ** -0.5
        elif path[-1].key == "scale":
            noise = 1 + 0.1 * noise
        else:
            noise = 0.3 * noise
        return jnp.asarray(noise, jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, encoder.abstract_params())


def text_rows(seed=0, lengths=(9, 4, 1, 7), size=9):
    tokens = np.random.default_rng(seed).integers(2, 32, (len(lengths), size))
    return {"tokens": jnp.asarray(tokens, jnp.int32), "lengths": jnp.asarray(lengths, jnp.int32)}


def pixels(seed=0, rows=3, size=8):
    return {"images": jnp.asarray(np.random.default_rng(seed).normal(size=(rows, size, size, 3)), jnp.float32)}
