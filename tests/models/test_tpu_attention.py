"""The TPU kernel, interpreted on the CPU, against the dense product; where it is taken and where it is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.errors import UserError
from jaxalign.models import decoder as decoder_module
from jaxalign.models.decoder import Decoder
from jaxalign.models.layers import Precision
from jaxalign.models.tpu_attention import flash_attention
from tests.models import tiny

LENGTH = 256


@pytest.fixture
def one_tpu(monkeypatch):
    """As if on one TPU device, with the kernel interpreted."""
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    monkeypatch.setattr(decoder_module, "flash_attention", functools.partial(flash_attention, interpret=True))


def packed_rows():
    """Examples that start within a block and cross its border; a second row without padding."""
    segments = np.array([[1] * 100 + [2] * 90 + [3] * 30 + [0] * 36, [1] * 120 + [2] * 136], np.int32)
    positions = np.concatenate([np.arange(n) for n in (100, 90, 30, 36, 120, 136)]).reshape(segments.shape)
    tokens = np.random.default_rng(0).integers(0, 97, segments.shape)
    return tuple(map(jnp.asarray, (tokens, positions, segments)))


@pytest.mark.slow
def test_hidden_and_gradients_equal_xla(one_tpu):
    tokens, positions, segments = packed_rows()
    real = segments[..., None] > 0

    def value_and_gradient(attention):
        decoder = Decoder(tiny.config(qk_norm=True), compute_dtype="float32", attention=attention)

        def loss(params):
            hidden = jnp.where(real, decoder.hidden(params, tokens, positions, segments), 0.0)
            return jnp.sum(jnp.sin(hidden)), hidden

        # The interpreter's program is compiled for one run.
        gradient = jax.jit(jax.grad(loss, has_aux=True), compiler_options={"xla_backend_optimization_level": 0})
        gradient, hidden = gradient(tiny.random_params(decoder))
        return hidden, gradient

    hidden, gradient = value_and_gradient("flash_tpu")
    expected_hidden, expected_gradient = value_and_gradient("xla")
    np.testing.assert_allclose(hidden, expected_hidden, atol=2e-5)

    def close(got, expected):
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * np.abs(expected).max())

    jax.tree.map(close, gradient, expected_gradient)


@pytest.mark.parametrize("head_dim", [64, 256])
def test_kernel_lowers_for_a_tpu(head_dim):
    """Forward and both backward kernels pass the TPU lowering, which needs no TPU (the compiler behind it would)."""

    def total(query, key, value, segments):
        out = flash_attention(query, key, value, segments, scale=0.1, precision=Precision("bfloat16", "bfloat16"))
        return jnp.sum(out.astype(jnp.float32))

    query, key = (jax.ShapeDtypeStruct((2, 1536, heads, head_dim), jnp.bfloat16) for heads in (4, 2))
    segments = jax.ShapeDtypeStruct((2, 1536), jnp.int32)
    traced = jax.jit(jax.grad(total, argnums=(0, 1, 2))).trace(query, key, key, segments)
    assert traced.lower(lowering_platforms=("tpu",)).as_text().count("@tpu_custom_call") == 3


def uses_kernel(length, *, architecture="qwen3", with_parents=False, **options):
    """Whether the traced program of `hidden` has a Pallas call in it."""
    decoder = Decoder(tiny.config(**tiny.ARCHITECTURES[architecture]), compute_dtype="float32", **options)
    row = jax.ShapeDtypeStruct((1, length), jnp.int32)
    program = jax.make_jaxpr(decoder.hidden)(decoder.abstract_params(), *[row] * (4 if with_parents else 3))
    return "pallas_call" in str(program)


REFUSED = {
    "sliding layers": dict(length=1024, architecture="gemma3"),
    "completions behind a prompt": dict(length=1024, with_parents=True),
    "rows of 1100 tokens are no multiple of 128": dict(length=1100),
}


def test_auto_takes_it_for_long_rows_only(one_tpu):
    assert uses_kernel(1024)
    assert not uses_kernel(896)
    assert uses_kernel(896, attention="flash_tpu")
    assert not uses_kernel(1024, attention="xla")


@pytest.mark.parametrize("reason", REFUSED)
def test_where_it_cannot_serve(one_tpu, reason):
    assert not uses_kernel(**REFUSED[reason])
    with pytest.raises(UserError, match=rf"model.attention='flash_tpu'.*{reason}.*use 'auto'"):
        uses_kernel(**REFUSED[reason], attention="flash_tpu")


@pytest.mark.devices(8)
def test_other_machines(monkeypatch):
    assert not uses_kernel(1024)
    with pytest.raises(UserError, match=r"model.attention='flash_tpu'.*this is a cpu; use 'auto'"):
        uses_kernel(1024, attention="flash_tpu")
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert not uses_kernel(1024)
    with pytest.raises(UserError, match=r"model.attention='flash_tpu'.*one device and there are 8"):
        uses_kernel(1024, attention="flash_tpu")
