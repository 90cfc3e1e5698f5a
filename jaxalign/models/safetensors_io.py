"""Hugging Face folders (safetensors) -> parameters, straight into sharded arrays, and parameters -> folder.

Reading goes leaf by leaf and shard by shard through `safetensors`' slices: the host never holds more than one shard of
one leaf beside the arrays themselves (one leaf where no shardings are given).
"""

import contextlib
import json
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from jaxalign.errors import UserError
from jaxalign.models import weights
from jaxalign.models.config import DecoderConfig
from jaxalign.models.hf_config import from_hugging_face, to_hugging_face

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_FLOATS = ("F64", "F32", "F16", "BF16")


def read_config(folder: str | Path) -> DecoderConfig:
    """The model that a Hugging Face folder describes. Raises UserError where `config.json` is missing or unusable."""
    path = Path(folder) / "config.json"
    return from_hugging_face(read_json(path), str(path))


def load_params(
    folder: str | Path, config: DecoderConfig | None = None, *, shardings: Any = None, dtype: Any = jnp.float32
) -> dict:
    """Reads the weights of a Hugging Face folder into the parameter tree.

    Args:
        folder: with `config.json` and `model.safetensors`, or shards with their index.
        config: what `read_config(folder)` gives, if it is at hand.
        shardings: a tree of shardings like the parameters, or a function from the abstract tree to one.
        dtype: of the parameters; the files may be float64, float32, float16 or bfloat16.

    Raises:
        UserError: a file is missing, truncated or not safetensors; a tensor is missing, unexpected, of another shape
            or quantised. The message names the file and the tensor.
    """
    folder = Path(folder)
    config = config or read_config(folder)
    with open_tensors(folder, lambda names: _wanted(names, config)) as (handles, shapes):
        weights.check_tensors(weights.file_tensors(config, "hugging_face"), shapes, str(folder))

        def read(leaf: weights.Leaf, layer: int | None, index: weights.Index) -> np.ndarray:
            file, stored = handles[leaf.hugging_face.format(layer=layer)]
            view = file.get_slice(stored)
            return view[index[::-1]].T if leaf.transposed else view[index]

        return weights.assemble(weights.leaves(config), read, shardings=shardings, dtype=dtype)


@contextlib.contextmanager
def open_tensors(
    folder: Path, wanted: Callable[[list[str]], Iterable[tuple[str, str]]]
) -> Iterator[tuple[dict[str, tuple[Any, str]], dict[str, tuple[int, ...]]]]:
    """The tensors of a folder while its files are open: name -> (file, name there), and name -> shape.

    Args:
        folder: with `model.safetensors`, or shards with their index.
        wanted: from the names in a file to pairs (name there, name in our table) of the tensors that matter.

    Raises:
        UserError: a file is missing, truncated or not safetensors; a tensor is quantised.
    """
    with contextlib.ExitStack() as stack:
        handles, shapes = {}, {}
        for path in weight_files(folder):
            try:
                file = stack.enter_context(safe_open(path, framework="numpy"))
            except (SafetensorError, OSError) as error:
                raise UserError(
                    f"{path} is truncated or is not a safetensors file ({error}); copy or download it again"
                ) from error
            for stored, name in wanted(file.keys()):
                view = file.get_slice(stored)
                if view.get_dtype() not in _FLOATS:
                    raise UserError(
                        f"{path}: tensor {stored!r} has type {view.get_dtype()}; quantised safetensors are not "
                        "supported, take the unquantised checkpoint or a GGUF file"
                    )
                handles[name] = (file, stored)
                shapes[name] = tuple(view.get_shape())
        yield handles, shapes


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder, each checked to be there."""
    if (folder / INDEX).exists():
        names = sorted(set(read_json(folder / INDEX)["weight_map"].values()))
    else:
        names = [SINGLE]
    for name in names:
        if not (folder / name).exists():
            found = sorted(path.name for path in folder.iterdir() if path.suffix in (".bin", ".gguf", ".safetensors"))
            beside = f" (found: {', '.join(found[:4])})" if found else ""
            raise UserError(
                f"the weights file {folder / name} is missing{beside}; copy or download it, or give another model.path"
            )
    return [folder / name for name in names]


def save_folder(
    folder: str | Path,
    config: DecoderConfig,
    params: dict,
    *,
    dtype: Any = jnp.bfloat16,
    extra: dict[str, Any] | None = None,
    max_file_bytes: int = 4 * 2**30,
) -> None:
    """Writes what transformers and vLLM load: `config.json` and one or several safetensors files.

    Args:
        folder: made if it is not there; files of the same names are replaced.
        config: must be expressible as one of the supported Hugging Face architectures.
        params: the parameter tree; fully addressable from this process.
        dtype: stored type of every tensor.
        extra: more keys of `config.json` (`bos_token_id`, `eos_token_id`, `pad_token_id`).
        max_file_bytes: a file is closed before it grows beyond this; the host holds one file's tensors at a time.
    """
    folder, dtype = Path(folder), np.dtype(dtype)
    values = to_hugging_face(config) | {"torch_dtype": dtype.name} | (extra or {})
    groups: list[list[tuple[weights.Leaf, int | None]]] = [[]]
    size = total = 0
    for leaf in weights.leaves(config):
        array = weights.get(params, leaf.path)
        if tuple(array.shape) != leaf.shape:
            raise UserError(f"parameter {'/'.join(leaf.path)} has shape {array.shape}, expected {leaf.shape}")
        if isinstance(array, jax.Array) and not array.is_fully_addressable:
            raise UserError(f"parameter {'/'.join(leaf.path)} is spread over several processes; gather it first")
        for layer in leaf.layers():
            bytes_ = math.prod(leaf.layer_shape) * dtype.itemsize
            if size + bytes_ > max_file_bytes and groups[-1]:
                groups.append([])
                size = 0
            groups[-1].append((leaf, layer))
            size += bytes_
            total += bytes_
    folder.mkdir(parents=True, exist_ok=True)
    weight_map = {}
    for number, group in enumerate(groups, start=1):
        name = SINGLE if len(groups) == 1 else f"model-{number:05}-of-{len(groups):05}.safetensors"
        tensors = {}
        for leaf, layer in group:
            array = weights.get(params, leaf.path)
            host = np.asarray(array if layer is None else array[layer]).astype(dtype)
            tensors[leaf.hugging_face.format(layer=layer)] = np.ascontiguousarray(host.T if leaf.transposed else host)
        save_file(tensors, folder / name, metadata={"format": "pt"})  # transformers refuses files without it
        weight_map |= dict.fromkeys(tensors, name)
    (folder / INDEX).unlink(missing_ok=True)
    if len(groups) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n")
    (folder / "config.json").write_text(json.dumps(values, indent=1) + "\n")


def read_json(path: Path) -> Any:
    """A JSON file, or one clear sentence."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing; a Hugging Face model folder holds it beside the weights") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid JSON ({error}); copy or download it again") from error


def _wanted(names: list[str], config: DecoderConfig) -> Iterator[tuple[str, str]]:
    """(name in the file, name in the table) of the tensors that matter."""
    for name in names:
        # Gemma 3 with vision keeps its text part under a prefix; the image tower is not ours.
        plain = name.removeprefix("language_model.").replace("model.language_model.", "model.", 1)
        if config.post_norms and plain.removeprefix("model.").startswith(("vision_tower.", "multi_modal_projector.")):
            continue
        if plain.endswith("rotary_emb.inv_freq"):  # a constant that old checkpoints carry
            continue
        if plain == "lm_head.weight" and config.tie_embeddings:  # the embedding once more
            continue
        yield name, plain
