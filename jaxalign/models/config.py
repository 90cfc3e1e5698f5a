"""What a decoder is: one frozen dataclass for Llama, SmolLM2, Qwen2/2.5, Qwen3 and Gemma 3.

An architecture is a set of values here, never a branch on a name elsewhere. `NAMED` holds the published sizes; the
weights of a named size come from the user's folder or hub id (see `jaxalign.models.loading`).
"""

import dataclasses

from jaxalign.errors import UserError


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Shape and options of a decoder-only transformer. Hashable, hence usable as a static argument of `jax.jit`."""

    vocab_size: int
    num_layers: int
    embed_dim: int
    mlp_dim: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_positions: int
    rope_theta: float = 10_000.0
    rope_local_theta: float | None = None  # Gemma 3: the sliding layers' own base
    rope_scaling: tuple | None = None  # ("linear", factor) | ("llama3", factor, low, high, original_positions)
    norm_epsilon: float = 1e-6
    norm_offset: float = 0.0  # Gemma stores scale - 1
    tie_embeddings: bool = True
    qkv_bias: bool = False  # Qwen2
    qk_norm: bool = False  # Qwen3, Gemma 3
    post_norms: bool = False  # Gemma 3: a norm after each sub-layer too
    activation: str = "silu"  # or "gelu_tanh"
    embed_scale: bool = False  # Gemma multiplies embeddings by sqrt(embed_dim)
    sliding_window: int | None = None  # tokens seen by a sliding layer, itself included
    sliding_pattern: int | None = None  # every n-th layer is global; None: all slide if there is a window
    query_scale: float | None = None  # None: head_dim ** -0.5

    def __post_init__(self):
        if self.num_heads % self.num_kv_heads:
            raise UserError(
                f"num_kv_heads={self.num_kv_heads} does not divide num_heads={self.num_heads}; "
                "grouped-query attention needs equal groups"
            )
        if self.activation not in ("silu", "gelu_tanh"):
            raise UserError(f"activation={self.activation!r} is not known; use 'silu' or 'gelu_tanh'")
        if self.rope_scaling is not None and self.rope_scaling[0] not in ("linear", "llama3"):
            raise UserError(f"rope_scaling {self.rope_scaling[0]!r} is not known; use 'linear' or 'llama3'")

    def is_sliding(self, layer: int) -> bool:
        """Whether this layer (counted from 0) sees only `sliding_window` tokens."""
        if self.sliding_window is None:
            return False
        return self.sliding_pattern is None or (layer + 1) % self.sliding_pattern != 0

    @property
    def attention_scale(self) -> float:
        return self.head_dim**-0.5 if self.query_scale is None else self.query_scale


def _qwen3(num_layers, embed_dim, mlp_dim, num_heads, tie_embeddings):
    return DecoderConfig(
        vocab_size=151_936, num_layers=num_layers, embed_dim=embed_dim, mlp_dim=mlp_dim, num_heads=num_heads,
        num_kv_heads=8, head_dim=128, max_positions=40_960, rope_theta=1e6, qk_norm=True,
        tie_embeddings=tie_embeddings,
    )  # fmt: skip


def _qwen2_5(num_layers, embed_dim, mlp_dim, num_heads, num_kv_heads, head_dim, vocab_size, tie_embeddings):
    return DecoderConfig(
        vocab_size=vocab_size, num_layers=num_layers, embed_dim=embed_dim, mlp_dim=mlp_dim, num_heads=num_heads,
        num_kv_heads=num_kv_heads, head_dim=head_dim, max_positions=32_768, rope_theta=1e6, qkv_bias=True,
        tie_embeddings=tie_embeddings,
    )  # fmt: skip


def _smollm2(num_layers, embed_dim, mlp_dim, num_heads, num_kv_heads, rope_theta):
    return DecoderConfig(
        vocab_size=49_152, num_layers=num_layers, embed_dim=embed_dim, mlp_dim=mlp_dim, num_heads=num_heads,
        num_kv_heads=num_kv_heads, head_dim=64, max_positions=8_192, rope_theta=rope_theta, norm_epsilon=1e-5,
    )  # fmt: skip


def _gemma3(num_layers, embed_dim, mlp_dim, num_heads, num_kv_heads):
    return DecoderConfig(
        vocab_size=262_144, num_layers=num_layers, embed_dim=embed_dim, mlp_dim=mlp_dim, num_heads=num_heads,
        num_kv_heads=num_kv_heads, head_dim=256, max_positions=32_768, rope_theta=1e6, rope_local_theta=1e4,
        norm_offset=1.0, qk_norm=True, post_norms=True, activation="gelu_tanh", embed_scale=True, sliding_window=512,
        sliding_pattern=6, query_scale=256**-0.5,
    )  # fmt: skip


NAMED: dict[str, DecoderConfig] = {
    "qwen3_0_6b": _qwen3(28, 1024, 3072, 16, True),
    "qwen3_1_7b": _qwen3(28, 2048, 6144, 16, True),
    "qwen3_4b": _qwen3(36, 2560, 9728, 32, True),
    "qwen3_8b": _qwen3(36, 4096, 12288, 32, False),
    "qwen3_14b": _qwen3(40, 5120, 17408, 40, False),
    "qwen3_32b": _qwen3(64, 5120, 25600, 64, False),
    "qwen2_5_0_5b": _qwen2_5(24, 896, 4864, 14, 2, 64, 151_936, True),
    "qwen2_5_1_5b": _qwen2_5(28, 1536, 8960, 12, 2, 128, 151_936, True),
    "qwen2_5_7b": _qwen2_5(28, 3584, 18944, 28, 4, 128, 152_064, False),
    "smollm2_135m": _smollm2(30, 576, 1536, 9, 3, 1e5),
    "smollm2_360m": _smollm2(32, 960, 2560, 15, 5, 1e5),
    "smollm2_1_7b": _smollm2(24, 2048, 8192, 32, 32, 1.3e5),
    "gemma3_270m": _gemma3(18, 640, 2048, 4, 1),
    "gemma3_1b": _gemma3(26, 1152, 6912, 4, 1),
    # No published weights: trained from nothing with the byte tokenizer, in tests and notebooks (0.8 M parameters).
    "tiny_qwen3": DecoderConfig(
        vocab_size=272, num_layers=4, embed_dim=128, mlp_dim=384, num_heads=4, num_kv_heads=2, head_dim=32,
        max_positions=1024, qk_norm=True,
    ),
}  # fmt: skip


def named(spec: str) -> DecoderConfig:
    """A size of NAMED, with some of its whole numbers replaced: `tiny_qwen3?num_layers=1&embed_dim=64`.

    Raises UserError: no size of that name, something that is no whole number of a decoder.
    """
    name, _, query = spec.partition("?")
    if name not in NAMED:
        raise UserError(f"no size of the name {name!r}; known are {', '.join(NAMED)}")
    whole = [field.name for field in dataclasses.fields(DecoderConfig) if field.type is int]
    changes = {}
    for item in filter(None, query.split("&")):
        field, _, value = item.partition("=")
        if field not in whole or not value.isdecimal() or int(value) < 1:
            raise UserError(f"{spec!r}: {item!r} is not of the form name=number, with a name of {', '.join(whole)}")
        changes[field] = int(value)
    return dataclasses.replace(NAMED[name], **changes)


HUB_IDS: dict[str, str] = {
    "qwen3_0_6b": "Qwen/Qwen3-0.6B",
    "qwen3_1_7b": "Qwen/Qwen3-1.7B",
    "qwen3_4b": "Qwen/Qwen3-4B",
    "qwen3_8b": "Qwen/Qwen3-8B",
    "qwen3_14b": "Qwen/Qwen3-14B",
    "qwen3_32b": "Qwen/Qwen3-32B",
    "qwen2_5_0_5b": "Qwen/Qwen2.5-0.5B-Instruct",
    "qwen2_5_1_5b": "Qwen/Qwen2.5-1.5B-Instruct",
    "qwen2_5_7b": "Qwen/Qwen2.5-7B-Instruct",
    "smollm2_135m": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "smollm2_360m": "HuggingFaceTB/SmolLM2-360M-Instruct",
    "smollm2_1_7b": "HuggingFaceTB/SmolLM2-1.7B-Instruct",
    "gemma3_270m": "google/gemma-3-270m-it",
    "gemma3_1b": "google/gemma-3-1b-it",
}
