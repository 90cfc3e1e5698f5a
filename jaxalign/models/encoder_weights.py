"""The parameter trees of encoders beside the tensor names of Hugging Face checkpoints, and the reader.

One function per architecture lists every leaf: its path and shape here, its name and shape there, and how to get from
there to here. Kernels are [in, out] here and [out, in] there; the layers are stacked on a leading axis.
"""

import functools
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxalign.models import safetensors_io, weights
from jaxalign.models.dual_encoder import DualEncoder
from jaxalign.models.encoder_layers import StackConfig
from jaxalign.models.image_encoder import ImageEncoder, ImageEncoderConfig
from jaxalign.models.text_encoder import TextEncoder, TextEncoderConfig


class EncoderLeaf(NamedTuple):
    """One leaf of the parameter tree."""

    path: tuple[str, ...]
    shape: tuple[int, ...]  # with the leading layer axis where `stacked`
    hugging_face: str  # tensor name there; `{layer}` stands for the layer's number
    file_shape: tuple[int, ...]  # of one tensor there
    convert: Callable[[np.ndarray], np.ndarray] | None  # from that tensor to the leaf (of one layer); None: as it is
    stacked: bool

    def layers(self) -> Iterable[int | None]:
        """The numbers of the layers of this leaf, or a single None."""
        return range(self.shape[0]) if self.stacked else (None,)


# Names of a layer's parts, behind the prefix of the layer.
_BERT_LAYER = {
    "attention/query": "attention.self.query", "attention/key": "attention.self.key",
    "attention/value": "attention.self.value", "attention/output": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm", "mlp/up": "intermediate.dense", "mlp/down": "output.dense",
    "mlp_norm": "output.LayerNorm",
}  # fmt: skip
_VIT_LAYER = {
    "attention/query": "attention.attention.query", "attention/key": "attention.attention.key",
    "attention/value": "attention.attention.value", "attention/output": "attention.output.dense",
    "attention_norm": "layernorm_before", "mlp/up": "intermediate.dense", "mlp/down": "output.dense",
    "mlp_norm": "layernorm_after",
}  # fmt: skip
_CLIP_LAYER = {
    "attention/query": "self_attn.q_proj", "attention/key": "self_attn.k_proj", "attention/value": "self_attn.v_proj",
    "attention/output": "self_attn.out_proj", "attention_norm": "layer_norm1", "mlp/up": "mlp.fc1",
    "mlp/down": "mlp.fc2", "mlp_norm": "layer_norm2",
}  # fmt: skip


class _Leaves(list):
    """A list of EncoderLeaf that grows by the modules they belong to."""

    def add(self, path, shape, name, *, file_shape=None, convert=None, layers=None):
        stacked = layers is not None
        full = (layers, *shape) if stacked else shape
        file_shape = shape if file_shape is None else file_shape
        self.append(EncoderLeaf(tuple(path.split("/")), full, name, file_shape, convert, stacked))

    def reshaped(self, path, shape, name, file_shape):
        """The same numbers in another shape: axes of length 1 that the file has and the tree has not."""
        self.add(path, shape, name, file_shape=file_shape, convert=functools.partial(_reshape, shape=shape))

    def linear(self, path, shape, name, *, bias=True, layers=None):
        self.add(f"{path}/kernel", shape, f"{name}.weight", file_shape=shape[::-1], convert=np.transpose, layers=layers)
        if bias:
            self.add(f"{path}/bias", shape[1:], f"{name}.bias", layers=layers)

    def norm(self, path, dim, name, *, layers=None):
        self.add(f"{path}/scale", (dim,), f"{name}.weight", layers=layers)
        self.add(f"{path}/bias", (dim,), f"{name}.bias", layers=layers)

    def blocks(self, config: StackConfig, prefix: str, names: dict[str, str]):
        dim, wide = config.embed_dim, config.mlp_dim
        shapes = {"mlp/up": (dim, wide), "mlp/down": (wide, dim)}
        for part, name in names.items():
            path, name = f"layers/{part}", f"{prefix}.{{layer}}.{name}"
            if part.endswith("norm"):
                self.norm(path, dim, name, layers=config.num_layers)
            else:
                self.linear(path, shapes.get(part, (dim, dim)), name, layers=config.num_layers)

    def patches(self, config: ImageEncoderConfig, name: str):
        size, channels, dim = config.patch_size, config.channels, config.embed_dim
        self.add(
            "embed/patches/kernel", (size * size * channels, dim), f"{name}.weight",
            file_shape=(dim, channels, size, size), convert=_patch_kernel,
        )  # fmt: skip
        if config.patch_bias:
            self.add("embed/patches/bias", (dim,), f"{name}.bias")

    def under(self, tower: str, leaves: Iterable[EncoderLeaf]):
        self.extend(leaf._replace(path=(tower, *leaf.path)) for leaf in leaves)


