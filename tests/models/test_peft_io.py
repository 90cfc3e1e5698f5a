"""Adapters in PEFT's format: goldens that PEFT wrote (see tests/goldens/make_goldens.py), round trips, bad files."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxalign.errors import UserError
from jaxalign.models import lora, peft_io, safetensors_io
from jaxalign.models.lora import LoraConfig
from tests.models.test_parity import logits_of

GOLDENS = Path(__file__).parent.parent / "goldens"
WRITTEN_BY_PEFT = {"peft_lora": "llama", "peft_rslora": "gemma3_text", "peft_dora": "qwen2"}


def base_of(name):
    folder = GOLDENS / WRITTEN_BY_PEFT[name]
    config = safetensors_io.read_config(folder)
    return config, safetensors_io.load_params(folder, config)


@pytest.mark.parametrize("name", WRITTEN_BY_PEFT)
def test_peft_adapter_matches_golden_logits(name):
    golden = np.load(GOLDENS / name / "golden.npz")
    config, base = base_of(name)
    loaded = peft_io.load(GOLDENS / name, config)
    tokens = golden["tokens"]
    attached = lora.attach(base, loaded.adapter, loaded.config)
    np.testing.assert_allclose(logits_of(config, attached, tokens), golden["logits"], atol=2e-4, rtol=1e-4)
    merged = lora.merge(base, loaded.adapter, loaded.config)
    np.testing.assert_allclose(logits_of(config, merged, tokens), golden["logits"], atol=2e-4, rtol=1e-4)
    assert np.abs(logits_of(config, base, tokens) - golden["logits"]).max() > 0.5


def test_settings_of_the_goldens_are_read():
    config, _ = base_of("peft_rslora")
    found = peft_io.load(GOLDENS / "peft_rslora", config).config
    assert (found.kind, found.rank, found.alpha, found.rank_scaled) == ("lora", 4, 3.0, True)
    assert found.rank_and_alpha("layers/mlp/down") == (2, 3.0)
    assert found.rank_and_alpha("layers/attention/key") == (4, 5.0)
    assert found.scale("layers/attention/key") == 2.5
    config, _ = base_of("peft_dora")
    assert peft_io.load(GOLDENS / "peft_dora", config).config.kind == "dora"


@pytest.mark.parametrize("name", WRITTEN_BY_PEFT)
def test_a_round_trip_keeps_every_bit_and_key(name, tmp_path):
    config, _ = base_of(name)
    loaded = peft_io.load(GOLDENS / name, config)
    peft_io.save(tmp_path, loaded.adapter, loaded.config, config, settings=loaded.settings)
    first, second = (load_file(folder / peft_io.WEIGHTS) for folder in (GOLDENS / name, tmp_path))
    assert first.keys() == second.keys()
    for key, array in first.items():
        np.testing.assert_array_equal(second[key], array)
    again = peft_io.load(tmp_path, config)
    assert again.config == loaded.config
    settings = [json.loads((folder / peft_io.CONFIG).read_text()) for folder in (GOLDENS / name, tmp_path)]
    assert settings[0].keys() <= settings[1].keys()
    free = {"target_modules", "alpha_pattern", "rank_pattern"}  # the same modules and numbers, named in other ways
    assert {key: value for key, value in settings[0].items() if settings[1][key] != value}.keys() <= free
    assert set(settings[0]["target_modules"]) == set(settings[1]["target_modules"])


def copied(name, tmp_path, change_settings=None, change_tensors=None):
    folder = tmp_path / name
    shutil.copytree(GOLDENS / name, folder)
    if change_settings:
        settings = json.loads((folder / peft_io.CONFIG).read_text())
        (folder / peft_io.CONFIG).write_text(json.dumps(settings | change_settings))
    if change_tensors:
        tensors = load_file(folder / peft_io.WEIGHTS)
        change_tensors(tensors)
        save_file(tensors, folder / peft_io.WEIGHTS)
    return folder


FIRST = "base_model.model.model.layers.0.self_attn.q_proj"


def set_nan(tensors):
    tensors[f"{FIRST}.lora_A.weight"][0, 0] = np.nan


def rename(tensors):
    tensors["base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight"] = np.zeros((4, 32), np.float32)


def widen(tensors):
    for key in [key for key in tensors if "q_proj.lora_B" in key]:
        tensors[key] = np.zeros((40, 4), np.float32)


def drop_half(tensors):
    for key in [key for key in tensors if "q_proj.lora_B" in key]:
        del tensors[key]


@pytest.mark.parametrize(
    ("settings", "tensors", "message"),
    [
        ({"bias": "lora_only"}, None, r"bias='lora_only' is not supported"),
        ({"modules_to_save": ["lm_head"]}, None, r"modules_to_save=\['lm_head'\] is not supported"),
        ({"use_qalora": True}, None, r"use_qalora=True is not supported"),
        ({"peft_type": "IA3"}, None, r"peft_type 'IA3' is not supported"),
        ({"r": 5}, None, r"rank 5 for layers/attention/query, but its factors have rank 4"),
        (None, lambda tensors: tensors.pop(f"{FIRST}.lora_B.weight"), rf"1 tensor.* missing.*{FIRST}.lora_B.weight"),
        (None, drop_half, r"missing, among them .*q_proj.lora_B.weight"),
        (None, set_nan, r"lora_a of layers/attention/query holds numbers that are not finite"),
        (None, rename, r"1 tensor\(s\) not expected, among them .*layers.9.self_attn.q_proj"),
        (None, widen, r"layers/attention/query has .*its base calls for"),
    ],
)
def test_what_cannot_be_read_is_named(settings, tensors, message, tmp_path):
    config, _ = base_of("peft_lora")
    folder = copied("peft_lora", tmp_path, settings, tensors)
    with pytest.raises(UserError, match=message):
        peft_io.load(folder, config)


def test_missing_and_broken_files_are_named(tmp_path):
    config, _ = base_of("peft_lora")
    with pytest.raises(UserError, match=r"adapter_config.json is missing"):
        peft_io.load(tmp_path, config)
    folder = copied("peft_lora", tmp_path)
    (folder / peft_io.WEIGHTS).write_bytes((folder / peft_io.WEIGHTS).read_bytes()[:3000])
    with pytest.raises(UserError, match=r"adapter_model.safetensors is not a whole safetensors file"):
        peft_io.load(folder, config)


def test_another_adapter_than_expected_is_refused():
    config, _ = base_of("peft_lora")
    targets = (r"layers/attention/(query|value)", r"layers/mlp/down")
    wanted = LoraConfig(rank=4, alpha=8.0, targets=targets)
    peft_io.load(GOLDENS / "peft_lora", config, expected=wanted)
    with pytest.raises(UserError, match=r"layers/attention/query is \('lora', 4, 2.0\) there, \('lora', 4, 4.0\)"):
        peft_io.load(GOLDENS / "peft_lora", config, expected=LoraConfig(rank=4, alpha=16.0, targets=targets))
    with pytest.raises(UserError, match=r"layers/attention/key is None there"):
        peft_io.load(GOLDENS / "peft_lora", config, expected=LoraConfig(rank=4, alpha=8.0))


@pytest.mark.parametrize(("kind", "base"), [("lora", "qwen3"), ("dora", "llama3"), ("lora", "gemma3_text")])
def test_live_peft(kind, base, tmp_path):
    """A folder written here is read by PEFT over transformers' model and gives our logits, apart and merged."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    peft = pytest.importorskip("peft")
    tokens = np.load(GOLDENS / base / "golden.npz")["tokens"]
    config = safetensors_io.read_config(GOLDENS / base)
    params = safetensors_io.load_params(GOLDENS / base, config)
    settings = LoraConfig(kind=kind, rank=3, alpha=5.0, rank_scaled=True, overrides=((r"layers/mlp/up", 2, 7.0),))
    adapter = lora.init_adapter(jax.random.key(0), params, settings)
    rng = np.random.default_rng(0)
    adapter = jax.tree.map(lambda leaf: leaf + jnp.asarray(0.1 * rng.normal(size=leaf.shape), jnp.float32), adapter)
    peft_io.save(tmp_path, adapter, settings, config, base_name=str(GOLDENS / base))
    model = transformers.AutoModelForCausalLM.from_pretrained(
        GOLDENS / base, dtype=torch.float32, attn_implementation="eager"
    )
    model = peft.PeftModel.from_pretrained(model, tmp_path).eval()
    ids = torch.from_numpy(tokens).long()
    found = logits_of(config, lora.attach(params, adapter, settings), tokens)
    with torch.no_grad():
        np.testing.assert_allclose(found, model(ids, use_cache=False).logits.numpy(), atol=3e-4, rtol=1e-4)
        whole = model.merge_and_unload()(ids, use_cache=False).logits.numpy()
    np.testing.assert_allclose(
        logits_of(config, lora.merge(params, adapter, settings), tokens), whole, atol=3e-4, rtol=1e-4
    )
    assert np.abs(logits_of(config, params, tokens) - found).max() > 0.3
