"""Decoder: one implementation, several faces (training rows, prefill, decode) that must agree with each other."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.errors import UserError
from jaxalign.models.attention import visibility
from jaxalign.models.config import NAMED, DecoderConfig
from jaxalign.models.decoder import Decoder
from jaxalign.models.layers import Precision, matmul
from tests.models import tiny
from tests.models.tiny import plain_row, random_params


@pytest.fixture(params=sorted(tiny.COVERING))
def decoder(request):
    return tiny.decoder(request.param)


def test_prefill_and_decode_equal_the_whole_row(decoder):
    params = random_params(decoder)
    tokens = np.random.default_rng(2).integers(0, 97, (3, 12))
    lengths = np.array([5, 3, 6])
    whole = np.asarray(tiny.hidden(decoder, params, *plain_row(tokens)))
    prepared = decoder.decode_params(params)
    hidden, cache = tiny.prefill(decoder, prepared, tokens[:, :6], lengths, 12)
    rows = np.arange(3)
    np.testing.assert_allclose(hidden, whole[rows, lengths - 1], atol=2e-5)
    for step in range(5):
        hidden, cache = tiny.decode(decoder, prepared, tokens[rows, lengths + step], lengths + step, cache)
        np.testing.assert_allclose(hidden, whole[rows, lengths + step], atol=2e-5)


def test_logits_are_hidden_times_head(decoder):
    params = random_params(decoder)
    hidden = np.random.default_rng(5).normal(size=(2, 32)).astype(np.float32)
    logits = decoder.decode_logits(decoder.decode_params(params), hidden)
    np.testing.assert_allclose(logits, hidden @ np.asarray(decoder.head(params)).T, atol=1e-5)


def test_packed_examples_do_not_see_each_other(decoder):
    """One row of two examples and padding, beside each of them alone."""
    first, second = np.random.default_rng(3).integers(0, 97, (2, 5))
    tokens = np.full((3, 12), 7)
    tokens[0, :5], tokens[0, 5:10] = first, second
    tokens[1, :5], tokens[2, :5] = first, second
    positions = np.array([[0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 0], *[[0, 1, 2, 3, 4] + [0] * 7] * 2])
    segments = np.array([[1] * 5 + [2] * 5 + [0] * 2, *[[1] * 5 + [0] * 7] * 2])
    packed, *alone = np.asarray(tiny.hidden(decoder, random_params(decoder), tokens, positions, segments))
    for found, expected in zip((packed[:5], packed[5:10]), alone, strict=True):
        np.testing.assert_allclose(found, expected[:5], atol=2e-5)


def test_remat_changes_no_gradient():
    decoder = tiny.decoder("gemma3")
    params = random_params(decoder)
    row = plain_row(np.random.default_rng(4).integers(0, 97, (2, 9)))

    def gradient(remat):
        model = Decoder(decoder.config, compute_dtype="float32", remat=remat)
        return jax.jit(jax.grad(lambda p: jnp.sum(jnp.sin(model.hidden(p, *row)))))(params)

    expected = gradient("none")
    for remat in ("full", "products"):
        chex.assert_trees_all_close(gradient(remat), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.optimised
def test_remat_full_keeps_less_than_none():
    config = tiny.config(num_layers=4)

    def temporary_bytes(remat):
        model = Decoder(config, compute_dtype="float32", remat=remat)
        row = plain_row(jnp.zeros((4, 64), jnp.int32))
        gradient = jax.jit(jax.grad(lambda p: jnp.sum(model.hidden(p, *row))))
        return gradient.lower(model.abstract_params()).compile().memory_analysis().temp_size_in_bytes

    full, products, none = (temporary_bytes(remat) for remat in ("full", "products", "none"))
    assert full < products < none


def test_matmul_gradients_equal_jax_in_float32_and_are_near_in_bfloat16():
    random = np.random.default_rng(0)
    x, kernel = (random.normal(size=shape).astype(np.float32) for shape in ((2, 5, 16), (16, 7)))

    def gradients(product):
        return jax.jit(jax.grad(lambda x, k: jnp.sum(jnp.sin(product(x, k))), argnums=(0, 1)))(x, kernel)

    expected = gradients(lambda x, k: x @ k)
    exact = gradients(lambda x, k: matmul(x, k, Precision("float32", "float32")))
    half = gradients(lambda x, k: matmul(x, k, Precision("bfloat16", "float32")))
    chex.assert_trees_all_close(exact, expected, rtol=1e-5, atol=1e-5)
    chex.assert_trees_all_close(half, expected, atol=0.2)
    assert all(g.dtype == jnp.float32 for g in half)


def test_visibility_by_a_plain_loop():
    rng = np.random.default_rng(0)
    segments = rng.integers(0, 4, (3, 10))
    parents = rng.integers(0, 3, (3, 10))
    positions = rng.integers(0, 10, (3, 10))
    got = np.asarray(visibility(jnp.array(segments), jnp.array(parents), positions=jnp.array(positions), window=4))
    for b in range(3):
        for q in range(10):
            for k in range(10):
                related = segments[b, k] in (segments[b, q], parents[b, q]) and segments[b, k] > 0
                near = positions[b, q] - positions[b, k] < 4
                assert got[b, q, k] == (q == k or (related and k <= q and near))


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("qwen3_0_6b", 0.596),
        ("qwen3_8b", 8.19),
        ("qwen3_32b", 32.76),
        ("smollm2_135m", 0.134515008),
        ("gemma3_270m", 0.268),
    ],
)
def test_named_sizes_have_the_published_number_of_parameters(name, billions):
    """Published counts: Qwen3 report (0.6B: 0.596 shared embedding), SmolLM2-135M 134,515,008, Gemma 3 270M."""
    shapes = Decoder(NAMED[name]).abstract_params()
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert count / 1e9 == pytest.approx(billions, rel=2e-3)


def test_wrong_values_are_refused():
    with pytest.raises(UserError, match="does not divide num_heads=4"):
        DecoderConfig(8, 1, 8, 8, num_heads=4, num_kv_heads=3, head_dim=2, max_positions=8)
    with pytest.raises(UserError, match=r"model.remat='sometimes'.*full"):
        Decoder(tiny.config(), remat="sometimes")
