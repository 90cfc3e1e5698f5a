"""Random decoders of every architecture, small enough for tests, and the functions of `Decoder` compiled."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.models.config import DecoderConfig
from jaxalign.models.decoder import Decoder

ARCHITECTURES = {
    "llama": dict(rope_scaling=("llama3", 8.0, 1.0, 4.0, 16)),
    "qwen2": dict(qkv_bias=True, tie_embeddings=False),
    "qwen3": dict(qk_norm=True),
    "gemma3": dict(
        sliding_window=4, sliding_pattern=2, rope_local_theta=100.0, post_norms=True, embed_scale=True, qk_norm=True,
        norm_offset=1.0, activation="gelu_tanh", query_scale=0.3,
    ),
}  # fmt: skip

# For what may depend on any of those settings but not on which go together: gemma3 has the one of qwen3.
COVERING = {
    "gemma3": ARCHITECTURES["gemma3"],
    "llama and qwen2": ARCHITECTURES["llama"] | ARCHITECTURES["qwen2"],
}

# With the parameters as an argument: one program per decoder and shape, however many tests use it.
hidden = jax.jit(Decoder.hidden, static_argnums=0)
prefill = jax.jit(Decoder.prefill, static_argnums=(0, 4))
decode = jax.jit(Decoder.decode, static_argnums=0)


def config(**options):
    sizes = dict(
        vocab_size=97, num_layers=2, embed_dim=32, mlp_dim=48, num_heads=4, num_kv_heads=2, head_dim=8, max_positions=64
    )
    return DecoderConfig(**sizes | options)


def decoder(architecture):
    return Decoder(config(**(ARCHITECTURES | COVERING)[architecture]), compute_dtype="float32")


def random_params(decoder, seed=0):
    """Random everywhere, so that a bias or a norm that is not applied shows."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        noise = rng.normal(size=leaf.shape)
        if path[-1].key == "scale":
            noise = 1 - decoder.config.norm_offset + 0.1 * noise
        elif path[0].key == "layers" and path[-1].key == "kernel":
            noise = noise * leaf.shape[1] ** -0.5
        else:
            noise = 0.1 * noise
        return jnp.asarray(noise, jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, decoder.abstract_params())


def plain_row(tokens):
    positions = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
    return tokens, positions, np.ones(tokens.shape, np.int32)
