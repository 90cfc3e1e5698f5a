"""Text encoders: padding has no influence, what a token sees, pooling, dropout. Numbers: test_encoder_parity."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.errors import UserError
from jaxalign.models.text_encoder import TextEncoder
from tests.models import tiny_encoders
from tests.models.tiny_encoders import random_params, text_encoder, text_rows

embed = functools.partial(jax.jit, static_argnums=0)(TextEncoder.embed)


@pytest.mark.parametrize("name", tiny_encoders.TEXT)
def test_padding_has_no_influence(name):
    """Neither what stands in it, nor how much of it there is, nor the other rows; nor on the gradient."""
    encoder = text_encoder(name)
    params = random_params(encoder)
    rows = text_rows()
    index = jnp.arange(rows["tokens"].shape[1])
    other = rows | {"tokens": jnp.where(index < rows["lengths"][:, None], rows["tokens"], 31)}

    def value_and_gradient(rows):
        return jax.jit(jax.value_and_grad(lambda p: jnp.sum(jnp.sin(encoder.embed(p, rows)))))(params)

    expected = embed(encoder, params, rows)
    assert expected.shape == (3, encoder.embedding_dim)
    np.testing.assert_array_equal(embed(encoder, params, other), expected)
    chex.assert_trees_all_equal(value_and_gradient(other), value_and_gradient(rows))
    short = {"tokens": rows["tokens"][1:2, :4], "lengths": rows["lengths"][1:2]}
    np.testing.assert_allclose(embed(encoder, params, short)[0], expected[1], atol=1e-5)


def test_a_row_without_tokens_is_finite():
    for name in tiny_encoders.TEXT:
        encoder = text_encoder(name)
        rows = text_rows(lengths=(0, 3, 1))
        gradient = jax.jit(jax.grad(lambda p, e=encoder, r=rows: jnp.sum(e.embed(p, r))))(random_params(encoder))
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def hidden(encoder, params, tokens):
    rows = {"tokens": tokens, "lengths": jnp.full((tokens.shape[0],), tokens.shape[1])}
    return jax.jit(lambda p: encoder.hidden(p, rows)[0])(params)


@pytest.mark.parametrize("causal", [False, True])
def test_who_sees_a_changed_token(causal):
    encoder = text_encoder("bert", causal=causal)
    params = random_params(encoder)
    tokens = text_rows()["tokens"]
    moved = np.abs(hidden(encoder, params, tokens.at[0, 5].set(1)) - hidden(encoder, params, tokens)).max(-1)
    assert (moved[0, 5:] > 1e-3).all()
    assert (moved[0, :5] < 1e-6).all() if causal else (moved[0, :5] > 1e-3).all()
    assert (moved[1:] == 0).all()


def test_pooling_takes_from_the_hidden_states():
    rows = text_rows()
    encoders = {pooling: text_encoder("bert", pooling=pooling) for pooling in ("mean", "cls", "last")}
    params = random_params(encoders["mean"])
    states = np.asarray(jax.jit(lambda p: encoders["mean"].hidden(p, rows)[0])(params))
    expected = {
        "mean": [states[row, :length].mean(0) for row, length in enumerate(rows["lengths"])],
        "cls": states[:, 0],
        "last": [states[row, length - 1] for row, length in enumerate(rows["lengths"])],
    }
    for pooling, encoder in encoders.items():
        np.testing.assert_allclose(embed(encoder, params, rows), expected[pooling], rtol=1e-5, atol=1e-6)


def test_filled_rows_are_seen():
    """SigLIP: the fill tokens count as text, as if they had been given."""
    encoder, plain = text_encoder("siglip"), text_encoder("siglip", fill_id=None)
    params = random_params(encoder)
    rows = text_rows()
    index = jnp.arange(12)
    tokens = jnp.where(index < rows["lengths"][:, None], jnp.pad(rows["tokens"], ((0, 0), (0, 3))), 1)
    filled = {"tokens": tokens, "lengths": jnp.full(3, 12)}
    np.testing.assert_allclose(embed(encoder, params, rows), embed(plain, params, filled), rtol=1e-6)
    assert np.abs(embed(encoder, params, rows) - embed(plain, params, rows)).max() > 1e-2


def test_dropout_by_key():
    encoder = text_encoder("bert", dropout=0.2)
    params = random_params(encoder)
    rows = text_rows()
    run = jax.jit(lambda key: encoder.embed(params, rows, key=key))
    first, again, second = run(jax.random.key(1)), run(jax.random.key(1)), run(jax.random.key(2))
    np.testing.assert_array_equal(first, again)
    still = embed(encoder, params, rows)
    np.testing.assert_array_equal(still, embed(text_encoder("bert"), params, rows))
    for one, other in ((first, second), (first, still)):
        assert np.abs(one - other).max() > 0.05


def test_remat_changes_no_gradient():
    rows = text_rows()
    params = random_params(text_encoder())

    def gradient(remat):
        encoder = text_encoder(dropout=0.1, remat=remat)
        return jax.jit(jax.grad(lambda p: jnp.sum(jnp.sin(encoder.embed(p, rows, key=jax.random.key(0))))))(params)

    chex.assert_trees_all_close(gradient("full"), gradient("none"), rtol=1e-4, atol=1e-5)


def test_half_precision_is_near():
    encoder = text_encoder()
    params = random_params(encoder)
    half = TextEncoder(encoder.config, compute_dtype="bfloat16")
    found = embed(half, params, text_rows())
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, embed(encoder, params, text_rows()), atol=0.1)


def test_born_parameters_embed():
    encoder = text_encoder("siglip")
    params = jax.jit(encoder.init)(jax.random.key(0))
    chex.assert_trees_all_equal_shapes_and_dtypes(params, encoder.abstract_params())
    found = embed(encoder, params, text_rows())
    assert np.isfinite(found).all() and np.std(found) > 1e-3


def test_wrong_values_are_refused():
    encoder = text_encoder()
    with pytest.raises(UserError, match=r"rows of 13 tokens do not fit the 12 positions"):
        encoder.embed(random_params(encoder), text_rows(lengths=(13,), size=13))
    with pytest.raises(UserError, match=r"token types have shape \(3, 2\), tokens \(3, 9\)"):
        encoder.embed(random_params(encoder), text_rows() | {"types": jnp.zeros((3, 2), jnp.int32)})
    with pytest.raises(UserError, match="pooling='max' is not known; use one of mean, cls, last"):
        text_encoder(pooling="max")
    with pytest.raises(UserError, match="num_heads=5 does not divide embed_dim=16"):
        text_encoder(num_heads=5)
    with pytest.raises(UserError, match=r"remat='some' is not known.*full"):
        text_encoder(remat="some")
