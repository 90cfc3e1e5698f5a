"""Hugging Face's `config.json` -> an encoder. What the encoders do not compute is refused by name, never ignored."""

from collections.abc import Mapping
from typing import Any

from jaxalign.errors import UserError
from jaxalign.models.dual_encoder import DualEncoder
from jaxalign.models.image_encoder import ImageEncoder, ImageEncoderConfig
from jaxalign.models.text_encoder import TextEncoder, TextEncoderConfig

SUPPORTED = ("bert", "vit", "clip", "siglip")
_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
}

# What a config.json may leave out, because transformers' own configuration class fills it in.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "bert": {
        "vocab_size": 30_522, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
        "intermediate_size": 3072, "hidden_act": "gelu", "max_position_embeddings": 512, "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
    },
    "vit": {
        "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
        "hidden_act": "gelu", "layer_norm_eps": 1e-12, "image_size": 224, "patch_size": 16, "num_channels": 3,
    },
    "clip_text": {
        "vocab_size": 49_408, "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12,
        "num_attention_heads": 8, "max_position_embeddings": 77, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
    },
    "clip_vision": {
        "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
        "num_channels": 3, "image_size": 224, "patch_size": 32, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
    },
    "siglip_text": {
        "vocab_size": 32_000, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
        "num_attention_heads": 12, "max_position_embeddings": 64, "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": 1e-6, "pad_token_id": 1,
    },
    "siglip_vision": {
        "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
        "num_channels": 3, "image_size": 224, "patch_size": 16, "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": 1e-6,
    },
}  # fmt: skip
_OFF = {  # key -> the values under which it changes nothing
    "position_embedding_type": ("absolute", None),
    "is_decoder": (False, None),
    "add_cross_attention": (False, None),
    "qkv_bias": (True, None),
    "vision_use_head": (True, None),
    "quantization_config": (None,),
}


def from_hugging_face(
    values: Mapping[str, Any], where: str = "config.json", *, pooling: str | None = None, **options: Any
) -> TextEncoder | ImageEncoder | DualEncoder:
    """The encoder of a parsed `config.json`.

    Args:
        values: the parsed file.
        where: the file, for error messages.
        pooling: of a BERT, which leaves it open: "mean" (the default), "cls" or "last".
        options: fields of the encoders: `compute_dtype`, `remat`, `dropout`, ...

    Raises:
        UserError: `model_type` is not one of `SUPPORTED`, a value asks for something that the encoders do not compute,
            a pooling for a model that has its own.
    """
    model_type = values.get("model_type")
    if model_type not in SUPPORTED:
        raise UserError(f"{where}: model_type {model_type!r} is not an encoder of {', '.join(SUPPORTED)}")
    if model_type == "bert":
        return TextEncoder(_bert(values, where, pooling or "mean"), **options)
    if pooling is not None:
        raise UserError(f"{where}: a {model_type} model has a pooling of its own, {pooling!r} cannot be chosen")
    if model_type == "vit":
        return ImageEncoder(_vit(values, where), **options)
    siglip = model_type == "siglip"
    text, image = _text(values, where, siglip), _image(values, where, siglip)
    # Scale and bias are read from the weights; these are the starting points for training anew.
    initial = dict(initial_scale=10.0, initial_bias=-10.0) if siglip else {}
    return DualEncoder(image=ImageEncoder(image, **options), text=TextEncoder(text, **options), **initial)


def _shared(kind: str, values: Mapping[str, Any], where: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """(values with their defaults, the fields of `StackConfig` in them)."""
    for key, allowed in _OFF.items():
        if values.get(key, allowed[0]) not in allowed:
            raise UserError(f"{where}: {key}={values[key]!r} is not supported")
    values = {**_DEFAULTS[kind], **{key: value for key, value in values.items() if value is not None}}
    if values["hidden_act"] not in _ACTIVATIONS:
        raise UserError(
            f"{where}: hidden_act={values['hidden_act']!r} is not supported, only {', '.join(_ACTIVATIONS)}"
        )
    return values, dict(
        num_layers=values["num_hidden_layers"],
        embed_dim=values["hidden_size"],
        mlp_dim=values["intermediate_size"],
        num_heads=values["num_attention_heads"],
        activation=_ACTIVATIONS[values["hidden_act"]],
        norm_epsilon=values["layer_norm_eps"],
    )


def _bert(values, where, pooling) -> TextEncoderConfig:
    values, shared = _shared("bert", values, where)
    return TextEncoderConfig(
        **shared,
        vocab_size=values["vocab_size"],
        max_positions=values["max_position_embeddings"],
        token_types=values["type_vocab_size"],
        pre_norm=False,
        embed_norm=True,
        pooling=pooling,
    )


def _square(values, key, where) -> int:
    """A size that may be written as one number or as two equal ones."""
    sizes = values[key] if isinstance(values[key], list | tuple) else [values[key]]
    if len(set(sizes)) != 1:
        raise UserError(f"{where}: {key}={values[key]} is not square, which is all that is supported")
    return sizes[0]


def _pixels(values, where) -> dict[str, int]:
    return dict(
        image_size=_square(values, "image_size", where),
        patch_size=_square(values, "patch_size", where),
        channels=values["num_channels"],
    )


def _vit(values, where) -> ImageEncoderConfig:
    values, shared = _shared("vit", values, where)
    return ImageEncoderConfig(**shared, **_pixels(values, where), pooling="cls")


def _image(whole, where, siglip: bool) -> ImageEncoderConfig:
    values, shared = _shared("siglip_vision" if siglip else "clip_vision", whole.get("vision_config") or {}, where)
    shared |= _pixels(values, where)
    if siglip:
        return ImageEncoderConfig(**shared, pooling="map")
    projection = whole.get("projection_dim", 512)
    return ImageEncoderConfig(**shared, pooling="cls", patch_bias=False, embed_norm=True, projection_dim=projection)


def _text(whole, where, siglip: bool) -> TextEncoderConfig:
    values, shared = _shared("siglip_text" if siglip else "clip_text", whole.get("text_config") or {}, where)
    shared |= dict(vocab_size=values["vocab_size"], max_positions=values["max_position_embeddings"])
    shared |= dict(final_norm=True, pooling="last")
    if siglip:
        projection = values.get("projection_size", values["hidden_size"])
        fill = values["pad_token_id"]
        return TextEncoderConfig(**shared, projection_dim=projection, projection_bias=True, fill_id=fill)
    # The last token of a text is its end token; what a text's embedding is read from in CLIP.
    return TextEncoderConfig(**shared, causal=True, projection_dim=whole.get("projection_dim", 512))
