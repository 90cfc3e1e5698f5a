"""The fused kernel of NVIDIA GPUs: where it is refused, and on a GPU its values beside the dense product's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign import placement
from jaxalign.errors import UserError
from jaxalign.models import attention as attention_module
from jaxalign.models.attention import attention, cudnn_obstacle, visibility
from jaxalign.models.decoder import Decoder
from jaxalign.models.layers import Precision
from tests.models import tiny

HALF = Precision("bfloat16", "bfloat16")
needs_gpu = pytest.mark.skipif(
    (placement.compute_capability() or (0, 0)) < (8, 0), reason="needs an NVIDIA GPU of compute capability 8.0"
)


@pytest.mark.parametrize(
    ("capability", "head_dim", "length", "precision", "complaint"),
    [
        (None, 64, 32, HALF, "there is none"),
        ((7, 5), 64, 32, HALF, "needs compute capability 8.0 and this GPU has 7.5"),
        ((8, 0), 64, 32, Precision("float32", "float32"), "half precision and products are in float32"),
        ((8, 0), 64, 32, Precision("bfloat16", "float32"), "half precision"),
        ((8, 0), 256, 32, HALF, "heads of 256 dimensions are no multiple of 8 up to 128"),
        ((9, 0), 60, 32, HALF, "heads of 60 dimensions"),
        ((9, 0), 64, 33, HALF, "odd number of tokens, 33"),
    ],
)
def test_obstacles(monkeypatch, capability, head_dim, length, precision, complaint):
    monkeypatch.setattr(attention_module, "compute_capability", lambda: capability)
    assert complaint in cudnn_obstacle(head_dim, length, precision)


def test_taken_where_nothing_is_in_the_way(monkeypatch):
    monkeypatch.setattr(attention_module, "compute_capability", lambda: (9, 0))
    assert cudnn_obstacle(256, 32, HALF) is None
    decoder = Decoder(tiny.config(), activation_dtype="bfloat16")
    assert decoder._attention_implementation(32, None) == "cudnn"
    assert decoder._attention_implementation(33, None) == "xla"


@pytest.mark.skipif(placement.platform() == "gpu", reason="it may serve here")
def test_refused_by_name():
    row = jnp.ones((1, 8), jnp.int32)
    decoder = Decoder(tiny.config(), attention="cudnn")
    with pytest.raises(UserError, match=r"model\.attention='cudnn' cannot serve: it is a kernel of NVIDIA GPUs"):
        decoder.hidden(decoder.abstract_params(), row, row, row)


@needs_gpu
def test_equals_the_dense_product():
    """Packed segments with padding: both round to bfloat16, so they are compared with float32's values."""
    random = np.random.default_rng(0)
    query, key, value = (jnp.asarray(random.normal(size=(2, 64, heads, 64)), jnp.bfloat16) for heads in (6, 2, 2))
    segments = jnp.asarray(np.repeat([[1, 2, 0], [1, 1, 2]], [20, 30, 14], axis=1))
    visible, real = visibility(segments), segments[..., None, None] > 0

    def values_and_gradients(implementation, precision):
        def total(query, key, value):
            out = attention(query, key, value, visible, scale=0.125, precision=precision, implementation=implementation)
            out = jnp.where(real, out.astype(jnp.float32), 0)
            return jnp.sum(jnp.sin(out)), out

        operands = (x.astype(precision.activation) for x in (query, key, value))
        gradients, out = jax.jit(jax.grad(total, argnums=(0, 1, 2), has_aux=True))(*operands)
        return [np.asarray(x, np.float64) for x in (out, *gradients)]

    def errors(implementation):
        found = values_and_gradients(implementation, HALF)
        return [np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in zip(found, exact, strict=True)]

    exact = values_and_gradients("xla", Precision("float32", "float32"))
    for fused, dense in zip(errors("cudnn"), errors("xla"), strict=True):
        assert fused < max(1.5 * dense, 0.005)


@needs_gpu
def test_a_decoder_takes_it_and_gives_the_same_hidden_states():
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 97, (3, 32)))
    positions, segments = jnp.broadcast_to(jnp.arange(32), (3, 32)), jnp.ones((3, 32), jnp.int32)
    decoder = Decoder(tiny.config(head_dim=16))
    params = tiny.random_params(decoder)
    hidden = {
        name: np.asarray(
            jax.jit(Decoder(decoder.config, attention=name).hidden)(params, tokens, positions, segments), np.float64
        )
        for name in ("auto", "cudnn", "xla")
    }
    assert (hidden["auto"] == hidden["cudnn"]).all()
    difference = np.linalg.norm(hidden["cudnn"] - hidden["xla"]) / np.linalg.norm(hidden["xla"])
    assert 0 < difference < 0.03