def _reshape(tensor, shape):
    return tensor.reshape(shape)


def _patch_kernel(tensor):
    """A convolution's [D, C, P, P] as the [P * P * C, D] kernel of flattened patches."""
    return tensor.transpose(2, 3, 1, 0).reshape(-1, tensor.shape[0])


def _third(tensor, part):
    """Query, key or value of torch's joint projection, as a kernel or bias."""
    size = tensor.shape[0] // 3
    return tensor[part * size : (part + 1) * size].T


def bert_leaves(config: TextEncoderConfig) -> list[EncoderLeaf]:
    found, dim = _Leaves(), config.embed_dim
    found.add("embed/tokens", (config.vocab_size, dim), "embeddings.word_embeddings.weight")
    found.add("embed/positions", (config.max_positions, dim), "embeddings.position_embeddings.weight")
    found.add("embed/types", (config.token_types, dim), "embeddings.token_type_embeddings.weight")
    found.norm("embed/norm", dim, "embeddings.LayerNorm")
    found.blocks(config, "encoder.layer", _BERT_LAYER)
    return found


def vit_leaves(config: ImageEncoderConfig) -> list[EncoderLeaf]:
    found, dim = _Leaves(), config.embed_dim
    found.patches(config, "embeddings.patch_embeddings.projection")
    found.reshaped("embed/class_token", (dim,), "embeddings.cls_token", (1, 1, dim))
    positions = config.positions
    found.reshaped("embed/positions", (positions, dim), "embeddings.position_embeddings", (1, positions, dim))
    found.blocks(config, "encoder.layer", _VIT_LAYER)
    found.norm("final_norm", dim, "layernorm")
    return found


def _clip_image(config: ImageEncoderConfig) -> _Leaves:
    """The image tower of CLIP and of SigLIP: what differs follows from the configuration."""
    found, dim = _Leaves(), config.embed_dim
    found.patches(config, "vision_model.embeddings.patch_embedding")
    if config.pooling == "cls":
        found.add("embed/class_token", (dim,), "vision_model.embeddings.class_embedding")
    found.add("embed/positions", (config.positions, dim), "vision_model.embeddings.position_embedding.weight")
    if config.embed_norm:
        found.norm("embed/norm", dim, "vision_model.pre_layrnorm")  # the published spelling
    found.blocks(config, "vision_model.encoder.layers", _CLIP_LAYER)
    found.norm("final_norm", dim, "vision_model.post_layernorm")
    if config.pooling == "map":
        head = "vision_model.head"
        found.reshaped("pool/probe", (dim,), f"{head}.probe", (1, 1, dim))
        for part, name in enumerate(("query", "key", "value")):
            for leaf, shape, there in (("kernel", (dim, dim), "weight"), ("bias", (dim,), "bias")):
                found.add(
                    f"pool/attention/{name}/{leaf}", shape, f"{head}.attention.in_proj_{there}",
                    file_shape=(3 * dim, *shape[1:]), convert=functools.partial(_third, part=part),
                )  # fmt: skip
        found.linear("pool/attention/output", (dim, dim), f"{head}.attention.out_proj")
        found.norm("pool/norm", dim, f"{head}.layernorm")
        found.linear("pool/mlp/up", (dim, config.mlp_dim), f"{head}.mlp.fc1")
        found.linear("pool/mlp/down", (config.mlp_dim, dim), f"{head}.mlp.fc2")
    if config.projection_dim is not None:
        found.linear("projection", (dim, config.projection_dim), "visual_projection", bias=False)
    return found


