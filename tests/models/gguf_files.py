"""Small GGUF files, made from a Hugging Face folder as llama.cpp's `convert_hf_to_gguf.py` does it."""

import gguf
import numpy as np
from gguf.quants import quantize
from safetensors.numpy import load_file

from jaxalign.models.hf_config import from_hugging_face
from jaxalign.models.safetensors_io import SINGLE, read_json

ARCHITECTURES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma3_text": "gemma3"}


def interleave(rows, heads):
    """llama.cpp's own form of the rotary embedding wants the rows of query and key in this order."""
    return rows.reshape(heads, 2, len(rows) // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def tensors_of(folder, edit=None):
    """GGUF name -> array, by the gguf package's own table of names."""
    config = from_hugging_face(read_json(folder / "config.json"))
    kind = ARCHITECTURES[read_json(folder / "config.json")["model_type"]]
    architecture = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == kind)
    names = gguf.get_tensor_name_map(architecture, config.num_layers)
    tensors = {}
    for name, array in load_file(folder / SINGLE).items():
        if kind == "llama" and "q_proj" in name:
            array = interleave(array, config.num_heads)
        if kind == "llama" and "k_proj" in name:
            array = interleave(array, config.num_kv_heads)
        if kind == "gemma3" and name.endswith("norm.weight"):
            array = array + 1
        tensors[names.get_name(name, try_suffixes=(".weight", ".bias"))] = array
    if edit is not None:
        edit(tensors)
    return tensors


def vocabulary(writer, tokens, *, model="gpt2", merges=(), types=None, scores=None, **keys):
    """Tokenizer metadata. `keys` are more of `tokenizer.ggml.*`."""
    writer.add_tokenizer_model(model)
    writer.add_token_list(tokens)
    if types is not None:
        writer.add_token_types(types)
    if scores is not None:
        writer.add_token_scores(scores)
    if merges:
        writer.add_token_merges(merges)
    add_keys(writer, {f"tokenizer.ggml.{key}": value for key, value in keys.items()})


def add_keys(writer, keys):
    for key, value in keys.items():
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        add.get(type(value), writer.add_array)(key, value)


def write(path, folder, *, quantisation="F32", edit=None, remove=(), keys=None, tokenizer=None):
    """Writes the model of `folder` (and no tokenizer unless `tokenizer(writer)` adds one).

    Args:
      quantisation: of the matrices; vectors are F32, as in all published files.
      edit: changes the dict of tensors.
      remove: metadata keys to leave out, without the architecture's prefix.
      keys: more metadata, whole names.
    """
    values = read_json(folder / "config.json")
    config, kind = from_hugging_face(values), ARCHITECTURES[values["model_type"]]
    writer = gguf.GGUFWriter(path, kind)
    numbers = {
        "block_count": config.num_layers,
        "context_length": config.max_positions,
        "embedding_length": config.embed_dim,
        "feed_forward_length": config.mlp_dim,
        "attention.head_count": config.num_heads,
        "attention.head_count_kv": config.num_kv_heads,
        "attention.key_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": config.norm_epsilon,
        "rope.freq_base": config.rope_theta,
    }
    if config.sliding_window:
        numbers |= {
            "attention.sliding_window": config.sliding_window,
            "attention.sliding_window_pattern": config.sliding_pattern,
            "rope.freq_base_swa": config.rope_local_theta,
        }
    add_keys(writer, {f"{kind}.{key}": value for key, value in numbers.items() if key not in remove})
    add_keys(writer, keys or {})
    if tokenizer is not None:
        tokenizer(writer)
    for name, array in tensors_of(folder, edit).items():
        chosen = gguf.GGMLQuantizationType[quantisation if array.ndim == 2 else "F32"]
        writer.add_tensor(name, quantize(np.float32(array), chosen), raw_dtype=chosen)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
