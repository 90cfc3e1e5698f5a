"""Shared-prompt rows give what separate rows give, for values and gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.models.rows import completion_rows, gather_predictors, separate
from tests.models import tiny


def batch(seed=0, num_prompts=2, prompt_size=5, siblings=3, length=4):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, prompt_size + 1, num_prompts)
    completion_lengths = rng.integers(0, length + 1, (num_prompts, siblings))
    mask = np.arange(length) < completion_lengths[..., None]
    prompts = rng.integers(0, 97, (num_prompts, prompt_size))
    return prompts, lengths, rng.integers(0, 97, (num_prompts, siblings, length)), mask.astype(np.float32)


@functools.partial(jax.jit, static_argnums=0)
def predicting_hidden(decoder, params, arguments):
    rows = completion_rows(*arguments)
    hidden = decoder.hidden(params, rows.tokens, rows.positions, rows.segments, rows.parents)
    return gather_predictors(hidden, rows.predictors)


@pytest.mark.parametrize("architecture", sorted(tiny.COVERING))
def test_shared_prompt_equals_plain_forward(architecture):
    """Of rows without padding between prompt and completion; what is behind them no token sees."""
    decoder = tiny.decoder(architecture)
    params = tiny.random_params(decoder)
    prompts, lengths, completions, mask = arguments = batch(seed=5)
    assert lengths.min() < prompts.shape[1], "a prompt with padding behind it"
    shared = predicting_hidden(decoder, params, arguments)
    rows = np.zeros((2, 3, prompts.shape[1] + completions.shape[2]), int)
    for p, length in enumerate(lengths):
        rows[p, :, :length] = prompts[p, :length]
        rows[p, :, length : length + completions.shape[2]] = completions[p]
    plain = tiny.hidden(decoder, params, *tiny.plain_row(rows.reshape(6, -1))).reshape(*rows.shape, -1)
    for p, length in enumerate(lengths):
        for k in range(3):
            n = int(mask[p, k].sum())
            np.testing.assert_allclose(shared[p, k, :n], plain[p, k, length - 1 : length - 1 + n], atol=2e-5)


def test_shared_and_separate_rows_have_equal_gradients():
    decoder = tiny.decoder("qwen3")
    params = tiny.random_params(decoder)
    arguments = batch(seed=3)
    mask = arguments[3]

    def gradient(arguments):
        def total(params):
            hidden = predicting_hidden(decoder, params, arguments).reshape(*mask.shape, -1)
            return jnp.sum(jnp.where(mask[..., None] > 0, jnp.sin(hidden), 0.0))

        return jax.jit(jax.grad(total))(params)

    def close(shared, separate):
        # An element is a sum over all tokens, so its rounding follows from the size of the terms, not from its own.
        scale = np.abs(separate).max()
        np.testing.assert_allclose(shared, separate, rtol=0, atol=1e-5 * scale)

    jax.tree.map(close, gradient(arguments), gradient(separate(*arguments)))
