"""GGUF files -> `DecoderConfig` and parameters, for the architectures llama, qwen2, qwen3 and gemma3.

Every quantisation that the `gguf` package dequantises is read; parameters are float32 (or `dtype`), tensor by tensor
into the stacked leaf. Three things differ from a Hugging Face checkpoint and are undone here: the query and key rows of
`llama` are interleaved for another form of the rotary embedding, Gemma's norm scales have 1 added, and Llama 3's rotary
scaling is stored as the factors it leads to.
"""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxalign.errors import UserError
from jaxalign.models import weights
from jaxalign.models.config import DecoderConfig
from jaxalign.models.gguf_file import GgufFile

SUPPORTED = ("llama", "qwen2", "qwen3", "gemma3")
_ROPE_FACTORS = "rope_freqs.weight"
# The file holds Llama 3's per-frequency factors only; these are the published settings that they may stand for.
_LLAMA3_SCALINGS = [("llama3", factor, 1.0, 4.0, 8192) for factor in (8.0, 32.0, 16.0, 4.0)]


def read_config(file: GgufFile) -> DecoderConfig:
    """The `DecoderConfig` of a GGUF file's metadata.

    Raises:
        UserError: the architecture is not one of `SUPPORTED`, or a key is missing or asks for something that the
            decoder does not compute.
    """
    arch = file.metadata.get("general.architecture")
    if arch not in SUPPORTED:
        raise UserError(f"{file.path}: architecture {arch!r} is not supported; supported are {', '.join(SUPPORTED)}")

    def get(key: str, default: Any = None) -> Any:
        value = file.metadata.get(f"{arch}.{key}", default)
        if value is None:
            raise UserError(f"{file.path}: the metadata lack {arch}.{key}")
        if isinstance(value, list):  # some writers give one number per layer
            if len(set(value)) != 1:
                raise UserError(f"{file.path}: {arch}.{key} differs between layers, which is not supported")
            value = value[0]
        return value

    if get("expert_count", 0):
        raise UserError(f"{file.path}: mixtures of experts are not supported")
    if "token_embd.weight" not in file.tensors:
        raise UserError(f"{file.path}: tensor 'token_embd.weight' is missing; the file holds no language model")
    width, heads, layers = get("embedding_length"), get("attention.head_count"), get("block_count")
    head_dim = get("attention.key_length", width // heads)
    if get("rope.dimension_count", head_dim) != head_dim:
        raise UserError(f"{file.path}: a rotary embedding of part of the head is not supported")
    gemma = arch == "gemma3"
    window = get("attention.sliding_window", 0) or None if gemma else None
    return DecoderConfig(
        # The embedding counts, not the key: it may have been padded.
        vocab_size=file.tensors["token_embd.weight"].shape[0],
        num_layers=layers,
        embed_dim=width,
        mlp_dim=get("feed_forward_length"),
        num_heads=heads,
        num_kv_heads=get("attention.head_count_kv", heads),
        head_dim=head_dim,
        max_positions=get("context_length"),
        rope_theta=_short(get("rope.freq_base", 1e6 if gemma else 1e4)),
        rope_local_theta=_short(get("rope.freq_base_swa", 1e4)) if window else None,
        rope_scaling=_rope_scaling(file, arch, head_dim, get("rope.freq_base", 1e4)),
        norm_epsilon=_short(get("attention.layer_norm_rms_epsilon")),
        norm_offset=1.0 if gemma else 0.0,
        tie_embeddings="output.weight" not in file.tensors,
        qkv_bias=arch == "qwen2",
        qk_norm=arch in ("qwen3", "gemma3"),
        post_norms=gemma,
        activation="gelu_tanh" if gemma else "silu",
        embed_scale=gemma,
        sliding_window=window,
        # Gemma 3 has five sliding layers to one global layer; only newer files say so.
        sliding_pattern=get("attention.sliding_window_pattern", 6) if window else None,
        # The 27B size (62 layers) scales by width / heads, the others by the head's own size.
        query_scale=(width / heads if layers == 62 else head_dim) ** -0.5 if gemma else None,
    )


def load_params(
    file: GgufFile, config: DecoderConfig | None = None, *, shardings: Any = None, dtype: Any = jnp.float32
) -> dict:
    """Dequantises the weights of a GGUF file into the parameter tree.

    Args:
        file: the open file.
        config: what `read_config(file)` gives, if it is at hand.
        shardings: a tree of shardings like the parameters, or a function from the abstract tree to one.
        dtype: of the parameters.

    Raises:
        UserError: a tensor is missing, unexpected or of another shape, or its quantisation cannot be read.
    """
    config = config or read_config(file)
    shapes = {name: tensor.shape for name, tensor in file.tensors.items() if name != _ROPE_FACTORS}
    weights.check_tensors(weights.file_tensors(config, "gguf"), shapes, str(file.path))
    interleaved = file.metadata.get("general.architecture") == "llama"

    def read(leaf: weights.Leaf, layer: int | None, index: weights.Index) -> np.ndarray:
        name = leaf.gguf.format(layer=layer)
        rows = index[-1] if leaf.transposed else index[0]
        if interleaved and leaf.path[-2] in ("query", "key"):
            order = half_split_rows(leaf.shape[-1] // config.head_dim, config.head_dim)
            values = file.read(name, order[rows])
        else:
            values = file.read(name, rows)
        if config.norm_offset and leaf.path[-1] == "scale":
            values = values - np.float32(config.norm_offset)
        if leaf.transposed:
            return values[:, index[0]].T
        return values[:, index[1]] if values.ndim == 2 else values

    return weights.assemble(weights.leaves(config), read, shardings=shardings, dtype=dtype)


def half_split_rows(heads: int, head_dim: int) -> np.ndarray:
    """Row numbers that turn interleaved rotary pairs (2i, 2i+1) into the half-split form (i, i + head_dim/2).

    `stored[half_split_rows(heads, head_dim)]` is the matrix as Hugging Face has it.
    """
    return np.arange(heads * head_dim).reshape(heads, head_dim // 2, 2).swapaxes(1, 2).reshape(-1)


def _short(value: float) -> float:
    """The decimal number that was rounded to the float32 of the file (1e-5, not 9.999999747e-06)."""
    return float(str(np.float32(value)))


def _rope_scaling(file: GgufFile, arch: str, head_dim: int, theta: float) -> tuple | None:
    kind = file.metadata.get(f"{arch}.rope.scaling.type", "none")
    if kind == "linear":
        return ("linear", _short(file.metadata[f"{arch}.rope.scaling.factor"]))
    if kind != "none":
        raise UserError(f"{file.path}: rope scaling {kind!r} is not supported; supported are 'linear' and Llama 3's")
    if _ROPE_FACTORS not in file.tensors:
        return None
    factors = file.read(_ROPE_FACTORS)
    for scaling in _LLAMA3_SCALINGS:
        if np.allclose(factors, llama3_factors(head_dim, theta, *scaling[1:]), rtol=1e-3):
            return scaling
    raise UserError(f"{file.path}: the factors in {_ROPE_FACTORS!r} are not those of a Llama 3 model")


def llama3_factors(head_dim: int, theta: float, factor: float, low: float, high: float, original: int) -> np.ndarray:
    """By what Llama 3 divides each of the head_dim/2 rotary frequencies: 1 for short wavelengths, `factor` for long."""
    wavelength = 2 * math.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    smooth = np.clip((original / wavelength - low) / (high - low), 0.0, 1.0)
    return 1.0 / ((1.0 - smooth) / factor + smooth)