def _clip_text(config: TextEncoderConfig, projection: str) -> _Leaves:
    found, dim = _Leaves(), config.embed_dim
    found.add("embed/tokens", (config.vocab_size, dim), "text_model.embeddings.token_embedding.weight")
    found.add("embed/positions", (config.max_positions, dim), "text_model.embeddings.position_embedding.weight")
    found.blocks(config, "text_model.encoder.layers", _CLIP_LAYER)
    found.norm("final_norm", dim, "text_model.final_layer_norm")
    found.linear("projection", (dim, config.projection_dim), projection, bias=config.projection_bias)
    return found


def dual_leaves(image: ImageEncoderConfig, text: TextEncoderConfig, *, siglip: bool) -> list[EncoderLeaf]:
    found = _Leaves()
    found.under("image", _clip_image(image))
    found.under("text", _clip_text(text, "text_model.head" if siglip else "text_projection"))
    if siglip:
        found.reshaped("log_scale", (), "logit_scale", (1,))
        found.reshaped("bias", (), "logit_bias", (1,))
    else:
        found.add("log_scale", (), "logit_scale")
    return found


# In the files of transformers 5 a ViT's layers have other names than in those that came before.
_VIT_RENAMED = (
    (r"^layers\.", "encoder.layer."),
    (r"attention\.([qkv])_proj", lambda m: f"attention.attention.{dict(q='query', k='key', v='value')[m[1]]}"),
    (r"attention\.o_proj", "attention.output.dense"),
    (r"mlp\.fc1", "intermediate.dense"),
    (r"mlp\.fc2", "output.dense"),
)
# Heads of other tasks, and constants that old checkpoints carry.
_NOT_OURS = ("pooler.", "cls.", "classifier.", "embeddings.mask_token")


def _wanted(names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """(name in the file, name in the table) of the tensors that matter."""
    for name in names:
        plain = re.sub(r"^(bert|vit)\.", "", name)
        if plain.startswith(_NOT_OURS) or plain.endswith("position_ids"):
            continue
        if not plain.startswith(("text_model.", "vision_model.")):  # there `mlp.fc1` is the published name
            for pattern, replacement in _VIT_RENAMED:
                plain = re.sub(pattern, replacement, plain)
        yield name, plain


def encoder_leaves(encoder: TextEncoder | ImageEncoder | DualEncoder) -> list[EncoderLeaf]:
    """Every leaf of the parameter tree of an encoder that Hugging Face has too."""
    if isinstance(encoder, TextEncoder):
        return bert_leaves(encoder.config)
    if isinstance(encoder, ImageEncoder):
        return vit_leaves(encoder.config)
    return dual_leaves(encoder.image.config, encoder.text.config, siglip=encoder.initial_bias is not None)


def load_params(
    folder: str | Path,
    encoder: TextEncoder | ImageEncoder | DualEncoder,
    *,
    shardings: Any = None,
    dtype: Any = jnp.float32,
) -> dict:
    """Reads the weights of a Hugging Face folder into the parameter tree of `encoder`.

    Args:
        folder: with `model.safetensors`, or shards with their index.
        encoder: what `encoders.open_encoder(folder)` gives.
        shardings: a tree of shardings like the parameters, or a function from the abstract tree to one.
        dtype: of the parameters.

    Raises:
        UserError: as `safetensors_io.load_params`.
    """
    found = encoder_leaves(encoder)
    expected = {leaf.hugging_face.format(layer=layer): leaf.file_shape for leaf in found for layer in leaf.layers()}
    with safetensors_io.open_tensors(Path(folder), _wanted) as (handles, shapes):
        weights.check_tensors(expected, shapes, str(folder))

        def read(leaf: EncoderLeaf, layer: int | None, index: weights.Index) -> np.ndarray:
            file, stored = handles[leaf.hugging_face.format(layer=layer)]
            if leaf.convert is None and leaf.file_shape:
                return file.get_slice(stored)[index]
            tensor = file.get_tensor(stored)
            return np.asarray((tensor if leaf.convert is None else leaf.convert(tensor))[index])

        return weights.assemble(found, read, shardings=shardings, dtype=dtype)
