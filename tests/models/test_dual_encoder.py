"""Two encoders into one space: which of them embeds what, and the scalars beside them."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.errors import UserError
from jaxalign.models.dual_encoder import DualEncoder
from jaxalign.models.mlp_encoder import MlpEncoder
from tests.models.tiny_encoders import image_encoder, text_encoder


@dataclasses.dataclass(frozen=True)
class Tower:
    """Gives its one parameter times the first of its inputs."""

    name: str
    embedding_dim: int = 3

    def embed(self, params, inputs, *, key=None):
        return params * inputs[self.name]


def test_inputs_choose_the_tower():
    dual = DualEncoder(image=Tower("images"), text=Tower("tokens"))
    params = {"image": 2.0, "text": 5.0, "log_scale": 0.0}
    image, text = {"images": np.ones((2, 3))}, {"tokens": np.ones((4, 3))}
    assert dual.embedding_dim == 3
    np.testing.assert_array_equal(dual.embed(params, image), np.full((2, 3), 2.0))
    np.testing.assert_array_equal(dual.embed(params, text), np.full((4, 3), 5.0))
    found = dual.embed_pair(params, {"image": image, "text": text})
    assert [one.shape for one in found] == [(2, 3), (4, 3)]
    with pytest.raises(UserError, match="the inputs are images, tokens; call embed_image"):
        dual.embed(params, image | text)


def test_initial_scale_and_bias():
    tower = MlpEncoder(3, (), 2)
    encoders = DualEncoder(tower, tower), DualEncoder(tower, tower, initial_scale=10.0, initial_bias=-10.0)
    clip, siglip = (jax.jit(encoder.init)(jax.random.key(0)) for encoder in encoders)
    np.testing.assert_allclose(jnp.exp(clip["log_scale"]), 1 / 0.07, rtol=1e-6)
    assert sorted(clip) == ["image", "log_scale", "text"]
    np.testing.assert_allclose((jnp.exp(siglip["log_scale"]), siglip["bias"]), (10.0, -10.0), rtol=1e-6)
    for encoder, params in zip(encoders, (clip, siglip), strict=True):
        chex.assert_trees_all_equal_shapes_and_dtypes(params, encoder.abstract_params())
    assert np.abs(clip["image"]["layer_0"]["kernel"] - clip["text"]["layer_0"]["kernel"]).max() > 0.1


def test_towers_of_features():
    """Two MLPs; dropout gets a key of its own in each."""
    dual = DualEncoder(image=MlpEncoder(6, (), 3, input_dropout=0.5), text=MlpEncoder(6, (), 3, input_dropout=0.5))
    tower = {"layer_0": {"kernel": jnp.ones((6, 3)), "bias": jnp.zeros(3)}}
    given = {"features": jnp.arange(24.0).reshape(4, 6)}
    pair = {"image": given, "text": given}
    embed_pair = jax.jit(lambda key: dual.embed_pair({"image": tower, "text": tower}, pair, key=key))
    chex.assert_trees_all_equal(*embed_pair(None))
    image, text = embed_pair(jax.random.key(1))
    assert np.abs(image - text).max() > 0.1


def test_towers_of_different_sizes_are_refused():
    with pytest.raises(UserError, match=r"embeddings of 8 numbers, the text encoder of 16.*projection_dim"):
        DualEncoder(image=image_encoder("clip"), text=text_encoder("bert"))
