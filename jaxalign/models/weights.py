"""The parameter tree of a decoder beside the tensor names of the file formats, and how leaves are placed.

One table, `leaves`, says for every leaf of the parameter tree its shape and what it is called in a Hugging Face
checkpoint and in a GGUF file. Both readers and the writer walk this table; none of them knows an architecture.

Kernels are [in, out] here and [out, in] in the files; the layers of the files are stacked on a leading axis.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxalign.errors import UserError
from jaxalign.models.config import DecoderConfig

Index = tuple[slice, ...]
Reader = Callable[["Leaf", int | None, Index], np.ndarray]


class Leaf(NamedTuple):
    """One leaf of the parameter tree."""

    path: tuple[str, ...]
    shape: tuple[int, ...]  # with the leading layer axis where `stacked`
    hugging_face: str  # tensor name there; `{layer}` stands for the layer's number
    gguf: str
    stacked: bool

    @property
    def layer_shape(self) -> tuple[int, ...]:
        """Shape of one layer's part: `shape` without the layer axis."""
        return self.shape[1:] if self.stacked else self.shape

    @property
    def transposed(self) -> bool:
        """Whether the files hold the transpose: every kernel but the head's, which is [V, D] in all of them."""
        return self.stacked and self.path[-1] == "kernel"

    @property
    def file_shape(self) -> tuple[int, ...]:
        """Shape of one tensor in a file."""
        return self.layer_shape[::-1] if self.transposed else self.layer_shape

    def layers(self) -> Iterable[int | None]:
        """The numbers of the layers of this leaf, or a single None."""
        return range(self.shape[0]) if self.stacked else (None,)


def leaves(config: DecoderConfig) -> list[Leaf]:
    """Every leaf of the parameter tree of `config`, in a fixed order."""
    width, queries = config.embed_dim, config.num_heads * config.head_dim
    keys = config.num_kv_heads * config.head_dim
    table = (config.vocab_size, width)
    found = [
        Leaf(("embed", "embedding"), table, "model.embed_tokens.weight", "token_embd.weight", False),
        Leaf(("final_norm", "scale"), (width,), "model.norm.weight", "output_norm.weight", False),
    ]
    if not config.tie_embeddings:
        found.append(Leaf(("head", "kernel"), table, "lm_head.weight", "output.weight", False))

    def add(path: str, shape: tuple[int, ...], hugging_face: str, gguf: str) -> None:
        kind = "bias" if path.endswith("bias") else "weight"
        found.append(
            Leaf(
                ("layers", *path.split("/")),
                (config.num_layers, *shape),
                f"model.layers.{{layer}}.{hugging_face}.{kind}",
                f"blk.{{layer}}.{gguf}.{kind}",
                True,
            )
        )

    add("attention_norm/scale", (width,), "input_layernorm", "attn_norm")
    if config.post_norms:
        # Hugging Face calls Gemma's norm *after* attention what Llama calls its norm before the MLP.
        add("post_attention_norm/scale", (width,), "post_attention_layernorm", "post_attention_norm")
        add("mlp_norm/scale", (width,), "pre_feedforward_layernorm", "ffn_norm")
        add("post_mlp_norm/scale", (width,), "post_feedforward_layernorm", "post_ffw_norm")
    else:
        add("mlp_norm/scale", (width,), "post_attention_layernorm", "ffn_norm")
    for name, short, size in (("query", "q", queries), ("key", "k", keys), ("value", "v", keys)):
        add(f"attention/{name}/kernel", (width, size), f"self_attn.{short}_proj", f"attn_{short}")
        if config.qkv_bias:
            add(f"attention/{name}/bias", (size,), f"self_attn.{short}_proj", f"attn_{short}")
        if config.qk_norm and name != "value":
            add(f"attention/{name}_norm/scale", (config.head_dim,), f"self_attn.{short}_norm", f"attn_{short}_norm")
    add("attention/output/kernel", (queries, width), "self_attn.o_proj", "attn_output")
    add("mlp/gate/kernel", (width, config.mlp_dim), "mlp.gate_proj", "ffn_gate")
    add("mlp/up/kernel", (width, config.mlp_dim), "mlp.up_proj", "ffn_up")
    add("mlp/down/kernel", (config.mlp_dim, width), "mlp.down_proj", "ffn_down")
    return found


