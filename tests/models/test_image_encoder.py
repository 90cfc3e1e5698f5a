"""Image encoders: patches, pooling, what is refused. Numbers: test_encoder_parity."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.errors import UserError
from jaxalign.models.image_encoder import patches
from tests.models import tiny_encoders
from tests.models.tiny_encoders import image_encoder, pixels, random_params


@functools.partial(jax.jit, static_argnums=0)
def value_and_gradient(encoder, params, images):
    def loss(params):
        found = encoder.embed(params, images)
        return jnp.sum(jnp.sin(found)), found

    (_, found), gradient = jax.value_and_grad(loss, has_aux=True)(params)
    return found, gradient


def embed(encoder, params, images):
    return value_and_gradient(encoder, params, images)[0]


def test_patches_by_a_plain_loop():
    images = np.random.default_rng(0).normal(size=(2, 7, 9, 3))
    found = patches(jnp.asarray(images), 3)
    expected = [
        [image[top : top + 3, left : left + 3].reshape(-1) for top in (0, 3) for left in (0, 3, 6)] for image in images
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("name", ["siglip", "mean"])
def test_rows_are_independent_and_gradients_finite(name):
    encoder = image_encoder(name)
    params = random_params(encoder)
    images = pixels()
    expected, gradient = value_and_gradient(encoder, params, images)
    assert expected.shape == (3, encoder.embedding_dim) and expected.dtype == jnp.float32
    changed = {"images": images["images"].at[1].add(1.0)}
    moved = np.abs(embed(encoder, params, changed) - expected).max(-1)
    assert moved[1] > 1e-3 and moved[0] == moved[2] == 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert np.isfinite(leaf).all()
        # The scores of a query all move with the bias of the keys: no softmax sees it.
        keys_bias = [part.key for part in path[-2:]] == ["key", "bias"]
        assert (np.abs(leaf).max() < 1e-4) == keys_bias, path


def test_mean_pooling_forgets_the_order_of_patches_but_for_their_positions():
    encoder = image_encoder("mean")
    params = random_params(encoder)
    swapped = {"images": jnp.roll(pixels()["images"], 4, axis=1)}  # the upper and the lower patches change places
    assert np.abs(embed(encoder, params, swapped) - embed(encoder, params, pixels())).max() > 1e-3
    params["embed"]["positions"] = jnp.zeros_like(params["embed"]["positions"])
    np.testing.assert_allclose(embed(encoder, params, swapped), embed(encoder, params, pixels()), atol=1e-5)


@pytest.mark.parametrize("name", tiny_encoders.IMAGE)
def test_parameters_are_born_with_their_shapes(name):
    encoder = image_encoder(name)
    born = jax.eval_shape(encoder.init, jax.random.key(0))
    chex.assert_trees_all_equal_shapes_and_dtypes(born, encoder.abstract_params())
    assert ("pool" in born) == (name == "siglip") and ("class_token" in born["embed"]) == (name in ("vit", "clip"))


def test_wrong_values_are_refused():
    encoder = image_encoder()
    params = random_params(encoder)
    with pytest.raises(UserError, match=r"images have shape \(9, 9, 3\), the image encoder takes \(8, 8, 3\)"):
        encoder.embed(params, pixels(size=9))
    with pytest.raises(UserError, match="images are of type uint8; scale them"):
        encoder.embed(params, {"images": jnp.zeros((1, 8, 8, 3), jnp.uint8)})
    with pytest.raises(UserError, match="pooling='last' is not known; use one of cls, mean, map"):
        image_encoder(pooling="last")
    with pytest.raises(UserError, match="patch_size=9 is larger than image_size=8"):
        image_encoder(patch_size=9)
