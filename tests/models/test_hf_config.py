"""config.json: both spellings of transformers, round trips, and what the decoder cannot compute refused by name."""

import dataclasses
import json
from pathlib import Path

import pytest

from jaxalign.errors import UserError
from jaxalign.models.config import HUB_IDS, NAMED, DecoderConfig
from jaxalign.models.hf_config import from_hugging_face, to_hugging_face
from tests.models import tiny

GOLDENS = Path(__file__).parent.parent / "goldens"
SIZES = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 72,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}


def read(model_type, **values):
    return from_hugging_face({"model_type": model_type, **SIZES, **values})


def test_every_named_size_survives_the_round_trip():
    assert set(HUB_IDS) <= set(NAMED)
    for name, config in NAMED.items():
        written = to_hugging_face(config)
        assert from_hugging_face(json.loads(json.dumps(written))) == config, name


@pytest.mark.parametrize("architecture", sorted(tiny.ARCHITECTURES))
def test_tiny_sizes_survive_the_round_trip(architecture):
    config = tiny.config(**tiny.ARCHITECTURES[architecture])
    assert from_hugging_face(to_hugging_face(config)) == config


def test_files_written_by_transformers():
    """The goldens' config.json are those of transformers 5 (`rope_parameters`)."""
    common = dict(vocab_size=128, embed_dim=32, mlp_dim=72, num_heads=4, num_kv_heads=2, max_positions=256)
    expected = {
        "llama": DecoderConfig(**common, num_layers=3, head_dim=8, rope_theta=1e5, norm_epsilon=1e-5),
        "llama3": DecoderConfig(
            **common, num_layers=3, head_dim=8, norm_epsilon=1e-5, tie_embeddings=False,
            rope_scaling=("llama3", 4.0, 1.0, 4.0, 32),
        ),
        "qwen2": DecoderConfig(**common, num_layers=3, head_dim=8, rope_theta=1e6, qkv_bias=True),
        "qwen3": DecoderConfig(
            **common, num_layers=3, head_dim=16, rope_theta=1e6, qk_norm=True, tie_embeddings=False
        ),
        "gemma3_text": DecoderConfig(
            **common, num_layers=6, head_dim=16, rope_theta=1e6, rope_local_theta=1e4, rope_scaling=("linear", 2.0),
            norm_offset=1.0, qk_norm=True, post_norms=True, activation="gelu_tanh", embed_scale=True,
            sliding_window=5, sliding_pattern=3, query_scale=24**-0.5,
        ),
    }  # fmt: skip
    for name, config in expected.items():
        assert from_hugging_face(json.loads((GOLDENS / name / "config.json").read_text())) == config, name


def test_both_spellings_of_the_rotary_embedding():
    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    old = read("llama", rope_theta=5e5, rope_scaling={"type": "llama3", **scaling})
    new = read("llama", rope_parameters={"rope_type": "llama3", "rope_theta": 5e5, **scaling})
    assert old == new
    assert old.rope_scaling == ("llama3", 8.0, 1.0, 4.0, 64)
    assert read("qwen3", rope_scaling=None).rope_scaling is None
    assert read("qwen3", rope_scaling={"rope_type": "default"}).rope_scaling is None

    old = read(
        "gemma3_text", rope_theta=1e6, rope_local_base_freq=1e4, rope_scaling={"rope_type": "linear", "factor": 8}
    )
    full = {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}
    sliding = {"rope_type": "default", "rope_theta": 1e4}
    new = read("gemma3_text", rope_parameters={"full_attention": full, "sliding_attention": sliding})
    assert old == new
    assert (old.rope_theta, old.rope_local_theta, old.rope_scaling) == (1e6, 1e4, ("linear", 8.0))


def test_what_a_file_leaves_out_is_what_transformers_fills_in():
    assert read("qwen3").head_dim == 128
    assert read("qwen2").head_dim == 32 // 4
    assert read("llama", num_key_value_heads=None).num_kv_heads == 4
    assert not read("llama").tie_embeddings
    gemma = from_hugging_face({"model_type": "gemma3", "text_config": {"hidden_size": 2560}, "vision_config": {}})
    assert (gemma.embed_dim, gemma.head_dim, gemma.sliding_window, gemma.sliding_pattern) == (2560, 256, 4096, 6)
    assert gemma.tie_embeddings


def test_sliding_layers():
    """By list, by period or from a first layer on: what is not periodic cannot be computed and is refused."""

    def pattern(**values):
        config = read("qwen3", use_sliding_window=True, sliding_window=8, **values)
        return config.sliding_window, config.sliding_pattern

    slides, full = "sliding_attention", "full_attention"
    assert pattern(layer_types=[slides, slides, full] * 2) == (8, 3)
    assert pattern(layer_types=[slides] * 6) == (8, None)
    assert pattern(layer_types=[full] * 6) == (None, None)
    assert pattern(max_window_layers=0) == (8, None)
    assert pattern(max_window_layers=6) == (None, None)
    assert read("qwen3", use_sliding_window=False, sliding_window=8).sliding_window is None
    assert read("gemma3_text", sliding_window_pattern=2).sliding_pattern == 2
    for values in (dict(layer_types=[full, slides] * 3), dict(max_window_layers=3)):
        with pytest.raises(UserError, match="do not follow one period"):
            pattern(**values)


@pytest.mark.parametrize(
    ("model_type", "values", "message"),
    [
        ("mistral", {}, "model_type 'mistral' is not supported; supported are llama, qwen2, qwen3, gemma3_text"),
        (None, {}, "model_type None is not supported"),
        ("llama", {"attention_bias": True}, "attention_bias=True is not supported for model_type 'llama'"),
        ("llama", {"mlp_bias": True}, "mlp_bias=True is not supported"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act='gelu' is not supported, only 'silu'"),
        ("llama", {"quantization_config": {"bits": 4}}, "quantization_config="),
        ("gemma3_text", {"final_logit_softcapping": 30.0}, "final_logit_softcapping=30.0 is not supported"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "use_bidirectional_attention=True"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
        ("llama", {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "rope scaling 'yarn' is not supported"),
        ("llama", {"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}, "'llama3' lacks 'low_freq_factor'"),
        ("llama", {"hidden_size": None}, "'hidden_size' is missing; the file must describe a llama model"),
        ("llama", {"num_hidden_layers": None}, "'num_hidden_layers' is missing"),
        ("llama", {"num_key_value_heads": 3}, "num_kv_heads=3 does not divide num_heads=4"),
    ],
)
def test_what_cannot_be_computed_is_refused_by_name(model_type, values, message):
    with pytest.raises(UserError, match=message):
        read(model_type, **values)


@pytest.mark.parametrize(
    "changes",
    [
        {"activation": "gelu_tanh"},
        {"norm_offset": 1.0},
        {"embed_scale": True},
        {"qkv_bias": True, "qk_norm": True},
        {"query_scale": 0.1},
        {"sliding_window": 4},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_mixture_that_transformers_does_not_know_is_not_written(changes):
    with pytest.raises(UserError, match=r"is not one of a \w+ model, so it cannot be written for transformers"):
        to_hugging_face(dataclasses.replace(tiny.config(), **changes))
