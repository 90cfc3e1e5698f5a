"""The sampler with the real decoder, tiny and random: it agrees with the full forward."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.decoding.sampler import Sampler, SamplingConfig, pad_prompts
from jaxalign.models.config import DecoderConfig
from jaxalign.models.decoder import Decoder
from tests.models import tiny

COMMON = dict(
    vocab_size=300,
    num_layers=2,
    embed_dim=32,
    mlp_dim=48,
    num_heads=4,
    head_dim=8,
    max_positions=64,
)
CONFIGS = {
    "qwen3": DecoderConfig(**COMMON, num_kv_heads=2, qk_norm=True),
    "qwen2": DecoderConfig(**COMMON, num_kv_heads=1, qkv_bias=True, tie_embeddings=False),
    "gemma3": DecoderConfig(
        **COMMON, num_kv_heads=2, qk_norm=True, post_norms=True, norm_offset=1.0, embed_scale=True,
        activation="gelu_tanh", sliding_window=4, sliding_pattern=2, rope_local_theta=1e3,
    ),
}  # fmt: skip
PROMPTS = [[5, 17, 250, 3], [9], [44, 8, 8, 120, 7, 299, 61], [2, 3]]
EOS = tuple(range(30))  # about one token in ten ends a completion


@functools.cache
def model(name, seed=0):
    decoder = Decoder(CONFIGS[name], compute_dtype="float32")
    params = tiny.random_params(decoder, seed)
    # Small random embeddings give nearly flat logits; larger ones make context and position matter.
    return decoder, jax.tree.map(lambda a: a * 2.4 if a.shape[0] == COMMON["vocab_size"] else a, params)


@functools.partial(jax.jit, static_argnums=0)
def full_forward_logits(decoder, params, tokens, lengths):
    """[B, T, V] by the training forward over whole right-padded rows, without a cache."""
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    hidden = decoder.hidden(params, tokens, positions, (positions < lengths[:, None]).astype(jnp.int32))
    return hidden @ decoder.head(params).T


def joined(prompts, lengths, done, samples_per_prompt):
    """Rows of prompt + completion, and the lengths of both."""
    prompts, lengths = (
        np.repeat(prompts, samples_per_prompt, 0),
        np.repeat(lengths, samples_per_prompt),
    )
    rows = np.zeros((len(prompts), prompts.shape[1] + done.ids.shape[1]), np.int32)
    for row, prompt, length, ids, new in zip(rows, prompts, lengths, done.ids, done.lengths, strict=True):
        row[:length], row[length : length + new] = prompt[:length], ids[:new]
    return rows, lengths, np.asarray(done.lengths)


@pytest.mark.parametrize(
    ("name", "slots", "settings"),
    [
        ("qwen3", None, dict(temperature=1.0)),
        ("qwen2", 5, dict(temperature=1.2, top_k=200, top_p=0.95, min_p=0.001)),
        ("gemma3", 4, dict(temperature=1.0)),
    ],
)
def test_log_probs_equal_teacher_forced_ones(name, slots, settings):
    decoder, params = model(name)
    prompts, lengths = pad_prompts(PROMPTS, 8)
    sampler = Sampler(decoder, SamplingConfig(12, stop_token_ids=EOS, **settings), slots=slots)
    done = sampler.sample(params, prompts, lengths, jax.random.key(1), samples_per_prompt=3)
    rows, before, new = joined(prompts, lengths, done, 3)
    logits = full_forward_logits(decoder, params, rows, before + new)
    log_probs = jax.nn.log_softmax(logits / done.temperature, axis=-1)
    assert len(set(new.tolist())) > 2 and not done.truncated.all()
    for i in range(len(rows)):
        places = before[i] - 1 + np.arange(new[i])
        expected = np.asarray(log_probs)[i, places, rows[i, places + 1]]
        np.testing.assert_allclose(done.log_probs[i, : new[i]], expected, atol=1e-4)
        assert not np.asarray(done.log_probs)[i, new[i] :].any()
    assert np.asarray(done.log_probs).min() < -1.0


def test_greedy_equals_the_argmax_of_repeated_full_forwards():
    decoder, params = model("gemma3")
    prompts, lengths = pad_prompts(PROMPTS, 8)
    done = Sampler(decoder, SamplingConfig(10, temperature=0.0, stop_token_ids=EOS), slots=2).sample(
        params, prompts, lengths, jax.random.key(0)
    )
    rows = np.pad(prompts, ((0, 0), (0, 10)))
    live, count = np.ones(4, bool), np.array(lengths)
    while live.any():
        logits = np.asarray(full_forward_logits(decoder, params, rows, count))
        token = logits[np.arange(4), count - 1].argmax(axis=-1)
        rows[live, count[live]] = token[live]
        count += live
        live &= ~np.isin(token, EOS) & (count - lengths < 10)
    for i in range(4):
        assert done.ids[i, : done.lengths[i]].tolist() == rows[i, lengths[i] : count[i]].tolist()


def test_refilled_slots_give_the_same_completions():
    decoder, params = model("qwen3")
    one_by_one, together = (
        Sampler(decoder, SamplingConfig(12, stop_token_ids=EOS), slots=slots).sample(
            params, *pad_prompts(PROMPTS, 8), jax.random.key(4), samples_per_prompt=3
        )
        for slots in (3, None)
    )
    assert len(set(np.asarray(together.lengths).tolist())) > 3
    np.testing.assert_array_equal(one_by_one.ids, together.ids)
    np.testing.assert_array_equal(one_by_one.mask, together.mask)
    np.testing.assert_array_equal(one_by_one.truncated, together.truncated)
    np.testing.assert_allclose(one_by_one.log_probs, together.log_probs, atol=1e-5)


def test_a_group_behind_one_prefill_equals_its_prompt_alone():
    decoder, params = model("qwen3")
    sampler = Sampler(decoder, SamplingConfig(12, stop_token_ids=EOS))
    key = jax.random.key(2)
    group = sampler.sample(params, *pad_prompts(PROMPTS, 8), key, samples_per_prompt=3)
    for i, prompt in enumerate(PROMPTS):
        alone = sampler.sample(params, *pad_prompts([prompt], 8), key, samples_per_prompt=3, prompt_indices=[i])
        np.testing.assert_array_equal(alone.ids, group.ids[3 * i : 3 * i + 3])
        np.testing.assert_allclose(alone.log_probs, group.log_probs[3 * i : 3 * i + 3], atol=1e-5)


def test_bfloat16_log_probs_are_those_of_the_bfloat16_forward():
    """bfloat16 rounds at 2^-8: sampler and training forward of one decoder agree to that order."""
    _, params = model("qwen3")
    decoder = Decoder(CONFIGS["qwen3"], compute_dtype="bfloat16")
    prompts, lengths = pad_prompts(PROMPTS, 8)
    done = Sampler(decoder, SamplingConfig(6)).sample(params, prompts, lengths, jax.random.key(1))
    rows, before, new = joined(prompts, lengths, done, 1)
    log_probs = np.asarray(jax.nn.log_softmax(full_forward_logits(decoder, params, rows, before + new), axis=-1))
    places = before[:, None] - 1 + np.arange(6)
    expected = np.stack([log_probs[i, places[i], rows[i, places[i] + 1]] for i in range(4)])
    np.testing.assert_allclose(done.log_probs, expected, atol=0.03)
