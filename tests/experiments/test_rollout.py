"""Leaving out groups of equal rewards changes neither loss nor gradient."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.groups import Groups, drop_silent_groups, update_batches
from experiments.objectives import make_loss
from jaxalign.models.config import NAMED
from jaxalign.models.decoder import Decoder
from jaxalign.objective import loss

PROMPTS, GROUP, WIDTH, TIME = 6, 3, 5, 4


@pytest.fixture(scope="module")
def decoder():
    return Decoder(dataclasses.replace(NAMED["tiny_qwen3"], num_layers=1), compute_dtype="float32", remat="none")


@pytest.fixture(scope="module")
def params(decoder):
    return jax.jit(decoder.init)(jax.random.key(0))


def groups(loud, seed=0):
    """Groups of which those of `loud` have advantages that are not 0; lengths differ, one completion is empty."""
    random = np.random.default_rng(seed)
    advantages = np.zeros((PROMPTS, GROUP), np.float32)
    advantages[list(loud)] = random.normal(size=(len(loud), GROUP))
    lengths = random.integers(1, TIME + 1, (PROMPTS, GROUP))
    lengths[1, 1] = 0
    return Groups(
        prompts=random.integers(0, 256, (PROMPTS, WIDTH)).astype(np.int32),
        prompt_lengths=random.integers(1, WIDTH + 1, PROMPTS).astype(np.int32),
        completions=random.integers(0, 256, (PROMPTS, GROUP, TIME)).astype(np.int32),
        mask=(np.arange(TIME) < lengths[..., None]).astype(np.float32),
        advantages=advantages,
        absent_weight=np.zeros(PROMPTS, np.float32),
        old_log_probs=None,
        reference_log_probs=None,
    )


LOUD = (1, 2, 5)


@pytest.mark.parametrize(
    ("aggregation", "count_empty", "scale_length", "loud", "left"),
    [
        ("seq-mean-token-mean", False, None, LOUD, 4),
        ("seq-mean-token-mean", False, None, (), 2),
        ("seq-mean-token-mean", True, None, LOUD, 4),
        ("token-mean", False, None, LOUD, 4),
        ("seq-mean-token-scale", False, 7.0, LOUD, 4),
    ],
)
def test_silent_groups_add_their_weight_only(decoder, params, aggregation, count_empty, scale_length, loud, left):
    options = {"aggregation": aggregation, "count_empty": count_empty, "scale_length": scale_length}
    loss_fn = make_loss(decoder, temperature=1.0, share_prompt=True, **options)
    whole = groups(loud)
    part = drop_silent_groups(whole, 2, aggregation, count_empty)
    assert len(part.prompts) == left

    @jax.jit
    def value_and_gradient(params, batch):
        return jax.value_and_grad(lambda p: loss(loss_fn(p, batch, None, None)))(params)

    expected, actual = (value_and_gradient(params, jax.tree.map(jnp.asarray, batch)) for batch in (whole, part))
    np.testing.assert_allclose(actual[0], expected[0], rtol=1e-5, atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), actual[1], expected[1])
    if loud:
        assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(actual[1])) > 1e-4


def test_each_pass_takes_every_group_once_in_a_new_order():
    import ml_collections

    rl = ml_collections.ConfigDict({"epochs": 2, "batches_per_epoch": 3})
    batch = groups((0, 1))
    parts = [part.prompt_lengths.tolist() + part.prompts[:, 0].tolist() for part in update_batches(batch, rl, 0, 5)]
    assert len(parts) == 6
    again = [part.prompt_lengths.tolist() + part.prompts[:, 0].tolist() for part in update_batches(batch, rl, 0, 5)]
    assert parts == again
    firsts = [part.prompts[:, 0] for part in update_batches(batch, rl, 0, 5)]
    for epoch in (firsts[:3], firsts[3:]):
        assert sorted(np.concatenate(epoch)) == sorted(batch.prompts[:, 0])
    assert not all(np.array_equal(a, b) for a, b in zip(firsts[:3], firsts[3:], strict=True))
