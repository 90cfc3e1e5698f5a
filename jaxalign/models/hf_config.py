"""Hugging Face's `config.json` -> `DecoderConfig`, and back.

Both spellings of the rotary embedding are read: `rope_theta` with `rope_scaling` (transformers 4) and
`rope_parameters` (transformers 5). What the decoder cannot compute is refused by name, never ignored.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxalign.errors import UserError
from jaxalign.models.config import DecoderConfig

# What a config.json may leave out, because transformers' own configuration class fills it in.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {"rms_norm_eps": 1e-6, "max_position_embeddings": 2048, "vocab_size": 32_000},
    "qwen2": {"rms_norm_eps": 1e-6, "max_position_embeddings": 32_768, "vocab_size": 151_936},
    "qwen3": {"rms_norm_eps": 1e-6, "max_position_embeddings": 32_768, "vocab_size": 151_936, "head_dim": 128},
    "gemma3_text": {
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 131_072,
        "vocab_size": 262_208,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "sliding_window": 4096,
        "rope_theta": 1e6,
        "rope_local_base_freq": 1e4,
        "query_pre_attn_scalar": 256,
        "tie_word_embeddings": True,
    },
}
SUPPORTED = tuple(_DEFAULTS)
_OFF = {  # key -> the values under which it changes nothing
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "attn_logit_softcapping": (None,),
    "final_logit_softcapping": (None,),
    "use_bidirectional_attention": (False, None),
    "partial_rotary_factor": (1, 1.0, None),
    "quantization_config": (None,),
}


def from_hugging_face(values: Mapping[str, Any], where: str = "config.json") -> DecoderConfig:
    """The `DecoderConfig` of a parsed `config.json`.

    Raises:
        UserError: `model_type` is not one of `SUPPORTED` (or gemma3 with a `text_config`), a value is missing, or
            one asks for something that the decoder does not compute.
    """
    model_type = values.get("model_type")
    if model_type == "gemma3" and "text_config" in values:
        values = {"model_type": "gemma3_text", **values["text_config"]}
        model_type = "gemma3_text"
    if model_type not in _DEFAULTS:
        raise UserError(
            f"{where}: model_type {model_type!r} is not supported; supported are {', '.join(SUPPORTED)} "
            "and gemma3 (its text part)"
        )
    for key, allowed in _OFF.items():
        if values.get(key, allowed[0]) not in allowed:
            raise UserError(f"{where}: {key}={values[key]!r} is not supported for model_type {model_type!r}")
    gemma = model_type == "gemma3_text"
    activation_key = "hidden_activation" if gemma else "hidden_act"
    wanted = "gelu_pytorch_tanh" if gemma else "silu"
    if values.get(activation_key, wanted) != wanted:
        raise UserError(f"{where}: {activation_key}={values[activation_key]!r} is not supported, only {wanted!r}")
    values = {**_DEFAULTS[model_type], **{key: value for key, value in values.items() if value is not None}}

    def need(key: str) -> Any:
        if key not in values:
            raise UserError(f"{where}: {key!r} is missing; the file must describe a {model_type} model")
        return values[key]

    heads, width = need("num_attention_heads"), need("hidden_size")
    theta, local_theta, scaling = _rope(values, where)
    window, pattern = _sliding(values, where)
    return DecoderConfig(
        vocab_size=need("vocab_size"),
        num_layers=need("num_hidden_layers"),
        embed_dim=width,
        mlp_dim=need("intermediate_size"),
        num_heads=heads,
        num_kv_heads=values.get("num_key_value_heads", heads),
        head_dim=values.get("head_dim", width // heads),
        max_positions=need("max_position_embeddings"),
        rope_theta=theta,
        rope_local_theta=local_theta if gemma and window is not None else None,
        rope_scaling=scaling,
        norm_epsilon=need("rms_norm_eps"),
        norm_offset=1.0 if gemma else 0.0,
        tie_embeddings=values.get("tie_word_embeddings", False),
        qkv_bias=model_type == "qwen2",
        qk_norm=model_type in ("qwen3", "gemma3_text"),
        post_norms=gemma,
        activation="gelu_tanh" if gemma else "silu",
        embed_scale=gemma,
        sliding_window=window,
        sliding_pattern=pattern,
        query_scale=need("query_pre_attn_scalar") ** -0.5 if gemma else None,
    )


def to_hugging_face(config: DecoderConfig) -> dict[str, Any]:
    """The `config.json` under which transformers and vLLM compute what `config` says.

    Raises:
        UserError: no supported architecture is described by `config`.
    """
    model_type = (
        "gemma3_text" if config.post_norms else "qwen3" if config.qk_norm else "qwen2" if config.qkv_bias else "llama"
    )
    values: dict[str, Any] = {
        "architectures": [
            {"gemma3_text": "Gemma3", "qwen3": "Qwen3", "qwen2": "Qwen2", "llama": "Llama"}[model_type] + "ForCausalLM"
        ],
        "model_type": model_type,
        "vocab_size": config.vocab_size,
        "num_hidden_layers": config.num_layers,
        "hidden_size": config.embed_dim,
        "intermediate_size": config.mlp_dim,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.norm_epsilon,
        "rope_theta": config.rope_theta,
        "rope_scaling": _scaling_out(config.rope_scaling),
        "tie_word_embeddings": config.tie_embeddings,
        "hidden_activation" if model_type == "gemma3_text" else "hidden_act": (
            "gelu_pytorch_tanh" if config.activation == "gelu_tanh" else "silu"
        ),
    }
    kinds = ["sliding_attention" if config.is_sliding(i) else "full_attention" for i in range(config.num_layers)]
    if model_type == "gemma3_text":
        scalar = config.attention_scale**-2
        values |= {
            "query_pre_attn_scalar": round(scalar) if abs(scalar - round(scalar)) < 1e-6 else scalar,
            "rope_local_base_freq": config.rope_local_theta or config.rope_theta,
            "sliding_window": config.sliding_window,
            "layer_types": kinds,
        }
        if config.sliding_pattern is not None:
            values["sliding_window_pattern"] = config.sliding_pattern
    elif model_type in ("qwen2", "qwen3"):
        slides = config.sliding_window is not None
        values |= {"use_sliding_window": slides, "sliding_window": config.sliding_window}
        if slides:
            values |= {"max_window_layers": 0, "layer_types": kinds}
    try:
        same = from_hugging_face(values) == _normal(config)
    except UserError:
        same = False
    if not same:
        raise UserError(
            f"this configuration is not one of a {model_type} model, so it cannot be written for transformers; "
            f"supported are {', '.join(SUPPORTED)}"
        )
    return values


def _normal(config: DecoderConfig) -> DecoderConfig:
    """`config` with the spellings that `from_hugging_face` would choose for the same computation."""
    kinds = [config.is_sliding(layer) for layer in range(config.num_layers)]
    changes: dict[str, Any] = {}
    if all(kinds):
        changes["sliding_pattern"] = None
    if not any(kinds):
        changes |= {"sliding_window": None, "sliding_pattern": None, "rope_local_theta": None}
    elif config.post_norms and config.rope_local_theta is None:
        changes["rope_local_theta"] = config.rope_theta
    if config.post_norms and config.query_scale is None:
        changes["query_scale"] = config.attention_scale
    return dataclasses.replace(config, **changes)


def _rope(values: Mapping[str, Any], where: str) -> tuple[float, float | None, tuple | None]:
    """(base of the global layers, base of the sliding layers, scaling of the global layers)."""
    new = values.get("rope_parameters")
    if new is None:
        scaling = _scaling(values.get("rope_scaling"), where)
        return float(values.get("rope_theta", 1e4)), values.get("rope_local_base_freq"), scaling
    full = new.get("full_attention", new)
    theta = full.get("rope_theta", values.get("rope_theta", 1e4))
    local = values.get("rope_local_base_freq")
    if "sliding_attention" in new:
        sliding = new["sliding_attention"]
        if _scaling(sliding, where) is not None:
            raise UserError(f"{where}: a scaled rotary embedding in sliding layers is not supported")
        local = sliding.get("rope_theta", local)
    return float(theta), local, _scaling(full, where)


def _scaling(values: Mapping[str, Any] | None, where: str) -> tuple | None:
    kind = (values or {}).get("rope_type", (values or {}).get("type", "default"))
    if not values or kind == "default":
        return None
    if float(values.get("partial_rotary_factor", 1.0)) != 1.0:
        raise UserError(f"{where}: partial_rotary_factor={values['partial_rotary_factor']} is not supported")
    keys = {
        "linear": ("factor",),
        "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    }.get(kind)
    if keys is None:
        raise UserError(f"{where}: rope scaling {kind!r} is not supported; supported are 'linear' and 'llama3'")
    for key in keys:
        if key not in values:
            raise UserError(f"{where}: rope scaling {kind!r} lacks {key!r}")
    numbers = [float(values[key]) for key in keys]
    return (kind, *numbers[:3], *(int(each) for each in numbers[3:]))


def _scaling_out(scaling: tuple | None) -> dict[str, Any] | None:
    if scaling is None:
        return None
    keys = ("rope_type", "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    return dict(zip(keys, scaling, strict=False))


def _sliding(values: Mapping[str, Any], where: str) -> tuple[int | None, int | None]:
    """(sliding window, every n-th layer is global)."""
    layers, window = values.get("num_hidden_layers", 0), values.get("sliding_window")
    gemma = values["model_type"] == "gemma3_text"
    if window is None or not (gemma or values.get("use_sliding_window", False)):
        return None, None
    pattern = values.get("sliding_window_pattern", values.get("_sliding_window_pattern", 6))
    if "layer_types" in values:
        is_global = [kind != "sliding_attention" for kind in values["layer_types"]]
    elif gemma:
        is_global = [(layer + 1) % pattern == 0 for layer in range(layers)]
    else:
        is_global = [layer < values.get("max_window_layers", 28) for layer in range(layers)]
    if all(is_global):
        return None, None
    if not any(is_global):
        return window, None
    every = is_global.index(True) + 1
    if is_global != [(layer + 1) % every == 0 for layer in range(layers)]:
        raise UserError(
            f"{where}: the sliding layers do not follow one period (every n-th layer global), which is all that is "
            "supported"
        )
    return window, every
