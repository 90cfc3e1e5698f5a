"""Hugging Face folders: what is written is read again, whole or in shards; what does not fit is named."""

import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxalign.errors import UserError
from jaxalign.models import safetensors_io
from jaxalign.models.safetensors_io import INDEX, SINGLE
from jaxalign.training.mesh import make_mesh
from jaxalign.training.sharding import DECODER_RULES, shardings_for
from tests.models import tiny

QUERY = "model.layers.1.self_attn.q_proj.weight"


def same(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def write(folder, architecture="qwen3", **options):
    """A folder with random weights; returns its config and parameters."""
    decoder = tiny.decoder(architecture)
    params = tiny.random_params(decoder)
    safetensors_io.save_folder(folder, decoder.config, params, **{"dtype": jnp.float32} | options)
    return decoder.config, params


def change(folder, edit):
    """Rewrites the single weights file after `edit(tensors)`."""
    tensors = load_file(folder / SINGLE)
    edit(tensors)
    save_file(tensors, folder / SINGLE)


@pytest.mark.parametrize("architecture", sorted(tiny.ARCHITECTURES))
def test_what_is_written_is_read_again(architecture, tmp_path):
    config, params = write(tmp_path, architecture)
    assert safetensors_io.read_config(tmp_path) == config
    loaded = safetensors_io.load_params(tmp_path)
    same(loaded, params)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(loaded)} == {"float32"}


def test_kernels_lie_in_the_file_as_in_torch(tmp_path):
    """[out, in], one tensor a layer; transformers refuses files whose metadata name no format."""
    _, params = write(tmp_path)
    tensors = load_file(tmp_path / SINGLE)
    np.testing.assert_array_equal(tensors[QUERY], params["layers"]["attention"]["query"]["kernel"][1].T)
    np.testing.assert_array_equal(tensors["model.embed_tokens.weight"], params["embed"]["embedding"])
    assert b'"format":"pt"' in (tmp_path / SINGLE).read_bytes()[:5000].replace(b" ", b"")


@pytest.mark.parametrize("stored", ["bfloat16", "float16"])
def test_dtypes_of_the_file_and_of_the_result(stored, tmp_path):
    _, params = write(tmp_path, dtype=stored)
    rounded = jax.tree.map(lambda a: a.astype(stored), params)
    same(safetensors_io.load_params(tmp_path), jax.tree.map(lambda a: a.astype(jnp.float32), rounded))
    same(safetensors_io.load_params(tmp_path, dtype=stored), rounded)
    assert json.loads((tmp_path / "config.json").read_text())["torch_dtype"] == stored


def test_several_files_and_their_index(tmp_path):
    _, params = write(tmp_path, max_file_bytes=20_000)
    index = json.loads((tmp_path / INDEX).read_text())
    files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert len(files) > 2
    assert files[0] == f"model-00001-of-{len(files):05}.safetensors"
    assert sorted(set(index["weight_map"].values())) == files
    assert index["metadata"]["total_size"] == sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    for name, file in index["weight_map"].items():
        assert name in load_file(tmp_path / file)
    same(safetensors_io.load_params(tmp_path), params)
    # The files of an earlier save must not be taken for this one's.
    _, params = write(tmp_path)
    assert not (tmp_path / INDEX).exists()
    same(safetensors_io.load_params(tmp_path), params)


@pytest.mark.devices(8)
@pytest.mark.parametrize("architecture", ["qwen2", "gemma3"])
@pytest.mark.parametrize("shape", [(8, 1, 1), (1, 4, 2), (2, 1, 4)])
@pytest.mark.filterwarnings("ignore:.*does not divide over mesh axis:UserWarning")  # 97 rows of embeddings
def test_straight_into_sharded_arrays(architecture, shape, tmp_path):
    config, params = write(tmp_path, architecture)
    mesh = make_mesh(*shape)
    layout = shardings_for(params, DECODER_RULES, mesh)
    for shardings in (layout, lambda abstract: shardings_for(abstract, DECODER_RULES, mesh)):
        loaded = safetensors_io.load_params(tmp_path, config, shardings=shardings)
        same(loaded, params)
        jax.tree.map(lambda a, s: a.sharding == s or pytest.fail(f"{a.sharding} is not {s}"), loaded, layout)


@pytest.mark.devices(8)
@pytest.mark.parametrize("sharded", [False, True])
def test_loaded_parameters_can_be_donated(sharded, tmp_path):
    """An array that shared its buffer with the host could not; JAX warns, and warnings are errors here."""
    config, params = write(tmp_path, "llama")
    shardings = jax.tree.map(lambda _: jax.sharding.SingleDeviceSharding(jax.devices()[3]), params) if sharded else None
    loaded = safetensors_io.load_params(tmp_path, config, shardings=shardings)
    jax.jit(lambda tree: jax.tree.map(lambda a: a + 1, tree), donate_argnums=0)(loaded)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(loaded))


