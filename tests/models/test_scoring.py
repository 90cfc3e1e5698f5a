"""Scoring completions: the dense form over plain rows, the sampler's own log-probs, and frozen copies."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.decoding.sampler import Sampler, SamplingConfig, pad_prompts
from jaxalign.models.scoring import completion_log_probs, frozen_copy
from tests.models import tiny


@functools.partial(jax.jit, static_argnums=0, static_argnames=("share_prompt",))
def score(decoder, *arguments, **options):
    return completion_log_probs(decoder, *arguments, **options)


@pytest.fixture(scope="module")
def sampled():
    """(decoder, params, prompts, lengths, completions of three prompts, two each) at temperature 0.7."""
    decoder = tiny.decoder("qwen2")
    params = tiny.random_params(decoder)
    prompts, lengths = pad_prompts([[5, 17, 3], [9], [44, 8, 8, 61, 7]], multiple=4)
    sampling = SamplingConfig(max_new_tokens=6, temperature=0.7, stop_token_ids=tuple(range(20)))
    done = Sampler(decoder, sampling).sample(params, prompts, lengths, jax.random.key(0), samples_per_prompt=2)
    assert len(set(np.asarray(done.lengths).tolist())) > 1
    return decoder, params, prompts, lengths, done


def arrays(done):
    return np.asarray(done.ids).reshape(3, 2, -1), np.asarray(done.mask).reshape(3, 2, -1)


@pytest.mark.parametrize("share_prompt", [True, False])
def test_on_policy_the_ratio_is_one(sampled, share_prompt):
    """What the sampler drew with is what scoring finds, at the same temperature and weights."""
    decoder, params, prompts, lengths, done = sampled
    ids, mask = arrays(done)
    scored = score(
        decoder, params, prompts, lengths, ids, mask, temperature=done.temperature, share_prompt=share_prompt
    )
    assert scored.log_probs.shape == scored.entropy.shape == ids.shape
    difference = np.where(mask, scored.log_probs - done.log_probs.reshape(ids.shape), 0)
    np.testing.assert_allclose(difference, 0, atol=2e-5)


def test_values_are_those_of_the_dense_form(sampled):
    """log softmax over the whole vocabulary after a plain forward pass of prompt and completion."""
    decoder, params, prompts, lengths, done = sampled
    ids, mask = arrays(done)
    scored = score(decoder, params, prompts, lengths, ids, mask, temperature=2.0)
    rows = np.zeros((3, 2, prompts.shape[1] + ids.shape[2]), int)
    for p, length in enumerate(lengths):
        rows[p, :, :length] = prompts[p, :length]
        rows[p, :, length : length + ids.shape[2]] = ids[p]
    hidden = tiny.hidden(decoder, params, *tiny.plain_row(rows.reshape(6, -1)))
    logits = np.asarray(hidden, np.float64).reshape(*rows.shape, -1) @ np.asarray(decoder.head(params)).T / 2.0
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    for p, length in enumerate(lengths):
        for k in range(2):
            n = int(mask[p, k].sum())
            places = log_p[p, k, length - 1 : length - 1 + n]
            chosen = np.take_along_axis(places, np.asarray(ids[p, k, :n, None]), axis=1)[:, 0]
            np.testing.assert_allclose(scored.log_probs[p, k, :n], chosen, atol=2e-5)
            np.testing.assert_allclose(scored.entropy[p, k, :n], -(np.exp(places) * places).sum(-1), atol=2e-5)


def test_what_is_masked_has_no_influence(sampled):
    decoder, params, prompts, lengths, done = sampled
    ids, mask = arrays(done)
    outside = np.arange(prompts.shape[1]) >= lengths[:, None]
    other = score(decoder, params, np.where(outside, 33, prompts), lengths, np.where(mask, ids, 44), mask)
    same = score(decoder, params, prompts, lengths, ids, mask)
    for a, b in zip(other, same, strict=True):
        np.testing.assert_array_equal(np.where(mask, a, 0), np.where(mask, b, 0))


def test_a_frozen_copy_scores_alike_and_outlives_its_origin(sampled):
    """Tables and kernels in the compute dtype, norms and biases as they are; no buffer is shared."""
    decoder, _, prompts, lengths, done = sampled
    ids, mask = arrays(done)
    params = tiny.random_params(decoder)
    expected = score(decoder, params, prompts, lengths, ids, mask)
    copy = frozen_copy(decoder, params)
    jax.jit(lambda tree: jax.tree.map(lambda a: a * 0, tree), donate_argnums=0)(params)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(params))
    found = score(decoder, copy, prompts, lengths, ids, mask)
    np.testing.assert_array_equal(found.log_probs, expected.log_probs)

    half = tiny.Decoder(decoder.config, compute_dtype="bfloat16")
    params = tiny.random_params(decoder)
    dtypes = {path[-1].key: leaf.dtype for path, leaf in jax.tree_util.tree_leaves_with_path(frozen_copy(half, params))}
    assert dtypes == {"kernel": jnp.bfloat16, "embedding": jnp.bfloat16, "scale": jnp.float32, "bias": jnp.float32}
    # Products round kernels anyway; what differs is that the embeddings of the prompt are rounded too.
    found = score(half, frozen_copy(half, params), prompts, lengths, ids, mask)
    expected = score(half, params, prompts, lengths, ids, mask)
    np.testing.assert_allclose(found.log_probs, expected.log_probs, atol=0.05)