def file_tensors(config: DecoderConfig, kind: str) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that a file must hold; `kind` is "hugging_face" or "gguf"."""
    return {
        getattr(leaf, kind).format(layer=layer): leaf.file_shape for leaf in leaves(config) for layer in leaf.layers()
    }


def check_tensors(expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]], where: str) -> None:
    """Refuses a checkpoint whose tensors are not those that the configuration calls for, before anything is read.

    Raises:
        UserError: a tensor is missing, is not expected, or has another shape; the message names it.
    """
    missing = [name for name in expected if name not in found]
    extra = [name for name in found if name not in expected]
    if missing:
        beside = f" ({_some(extra)} not expected)" if extra else ""
        raise UserError(f"{where}: {_some(missing)} missing{beside}; the weights do not belong to this configuration")
    if extra:
        raise UserError(f"{where}: {_some(extra)} not expected; the weights do not belong to this configuration")
    for name, shape in expected.items():
        if tuple(found[name]) != shape:
            raise UserError(
                f"{where}: tensor {name!r} has shape {_shape(found[name])}, but the configuration "
                f"calls for {_shape(shape)}; the weights do not belong to this configuration"
            )


def abstract_params(config: DecoderConfig, dtype: Any = np.float32) -> dict:
    """The parameter tree as `jax.ShapeDtypeStruct`s."""
    return _abstract(leaves(config), dtype)


def _abstract(found: Sequence[Any], dtype: Any) -> dict:
    return _nest((leaf.path, jax.ShapeDtypeStruct(leaf.shape, np.dtype(dtype))) for leaf in found)


def assemble(found: Sequence[Any], read: Reader, *, shardings: Any = None, dtype: Any = np.float32) -> dict:
    """Builds the parameter tree leaf by leaf, each straight into its place.

    Host memory beyond the result: one leaf without `shardings`, one shard of one leaf with them. Every process reads
    only the slices that its own devices hold.

    Args:
        found: every leaf: a `Leaf`, or what has its `path`, `shape` and `stacked`.
        read: (leaf, layer or None, index) -> the part `index` of that layer's tensor, in the layout of the tree
            (kernels [in, out]); any float dtype.
        shardings: a tree like the parameters of `jax.sharding.Sharding`, or a function from the tree of
            `jax.ShapeDtypeStruct` to it; None puts whole leaves on the default device.
        dtype: of the result.
    """
    if callable(shardings):
        shardings = shardings(_abstract(found, dtype))
    return _nest(
        (leaf.path, _place(leaf, read, get(shardings, leaf.path) if shardings is not None else None, np.dtype(dtype)))
        for leaf in found
    )


def get(tree: Mapping, path: tuple[str, ...]) -> Any:
    """The leaf of a nested dict at `path`."""
    for name in path:
        tree = tree[name]
    return tree


def _place(leaf: Leaf, read: Reader, sharding: Any, dtype: np.dtype) -> jax.Array:
    def cast(part: np.ndarray) -> np.ndarray:
        # Before the transposing copy and in the order of memory: casting bfloat16 with strides is slow.
        return part.astype(dtype, order="K", copy=False)

    def block(index: Index) -> np.ndarray:
        out = np.empty([len(range(*part.indices(size))) for part, size in zip(index, leaf.shape, strict=True)], dtype)
        if leaf.stacked:
            for row, layer in enumerate(range(*index[0].indices(leaf.shape[0]))):
                out[row] = cast(read(leaf, layer, index[1:]))
        else:
            out[...] = cast(read(leaf, None, index))
        return out

    # may_alias=False: an array that shares the host's buffer could not be donated to a train step.
    if sharding is None:
        return jax.device_put(block((slice(None),) * len(leaf.shape)), may_alias=False)
    devices = sharding.addressable_devices_indices_map(leaf.shape)
    by_block: dict[tuple, list] = {}
    for device, index in devices.items():
        bounds = tuple(part.indices(size)[:2] for part, size in zip(index, leaf.shape, strict=True))
        by_block.setdefault(bounds, []).append(device)
    shards = {}
    for bounds, holders in by_block.items():
        host = block(tuple(slice(*pair) for pair in bounds))
        for device in holders:
            shards[device] = jax.device_put(host, device, may_alias=False)
        # The copy must be over before the next block is read, else the host holds several of them.
        jax.block_until_ready([shards[device] for device in holders])
    return jax.make_array_from_single_device_arrays(leaf.shape, sharding, [shards[device] for device in devices])


def _nest(items: Iterable[tuple[tuple[str, ...], Any]]) -> dict:
    tree: dict = {}
    for path, value in items:
        node = tree
        for name in path[:-1]:
            node = node.setdefault(name, {})
        node[path[-1]] = value
    return tree


def _some(names: list[str], limit: int = 4) -> str:
    shown = ", ".join(repr(name) for name in itertools.islice(names, limit))
    count = f"{len(names)} tensors" if len(names) > 1 else "tensor"
    verb = "are" if len(names) > 1 else "is"
    return f"{count} {shown}{', ...' if len(names) > limit else ''} {verb}"


def _shape(shape: Iterable[int]) -> str:
    return "[" + ", ".join(str(int(size)) for size in shape) + "]"