def test_tensors_that_are_not_ours_are_passed_over(tmp_path):
    """Old checkpoints carry rotary constants, some a second copy of a tied head."""
    _, params = write(tmp_path)

    def edit(tensors):
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(4, np.float32)
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]

    change(tmp_path, edit)
    same(safetensors_io.load_params(tmp_path), params)


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])
def test_the_text_part_of_gemma_with_vision(prefix, tmp_path):
    config, params = write(tmp_path, "gemma3")

    def edit(tensors):
        for name in list(tensors):
            tensors[name.replace("model.", prefix, 1)] = tensors.pop(name)
        tensors["vision_tower.embeddings.weight"] = np.ones((2, 2), np.float32)
        tensors["model.vision_tower.embeddings.weight"] = np.ones((2, 2), np.float32)
        tensors["multi_modal_projector.weight"] = np.ones((2, 2), np.float32)

    change(tmp_path, edit)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model_type": "gemma3", "text_config": json.loads(path.read_text())}))
    assert safetensors_io.read_config(tmp_path) == config
    same(safetensors_io.load_params(tmp_path), params)


def no_weights(folder):
    (folder / SINGLE).rename(folder / "pytorch_model.bin")


def truncated(folder):
    os.truncate(folder / SINGLE, 5000)


def empty(folder):
    (folder / SINGLE).write_bytes(b"")


def not_safetensors(folder):
    (folder / SINGLE).write_bytes(b"<html>" * 1000)


def wrong_shape(folder):
    change(folder, lambda tensors: tensors.update({QUERY: np.ones((32, 31), np.float32)}))


def missing_tensor(folder):
    change(folder, lambda tensors: tensors.pop(QUERY))


def extra_tensor(folder):
    change(folder, lambda tensors: tensors.update({"model.layers.2.mlp.up_proj.weight": np.ones(2, np.float32)}))


def quantised(folder):
    change(folder, lambda tensors: tensors.update({QUERY: np.ones((32, 32), np.int8)}))


def no_config(folder):
    (folder / "config.json").unlink()


def broken_config(folder):
    (folder / "config.json").write_text('{"model_type": ')


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (no_weights, r"weights file .*model.safetensors is missing \(found: pytorch_model.bin\); copy or download it"),
        (truncated, r"model.safetensors is truncated or is not a safetensors file .*download it again"),
        (empty, "model.safetensors is truncated or is not a safetensors file"),
        (not_safetensors, "model.safetensors is truncated or is not a safetensors file"),
        (wrong_shape, rf"tensor '{QUERY}' has shape \[32, 31\], but the configuration calls for \[32, 32\]"),
        (missing_tensor, rf"tensor '{QUERY}' is missing; the weights do not belong to this configuration"),
        (extra_tensor, "tensor 'model.layers.2.mlp.up_proj.weight' is not expected"),
        (quantised, rf"tensor '{QUERY}' has type I8; quantised safetensors are not supported"),
        (no_config, r"config.json is missing; a Hugging Face model folder holds it beside the weights"),
        (broken_config, r"config.json is not valid JSON .*copy or download it again"),
    ],
)
def test_a_damaged_folder_is_named(damage, message, tmp_path):
    write(tmp_path)
    damage(tmp_path)
    with pytest.raises(UserError, match=message):
        safetensors_io.load_params(tmp_path)


def test_a_missing_or_truncated_shard_is_named(tmp_path):
    write(tmp_path, max_file_bytes=20_000)
    second = sorted(tmp_path.glob("*.safetensors"))[1]
    content = second.read_bytes()
    second.write_bytes(content[:-100])
    with pytest.raises(UserError, match=rf"{second.name} is truncated"):
        safetensors_io.load_params(tmp_path)
    second.unlink()
    with pytest.raises(UserError, match=rf"{second.name} is missing \(found: model-00001-of"):
        safetensors_io.load_params(tmp_path)


def test_parameters_of_another_shape_are_not_written(tmp_path):
    config, params = write(tmp_path / "good")
    mlp = params["layers"]["mlp"]
    wrong = params | {"layers": params["layers"] | {"mlp": mlp | {"up": mlp["down"]}}}
    message = r"parameter layers/mlp/up/kernel has shape \(2, 48, 32\), expected \(2, 32, 48\)"
    with pytest.raises(UserError, match=message):
        safetensors_io.save_folder(tmp_path / "bad", config, wrong)
    assert not (tmp_path / "bad").exists()
