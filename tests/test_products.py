"""float32 means float32, on every backend, unless JAX was told otherwise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.losses.log_probs import token_log_probs
from jaxalign.models.decoder import Decoder
from tests.models import tiny


def programs(dtype):
    """Text of the programs of everything that multiplies by weights: hidden states, their gradient, a decode step."""
    decoder = Decoder(tiny.config(), compute_dtype=dtype)
    params = decoder.abstract_params()
    row = jax.ShapeDtypeStruct((2, 8), jnp.int32)

    def loss(params, tokens, positions, segments):
        hidden = decoder.hidden(params, tokens, positions, segments)
        scored = token_log_probs(hidden, decoder.head(params), tokens, compute_dtype=dtype)
        return jnp.sum(scored.log_probs)

    def decode(params, tokens, lengths):
        prepared = decoder.decode_params(params)
        hidden, cache = decoder.prefill(prepared, tokens, lengths, 16)
        hidden, _ = decoder.decode(prepared, lengths, lengths, cache)
        return decoder.decode_logits(prepared, hidden)

    count = jax.ShapeDtypeStruct((2,), jnp.int32)
    yield jax.jit(jax.grad(loss)).lower(params, row, row, row).as_text()
    yield jax.jit(decode).lower(params, row, count).as_text()


def precisions(text):
    """The precision of each product: its two operands', or "" where the backend decides."""
    for line in text.splitlines():
        if "dot_general" in line:
            yield line.partition("precision = ")[2].partition("]")[0].strip("[")


@pytest.mark.parametrize(
    ("dtype", "setting", "expected"),
    [
        ("float32", None, "HIGHEST, HIGHEST"),
        ("float32", "default", "DEFAULT, DEFAULT"),
        ("bfloat16", None, "DEFAULT, DEFAULT"),
    ],
)
def test_precision_of_all_products(dtype, setting, expected):
    with jax.default_matmul_precision(setting):
        for text in programs(dtype):
            found = list(precisions(text))
            assert len(found) > 5
            assert {each or "DEFAULT, DEFAULT" for each in found} == {expected}


@pytest.mark.skipif(jax.default_backend() == "cpu", reason="needs an accelerator: CPUs have no less exact product")
def test_hidden_states_are_as_exact_as_said():
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 97, (3, 32)))
    positions, segments = jnp.broadcast_to(jnp.arange(32), (3, 32)), jnp.ones((3, 32), jnp.int32)

    def hidden(dtype, setting):
        decoder = Decoder(tiny.config(), compute_dtype=dtype, activation_dtype="float32")
        with jax.default_matmul_precision(setting):
            found = jax.jit(decoder.hidden)(tiny.random_params(decoder), tokens, positions, segments)
        return np.asarray(found, np.float64)

    exact = hidden("float32", "highest")
    assert np.abs(hidden("float32", None) - exact).max() == 0
    assert np.abs(hidden("bfloat16", None) - exact).max() > 1e-4
