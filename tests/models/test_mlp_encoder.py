"""The MLP encoder against its formula in NumPy; dropout acts by key alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.errors import UserError
from jaxalign.models.mlp_encoder import MlpEncoder


def features(rows=5, size=6):
    return {"features": jnp.asarray(np.random.default_rng(0).normal(size=(rows, size)), jnp.float32)}


def random_params(encoder):
    rng = np.random.default_rng(1)
    # Biases away from 0, so that one that is left out shows.
    return jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape), jnp.float32), encoder.abstract_params())


@functools.partial(jax.jit, static_argnums=0)
def embed(encoder, params, key=None):
    return encoder.embed(params, features(), key=key)


def plain(params, x, activation=lambda x: np.maximum(x, 0)):
    layers = [params[name] for name in sorted(params)]
    for number, layer in enumerate(layers):
        x = x @ np.asarray(layer["kernel"], np.float64) + np.asarray(layer["bias"], np.float64)
        x = x if number == len(layers) - 1 else activation(x)
    return x


@pytest.mark.parametrize(("activation", "function"), [("relu", lambda x: np.maximum(x, 0)), ("tanh", np.tanh)])
def test_the_formula(activation, function):
    encoder = MlpEncoder(6, (9, 4), 3, activation=activation)
    params = random_params(encoder)
    found = embed(encoder, params)
    np.testing.assert_allclose(found, plain(params, np.asarray(features()["features"]), function), rtol=1e-4, atol=1e-5)
    assert encoder.embedding_dim == found.shape[1] == 3


def test_parameters():
    encoder = MlpEncoder(6, (9,), 3)
    params = jax.jit(encoder.init)(jax.random.key(0))
    np.testing.assert_allclose(np.std(params["layer_0"]["kernel"]), 6**-0.5, rtol=0.2)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), params) == {
        "layer_0": {"kernel": ((6, 9), jnp.float32), "bias": ((9,), jnp.float32)},
        "layer_1": {"kernel": ((9, 3), jnp.float32), "bias": ((3,), jnp.float32)},
    }
    abstract = encoder.abstract_params()
    assert jax.tree.map(lambda a: (a.shape, a.dtype), abstract) == jax.tree.map(lambda a: (a.shape, a.dtype), params)
    assert hash(encoder) == hash(MlpEncoder(6, (9,), 3))
    assert list(MlpEncoder(6, (), 3).abstract_params()) == ["layer_0"]


def test_dropout_needs_a_key_and_the_same_key_drops_the_same():
    encoder = MlpEncoder(6, (64,), 3, dropout=0.5)
    params = random_params(encoder)
    plain_encoder = MlpEncoder(6, (64,), 3)
    still = embed(encoder, params)
    np.testing.assert_array_equal(still, embed(plain_encoder, params))
    np.testing.assert_array_equal(still, embed(plain_encoder, params, jax.random.key(1)))
    one = embed(encoder, params, jax.random.key(1))
    np.testing.assert_array_equal(one, embed(encoder, params, jax.random.key(1)))
    assert np.abs(one - still).max() > 0.1
    assert np.abs(one - embed(encoder, params, jax.random.key(2))).max() > 0.1


def test_dropout_keeps_the_mean():
    """One linear map behind the input: its mean over keys is that without dropout."""
    encoder = MlpEncoder(6, (), 3, input_dropout=0.3)
    params = random_params(encoder)
    keys = jax.random.split(jax.random.key(1), 1000)
    found = jax.jit(jax.vmap(lambda key: encoder.embed(params, features(), key=key)))(keys)
    error = np.std(found, axis=0) / len(keys) ** 0.5
    assert np.all(np.abs(np.mean(found, axis=0) - embed(encoder, params)) < 5 * error)
    assert np.all(error > 0)


def test_wrong_values_are_refused():
    with pytest.raises(UserError, match="activation='swish2' is not known; use one of gelu"):
        MlpEncoder(2, (2,), 2, activation="swish2")
    with pytest.raises(UserError, match=r"dropout=1.0 is not a share"):
        MlpEncoder(2, (2,), 2, dropout=1.0)
