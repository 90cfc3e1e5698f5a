"""GGUF files written with the gguf package are read like the Hugging Face folder they were made from."""

import dataclasses
import os
import struct

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gguf.quants import dequantize, quantize
from safetensors.numpy import load_file, save_file

from jaxalign.errors import UserError
from jaxalign.models import gguf_io, safetensors_io
from jaxalign.models.gguf_file import GgufFile
from jaxalign.training.mesh import make_mesh
from jaxalign.training.sharding import DECODER_RULES, shardings_for
from tests.models import gguf_files, tiny

CHANGES = {
    "llama": {"rope_scaling": None},
    "gemma3": {"query_scale": 8**-0.5},  # GGUF has no key for it
}


@pytest.fixture(params=sorted(tiny.ARCHITECTURES))
def architecture(request):
    return request.param


def write_folder(folder, architecture="qwen3", **changes):
    """A Hugging Face folder with random weights; returns its config."""
    decoder = tiny.decoder(architecture)
    config = dataclasses.replace(decoder.config, **CHANGES.get(architecture, {}) | changes)
    params = tiny.random_params(dataclasses.replace(decoder, config=config))
    safetensors_io.save_folder(folder, config, params, dtype=jnp.float32)
    return config


def equal(actual, expected, atol=0.0):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=atol), actual, expected)


def test_config_and_parameters_are_those_of_the_folder(architecture, tmp_path):
    config = write_folder(tmp_path, architecture)
    file = GgufFile(gguf_files.write(tmp_path / "m.gguf", tmp_path))
    assert gguf_io.read_config(file) == config
    # Gemma's scales are stored with 1 added, which rounds.
    atol = 1e-7 if architecture == "gemma3" else 0.0
    equal(gguf_io.load_params(file), safetensors_io.load_params(tmp_path), atol)


@pytest.mark.parametrize("quantisation", ["F16", "BF16", "Q8_0", "Q5_1", "Q4_1", "Q4_0"])
def test_quantised_tensors(quantisation, tmp_path):
    """Against the gguf package's own rounding of the Hugging Face tensors; query and key rows are permuted whole."""
    write_folder(tmp_path, "llama", mlp_dim=64)
    file = GgufFile(gguf_files.write(tmp_path / "m.gguf", tmp_path, quantisation=quantisation))
    found = gguf_io.load_params(file)
    exact = safetensors_io.load_params(tmp_path)
    kind = gguf.GGMLQuantizationType[quantisation]
    tensors = load_file(tmp_path / "model.safetensors")
    rounded = {
        name: dequantize(quantize(array, kind), kind) if array.ndim == 2 else array for name, array in tensors.items()
    }
    save_file(rounded, tmp_path / "model.safetensors")
    equal(found, safetensors_io.load_params(tmp_path))
    kernel, expected = (tree["layers"]["mlp"]["down"]["kernel"] for tree in (found, exact))
    assert 0 < np.abs(kernel - expected).max() < 0.1


def test_llama3_scaling_is_recognised_by_its_factors(tmp_path):
    scaling = ("llama3", 32.0, 1.0, 4.0, 8192)
    config = write_folder(tmp_path, "llama", rope_scaling=scaling)
    # As convert_hf_to_gguf.py computes them.
    frequencies = 1e4 ** -(np.arange(0, 8, 2) / 8)
    wavelengths = 2 * np.pi / frequencies
    smooth = (8192 / wavelengths - 1.0) / (4.0 - 1.0)
    factors = np.where(
        wavelengths < 8192 / 4, 1.0, np.where(wavelengths > 8192, 32.0, 1 / ((1 - smooth) / 32 + smooth))
    )
    assert len(set(factors)) > 1

    def add(tensors):
        tensors["rope_freqs.weight"] = factors.astype(np.float32)

    file = GgufFile(gguf_files.write(tmp_path / "m.gguf", tmp_path, edit=add))
    assert gguf_io.read_config(file) == config
    equal(gguf_io.load_params(file), safetensors_io.load_params(tmp_path))

    def add_others(tensors):
        tensors["rope_freqs.weight"] = np.linspace(1, 2, 4, dtype=np.float32)

    file = GgufFile(gguf_files.write(tmp_path / "other.gguf", tmp_path, edit=add_others))
    with pytest.raises(UserError, match=r"'rope_freqs.weight' are not those of a Llama 3 model"):
        gguf_io.read_config(file)


def test_linear_scaling_and_lists_with_one_number_per_layer(tmp_path):
    write_folder(tmp_path)
    keys = {
        "qwen3.rope.scaling.type": "linear",
        "qwen3.rope.scaling.factor": 4.0,
        "qwen3.feed_forward_length": [48, 48],
    }
    file = GgufFile(gguf_files.write(tmp_path / "m.gguf", tmp_path, keys=keys, remove=["feed_forward_length"]))
    config = gguf_io.read_config(file)
    assert config.rope_scaling == ("linear", 4.0)
    assert config.mlp_dim == 48


