"""Text encoders: padding has no influence, filled rows, dropout. Numbers: test_encoder_parity."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.errors import UserError
from jaxalign.models import lora
from jaxalign.models.lora import LoraConfig
from jaxalign.models.text_encoder import TextEncoder
from jaxalign.placement import under_mesh
from jaxalign.training.mesh import make_mesh, put_batch
from jaxalign.training.sharding import TEXT_ENCODER_RULES, adapter_rules, shardings_for
from tests.models import tiny_encoders
from tests.models.tiny_encoders import random_params, text_encoder, text_rows

embed = jax.jit(TextEncoder.embed, static_argnums=0)


@functools.partial(jax.jit, static_argnums=0)
def value_and_gradient(encoder, params, rows, key=None):
    def loss(params):
        found = encoder.embed(params, rows, key=key)
        return jnp.sum(jnp.sin(found)), found

    (_, found), gradient = jax.value_and_grad(loss, has_aux=True)(params)
    return found, gradient


@pytest.mark.parametrize("name", tiny_encoders.TEXT)
def test_padding_has_no_influence(name):
    """Neither on embeddings nor on the gradient, bit for bit."""
    encoder = text_encoder(name)
    params = random_params(encoder)
    rows = text_rows()
    index = jnp.arange(rows["tokens"].shape[1])
    other = rows | {"tokens": jnp.where(index < rows["lengths"][:, None], rows["tokens"], 31)}
    expected, gradient = value_and_gradient(encoder, params, rows)
    assert expected.shape == (4, encoder.embedding_dim)
    chex.assert_trees_all_equal(value_and_gradient(encoder, params, other), (expected, gradient))


def test_a_row_is_the_same_alone_and_without_padding():
    encoder = text_encoder()
    params, rows = random_params(encoder), text_rows()
    alone = embed(encoder, params, {"tokens": rows["tokens"][1:2, :4], "lengths": rows["lengths"][1:2]})
    np.testing.assert_allclose(alone[0], value_and_gradient(encoder, params, rows)[0][1], atol=1e-5)


@pytest.mark.parametrize("name", tiny_encoders.TEXT)
def test_a_row_without_tokens_is_finite(name):
    encoder = text_encoder(name)
    found, gradient = value_and_gradient(encoder, random_params(encoder), text_rows(lengths=(0, 3, 1, 2)))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((found, gradient)))


def test_filled_rows_are_seen():
    """SigLIP: the fill tokens count as text, as if they had been given."""
    encoder, plain = text_encoder("siglip"), text_encoder("siglip", fill_id=None)
    params, rows = random_params(encoder), text_rows()
    index = jnp.arange(12)
    tokens = jnp.where(index < rows["lengths"][:, None], jnp.pad(rows["tokens"], ((0, 0), (0, 3))), 1)
    filled = {"tokens": tokens, "lengths": jnp.full(4, 12)}
    found = value_and_gradient(encoder, params, rows)[0]
    np.testing.assert_allclose(found, embed(plain, params, filled), rtol=1e-5, atol=1e-6)
    assert np.abs(found - embed(plain, params, filled | {"lengths": rows["lengths"]})).max() > 1e-2


def test_dropout_by_key():
    encoder = text_encoder("bert", dropout=0.2)
    params = random_params(encoder)
    rows = text_rows()
    runs = [value_and_gradient(encoder, params, rows, jax.random.key(seed)) for seed in (1, 1, 2)]
    chex.assert_trees_all_equal(runs[0], runs[1])
    still = embed(encoder, params, rows)
    np.testing.assert_allclose(still, value_and_gradient(text_encoder("bert"), params, rows)[0], rtol=1e-5, atol=1e-6)
    for other in (runs[2][0], still):
        assert np.abs(runs[0][0] - other).max() > 0.05
    # The layers drop too, not the embeddings alone.
    x, visible = jnp.ones((1, 4, 16)), jnp.ones((1, 1, 1), bool)
    layers = jax.jit(lambda key: encoder._layers(params, x, visible, key))
    assert np.abs(layers(jax.random.key(1)) - layers(jax.random.key(2))).max() > 0.05
    # What is computed again backward drops the same entries.
    kept = value_and_gradient(text_encoder(dropout=0.2, remat="none"), params, rows, jax.random.key(1))
    chex.assert_trees_all_close(runs[0], kept, rtol=1e-4, atol=1e-5)


@pytest.mark.devices(8)
def test_sharded_equals_whole():
    encoder = text_encoder()
    params, rows = random_params(encoder), text_rows()
    expected = value_and_gradient(encoder, params, rows)
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    sharded = jax.device_put(params, shardings_for(params, TEXT_ENCODER_RULES, mesh))
    with under_mesh(mesh):
        found = value_and_gradient(encoder, sharded, put_batch(rows, mesh))
    assert len(found[0].sharding.device_set) == 8
    chex.assert_trees_all_close(jax.device_get(found), jax.device_get(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.devices(8)
def test_an_adapter_stands_where_a_kernel_does():
    encoder = text_encoder()
    base, rows = random_params(encoder), text_rows()
    config = LoraConfig(rank=2, alpha=4.0, targets=(r"layers/.*/(query|up)",))
    adapter = jax.tree.map(lambda a: a + 0.1, lora.init_adapter(jax.random.key(0), base, config))
    merged = embed(encoder, lora.merge(base, adapter, config), rows)
    np.testing.assert_allclose(embed(encoder, lora.attach(base, adapter, config), rows), merged, atol=1e-5)
    assert np.abs(merged - embed(encoder, base, rows)).max() > 0.05
    layout = shardings_for(adapter, adapter_rules(TEXT_ENCODER_RULES), make_mesh(data=2, fsdp=2, tensor=2))
    assert layout["layers"]["mlp"]["up"]["lora_b"].spec == jax.sharding.PartitionSpec(None, None, "tensor")


def test_half_precision_is_near():
    encoder = text_encoder()
    params = random_params(encoder)
    half = TextEncoder(encoder.config, compute_dtype="bfloat16")
    found = embed(half, params, text_rows())
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, embed(encoder, params, text_rows()), atol=0.1)


@pytest.mark.parametrize("name", tiny_encoders.TEXT)
def test_parameters_are_born_with_their_shapes(name):
    encoder = text_encoder(name)
    born = jax.eval_shape(encoder.init, jax.random.key(0))
    chex.assert_trees_all_equal_shapes_and_dtypes(born, encoder.abstract_params())
    assert ("projection" in born) == (name != "bert") and ("types" in born["embed"]) == (name == "bert")


def test_wrong_values_are_refused():
    encoder = text_encoder()
    with pytest.raises(UserError, match=r"rows of 13 tokens do not fit the 12 positions"):
        encoder.embed(random_params(encoder), text_rows(lengths=(13,), size=13))
    with pytest.raises(UserError, match=r"token types have shape \(4, 2\), tokens \(4, 9\)"):
        encoder.embed(random_params(encoder), text_rows() | {"types": jnp.zeros((4, 2), jnp.int32)})
    with pytest.raises(UserError, match="pooling='max' is not known; use one of mean, cls, last"):
        text_encoder(pooling="max")
    with pytest.raises(UserError, match="num_heads=5 does not divide embed_dim=16"):
        text_encoder(num_heads=5)
    with pytest.raises(UserError, match=r"remat='some' is not known.*full"):
        text_encoder(remat="some")
