"""Two encoders into one space: which of them embeds what, and the scalars beside them."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.errors import UserError
from jaxalign.models.dual_encoder import DualEncoder
from jaxalign.models.mlp_encoder import MlpEncoder
from tests.models.tiny_encoders import dual_encoder, image_encoder, pixels, random_params, text_encoder, text_rows


def test_inputs_choose_the_tower():
    dual = dual_encoder()
    params = random_params(dual)

    @jax.jit
    def embeddings(params):
        image, text = dual.image.embed(params["image"], pixels()), dual.text.embed(params["text"], text_rows())
        chosen = dual.embed(params, pixels()), dual.embed(params, text_rows())
        return (image, text), chosen, dual.embed_pair(params, {"image": pixels(), "text": text_rows()})

    expected, chosen, pair = embeddings(params)
    chex.assert_trees_all_close(chosen, expected, rtol=1e-5)
    chex.assert_trees_all_close(pair, expected, rtol=1e-5)
    assert np.abs(expected[0] - expected[1]).max() > 0.1
    assert dual.embedding_dim == 8
    with pytest.raises(UserError, match="the inputs are images, lengths, tokens; call embed_image"):
        dual.embed(params, pixels() | text_rows())


def test_initial_scale_and_bias():
    tower = MlpEncoder(3, (), 2)
    encoders = DualEncoder(tower, tower), DualEncoder(tower, tower, initial_scale=10.0, initial_bias=-10.0)
    clip, siglip = (encoder.init(jax.random.key(0)) for encoder in encoders)
    np.testing.assert_allclose(jnp.exp(clip["log_scale"]), 1 / 0.07, rtol=1e-6)
    assert sorted(clip) == ["image", "log_scale", "text"]
    np.testing.assert_allclose((jnp.exp(siglip["log_scale"]), siglip["bias"]), (10.0, -10.0), rtol=1e-6)
    for encoder, params in zip(encoders, (clip, siglip), strict=True):
        chex.assert_trees_all_equal_shapes_and_dtypes(params, encoder.abstract_params())
    assert np.abs(clip["image"]["layer_0"]["kernel"] - clip["text"]["layer_0"]["kernel"]).max() > 0.1


def test_towers_of_features():
    """Two MLPs; dropout gets a key of its own in each."""
    dual = DualEncoder(image=MlpEncoder(6, (), 3, input_dropout=0.5), text=MlpEncoder(6, (), 3, input_dropout=0.5))
    params = dual.init(jax.random.key(0))
    params["text"] = params["image"]
    given = {"features": jnp.ones((4, 6))}
    pair = {"image": given, "text": given}
    chex.assert_trees_all_equal(*dual.embed_pair(params, pair))
    image, text = dual.embed_pair(params, pair, key=jax.random.key(1))
    assert np.abs(image - text).max() > 0.1


def test_towers_of_different_sizes_are_refused():
    with pytest.raises(UserError, match=r"embeddings of 8 numbers, the text encoder of 16.*projection_dim"):
        DualEncoder(image=image_encoder("clip"), text=text_encoder("bert"))