@pytest.mark.devices(8)
@pytest.mark.parametrize("kind", ["llama", "gemma3"])
@pytest.mark.filterwarnings("ignore:.*does not divide over mesh axis:UserWarning")  # 97 rows of embeddings
def test_straight_into_sharded_arrays(kind, tmp_path):
    write_folder(tmp_path, kind, mlp_dim=64)
    file = GgufFile(gguf_files.write(tmp_path / "m.gguf", tmp_path, quantisation="Q8_0"))
    mesh = make_mesh(2, 2, 2)
    loaded = gguf_io.load_params(file, shardings=lambda abstract: shardings_for(abstract, DECODER_RULES, mesh))
    equal(loaded, gguf_io.load_params(file))
    kernel = loaded["layers"]["attention"]["query"]["kernel"]
    assert kernel.sharding.shard_shape(kernel.shape) == (2, 16, 16)


def cut(path, size):
    os.truncate(path, size)


def patch(path, offset, content):
    data = bytearray(path.read_bytes())
    data[offset : offset + len(content)] = content
    path.write_bytes(data)


def type_offset(path, name):
    """Where the type number of a tensor stands: name, number of axes, axes, type, offset."""
    data = path.read_bytes()
    at = data.index(struct.pack("<Q", len(name)) + name.encode()) + 8 + len(name)
    (axes,) = struct.unpack_from("<I", data, at)
    return at + 4 + 8 * axes


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "cannot be opened .*check the path"),
        (lambda path: path.write_bytes(b""), "cannot be opened"),
        (lambda path: path.write_bytes(b"<html>" * 99), "is not a GGUF file: it does not begin with the four letters"),
        (lambda path: cut(path, 20), "is truncated or damaged in its header; download it again"),
        (lambda path: cut(path, 300), "is truncated or damaged in its header"),
        (lambda path: cut(path, path.stat().st_size - 100), r"is truncated: it has \d+ bytes, but tensor '.*' ends at"),
        (lambda path: patch(path, 4, struct.pack("<I", 1)), "is GGUF version 1; .*of version 2 and 3 are read"),
        (lambda path: patch(path, 4, struct.pack(">I", 3)), "is GGUF version 50331648"),
        (lambda path: patch(path, 24, struct.pack("<Q", 2**60)), "truncated or damaged in its header"),
        (
            lambda path: patch(path, type_offset(path, "output_norm.weight"), struct.pack("<I", 999)),
            "tensor 'output_norm.weight' has the quantisation type 999, which the installed gguf",
        ),
    ],
)
def test_a_damaged_file_is_one_clear_error(damage, message, tmp_path):
    write_folder(tmp_path)
    path = gguf_files.write(tmp_path / "m.gguf", tmp_path)
    GgufFile(path)
    damage(path)
    with pytest.raises(UserError, match=message):
        GgufFile(path)


def test_a_quantisation_that_cannot_be_undone_is_named(tmp_path):
    write_folder(tmp_path)
    path = gguf_files.write(tmp_path / "m.gguf", tmp_path)
    number = int(gguf.GGMLQuantizationType.I32)  # as many bytes as F32
    patch(path, type_offset(path, "blk.0.ffn_up.weight"), struct.pack("<I", number))
    with pytest.raises(UserError, match=r"tensor 'blk.0.ffn_up.weight' is quantised as I32, which .*cannot dequantise"):
        gguf_io.load_params(GgufFile(path))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(keys={"split.count": 3}), "is one of 3 parts; join them first"),
        (dict(keys={"general.architecture": "mamba"}), "architecture 'mamba' is not supported; supported are llama"),
        (dict(remove=["block_count"]), "the metadata lack qwen3.block_count"),
        (dict(keys={"qwen3.expert_count": 8}), "mixtures of experts are not supported"),
        (dict(keys={"qwen3.rope.dimension_count": 4}), "rotary embedding of part of the head is not supported"),
        (dict(keys={"qwen3.rope.scaling.type": "yarn"}), "rope scaling 'yarn' is not supported"),
        (
            dict(keys={"qwen3.feed_forward_length": [48, 64]}, remove=["feed_forward_length"]),
            "qwen3.feed_forward_length differs between layers",
        ),
        (dict(edit=lambda t: t.pop("token_embd.weight")), "'token_embd.weight' is missing; the file holds no language"),
        (dict(edit=lambda t: t.pop("blk.1.attn_q.weight")), "tensor 'blk.1.attn_q.weight' is missing"),
        (dict(edit=lambda t: t.update({"blk.2.attn_q.weight": np.ones(2)})), "'blk.2.attn_q.weight' is not expected"),
        (
            dict(edit=lambda t: t.update({"blk.1.attn_q.weight": np.ones((16, 32))})),
            r"tensor 'blk.1.attn_q.weight' has shape \[16, 32\], but the configuration calls for \[32, 32\]",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "-",
)
def test_a_file_that_does_not_fit_is_named(options, message, tmp_path):
    write_folder(tmp_path)
    path = gguf_files.write(tmp_path / "m.gguf", tmp_path, **options)
    with pytest.raises(UserError, match=message):
        gguf_io.load_params(GgufFile(path))
